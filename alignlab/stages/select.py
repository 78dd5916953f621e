"""Selection: of several trials of one method, the one that scored best on validation prompts."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from alignlab import typed
from alignlab.errors import ConfigError, TrainingError
from alignlab.files import read_json
from alignlab.stages.stage import METHOD_KINDS, Role, Stage, filling

if TYPE_CHECKING:
    from alignlab.engine.distributed import Engine
    from alignlab.run import Run

_FREE = ("inputs", "label", "backbone")  # in which the evaluations of trials may differ


@dataclass(frozen=True)
class Trial:
    """What became of one setting: its policy, its score, and what the two took."""

    run: str
    evaluation: str
    settings: Mapping[str, Any]
    value: float | None  # None unless done
    status: Literal["done", "diverged", "failed"]
    tokens: float | None  # trained and sampled, by the policy's run and by its evaluation
    flops: float | None  # None where a run that failed had not counted them
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Select(Stage):
    """Choose the trial with the best ``metric`` of its evaluation; its policy is this run's model.

    ``trial/i`` is a policy and ``score/i`` its evaluation on validation prompts. At equal values
    the earlier trial is chosen, so that a search has to beat the settings that it started from. A
    trial that diverged or failed is counted and recorded, and cannot be chosen. Nothing that is
    reported may be read here: evaluations on test prompts are refused, and so are evaluations of
    unequal prompts, rewards or decoding.
    """

    kind: ClassVar[str] = "select"
    roles: ClassVar[Mapping[str, Role]] = {
        "trial": Role(METHOD_KINDS, many=True, tolerant=True),
        "score": Role(("evaluate",), many=True, tolerant=True),
    }

    method: str
    fields: tuple[str, ...]
    metric: Literal["gold", "audit", "proxy", "reference_nll"]
    direction: Literal["max", "min"]

    @property
    def numbers(self) -> list[str]:
        """Numbers of the trials, as in ``trial/3``, in order."""
        return [name.partition("/")[2] for name in filling("trial", self.inputs)]

    def validate(self) -> None:
        """Every trial has one score; a likelihood is better the lower its negative is."""
        if self.metric == "reference_nll" and self.direction == "max":
            raise ConfigError("metric=reference_nll is better when it is lower: direction=min.")
        scores = [name.partition("/")[2] for name in filling("score", self.inputs)]
        if odd := sorted(set(self.numbers) ^ set(scores)):
            raise ConfigError(
                f"inputs: trial/{odd[0]} and score/{odd[0]} belong together, and one is missing."
            )

    def accept(self, inputs: Mapping[str, Stage]) -> None:
        """Refuse scores of other policies, of test prompts, and those that cannot be compared."""
        configs = {name: typed.to_mapping(inputs[name]) for name in filling("score", inputs)}
        for name, config in configs.items():
            number = name.partition("/")[2]
            trial = self.inputs[f"trial/{number}"]
            if config["inputs"]["policy"] != trial:
                raise ConfigError(
                    f"inputs.{name}: '{self.inputs[name]}' evaluates "
                    f"'{config['inputs']['policy']}', and trial/{number} is '{trial}'."
                )
            if self.metric == "proxy" and not filling("reward", config["inputs"]):
                raise ConfigError(
                    f"metric=proxy: '{self.inputs[name]}' has no reward stage to score with."
                )
            if self.metric == "audit" and config["audit"] is None:
                raise ConfigError(f"metric=audit: '{self.inputs[name]}' has no audit reward.")
        require_comparable(configs)

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write what became of every trial to the record, and the chosen policy to ``model/``."""
        found = {name: read_json(inputs[name].path / "config.json") or {} for name in inputs}
        scored = [n for n in filling("score", inputs) if inputs[n].done]
        require_comparable({name: found[name] for name in scored})
        trials = [
            trial_of(inputs[f"trial/{n}"], inputs[f"score/{n}"], self.fields, self.metric)
            for n in self.numbers
        ]
        best = chosen(trials, self.direction)
        policy = inputs[f"trial/{self.numbers[best]}"]
        adopt(policy.model_dir, run.model_dir)
        record = policy.record
        counts = {s: sum(t.status == s for t in trials) for s in ("done", "diverged", "failed")}
        run.update_record(
            label=self.label or f"{head(inputs, self.method)} ({len(trials)} trials)",
            chosen=policy.name,
            metric=self.metric,
            direction=self.direction,
            trials=[typed.to_mapping(t) for t in trials],
            summary={f"validation_{self.metric}": trials[best].value, **counts},
            **{name: record.get(name) for name in ("reference", "template", "params_total")},
        )


