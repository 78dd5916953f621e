"""What a finished run descends from, and whether a judge is part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignlab import files, typed
from alignlab.run import Store

if TYPE_CHECKING:
    from alignlab.run import Run
    from alignlab.spec import Spec


def ancestors(run: Run) -> dict[str, Run]:
    """Runs that ``run`` was made from, by name, as far as they are still in the store."""
    store = Store(run.path.parent)
    found: dict[str, Run] = {}
    waiting = [str(name) for name in run.record.get("inputs", {}).values()]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        parent = store.run(*name.split("-", 1))
        if parent.done:
            found[name] = parent
            waiting += [str(source) for source in parent.record.get("inputs", {}).values()]
    return found


def trained_on(samples: Run, judge: Spec, source: Run | None) -> str | None:
    """Run through which the judge had a part in training the policy behind ``samples``; else None.

    That is a reward run or model that judges and that the policy descends from, or a stage before
    the policy (its training, or the annotation of its data) whose configuration holds the very
    reward that judges. What only scored or watched (an evaluation, a monitor) does not count.
    """
    store = Store(samples.path.parent)
    policy = store.run(*str(samples.record["policy"]).split("-", 1))
    family = {policy.name: policy, **ancestors(policy)}
    named = source.name if source is not None else _named(judge)
    if named in family:
        return named
    reward = judge.arguments.get("reward")
    if reward is None:
        return None
    wanted = typed.to_mapping(reward)
    for name, run in family.items():
        config = files.read_json(run.path / "config.json") or {}
        if run.kind != "evaluate" and _holds(config, wanted):
            return name
    return None


def _named(judge: Spec) -> str | None:
    """Run that a judge's configuration names: of a model, or of a learned reward."""
    reward = judge.arguments.get("reward")
    inner = reward.arguments if reward is not None else judge.arguments
    name = inner.get("run")
    return str(name) if name else None


def _holds(config: Any, wanted: Mapping[str, Any]) -> bool:
    if config == wanted:
        return True
    if isinstance(config, Mapping):
        return any(_holds(value, wanted) for key, value in config.items() if key != "monitor")
    return isinstance(config, list) and any(_holds(value, wanted) for value in config)