def trial_of(policy: Run, score: Run, fields: Sequence[str], metric: str) -> Trial:
    """Read what became of one trial; neither of its runs need be done, or even begun."""
    value = score.summary().get(metric) if policy.done and score.done else None
    if value is not None and math.isfinite(value):
        status: Literal["done", "diverged", "failed"] = "done"
    else:
        kinds = [r.record.get("error_kind") for r in (policy, score)]
        broken = "diverged" in kinds or value is not None
        value, status = None, "diverged" if broken else "failed"
    config = read_json(policy.path / "config.json") or {}
    records = [policy.record, score.record]
    flops = [float(r.get("flops") or 0.0) for r in records]
    return Trial(
        run=policy.name,
        evaluation=score.name,
        settings={field: _at(config, field) for field in fields},
        value=value,
        status=status,
        tokens=sum(map(_tokens, (policy, score))),
        flops=sum(flops) if policy.done else None,
        seconds=sum(float(r.get("seconds") or 0.0) for r in records),
    )


def chosen(trials: Sequence[Trial], direction: str) -> int:
    """Index of the best trial, the first one at a tie.

    Raises:
        TrainingError: no trial is done.
    """
    done = [(i, t.value) for i, t in enumerate(trials) if t.value is not None]
    if not done:
        listed = ", ".join(f"{t.run} {t.status}" for t in trials)
        raise TrainingError(f"no trial is done, so there is none to choose: {listed}.")
    sign = 1.0 if direction == "max" else -1.0
    return max(done, key=lambda pair: (sign * pair[1], -pair[0]))[0]


def require_comparable(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError unless all evaluations are of the same validation prompts, made alike."""
    first: tuple[str, dict[str, Any]] | None = None
    for name, config in configs.items():
        if config["split"] != "validation":
            raise ConfigError(
                f"inputs.{name}: is an evaluation on the {config['split']} split. Settings are "
                "chosen on validation prompts; test prompts are read once, at the end."
            )
        compared = {k: v for k, v in config.items() if k not in _FREE and k != "_target_"}
        if first is None:
            first = name, compared
        elif odd := [k for k in compared if compared[k] != first[1].get(k)]:
            raise ConfigError(
                f"inputs.{name}: differs from {first[0]} in {', '.join(odd)}, so that the better "
                "of the two could be the one that was measured otherwise."
            )


def adopt(model: Path, folder: Path) -> None:
    """Give a finished run's model to another run of the store: hard links where there are any."""
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted attempt
    shutil.copytree(model, folder, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links, or with too many of them
        shutil.copy2(source, target)


def head(inputs: Mapping[str, Run], fallback: str) -> str:
    """Name of the method without its settings: what the labels of its trials begin with."""
    labels = [inputs[name].record.get("label") for name in filling("trial", inputs)]
    heads = {str(label).partition(" (")[0] for label in labels if label}
    return heads.pop() if len(heads) == 1 else fallback


def _tokens(run: Run) -> float:
    record = run.record
    if run.done:
        return float((record.get("tokens_trained") or 0) + (record.get("tokens_sampled") or 0))
    rows = run.metrics("train")  # it ended early: as far as it said
    return float(rows[-1].get("tokens", 0.0)) if rows else 0.0


def _at(config: Mapping[str, Any], field: str) -> Any:
    found: Any = config
    for key in field.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
