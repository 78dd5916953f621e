"""Assessments: a judge, benchmarks and forgetting for everything that a study evaluates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignlab.design.draft import Draft, Node, inputs_of, kind_of
from alignlab.errors import ConfigError, did_you_mean
from alignlab.spec import locate

KINDS = ("judge", "benchmark", "reward_benchmark")


def with_assessments(draft: Draft, assess: Any) -> Draft:
    """Add stages made of templates, for what the study evaluates on test prompts.

    ``judge``: the samples of each evaluation against those of the evaluation of SFT (the reference
    itself), which no judge need compare with themselves; where there is no such evaluation, against
    the answers of the data. ``benchmark``: each policy once, SFT included. ``reward_benchmark``:
    each reward stage. Inputs that a template states stay as they are; with an opponent of its own,
    SFT is judged as well.

    Raises:
        ConfigError: an unknown kind of assessment, or a template of another kind.
    """
    if not isinstance(assess, Mapping):
        raise ConfigError(f"assess: expected templates for {' or '.join(KINDS)}.")
    stages = dict(draft.stages)
    origins = dict(draft.origins)
    make = {"judge": _judged, "benchmark": _benchmarked, "reward_benchmark": _reward_tested}
    for kind, template in assess.items():
        _check(kind, template)
        for source, inputs in make[kind](draft.stages).items() if template is not None else ():
            stated = {**inputs, **inputs_of(template)}
            if stated.get("samples") == stated.get("opponent") is not None:
                continue
            name = assessment_name(kind, source)
            if name in stages:
                raise ConfigError(
                    f"assess.{kind}: there is a stage '{name}' already; rename it, or leave this "
                    "assessment out."
                )
            stages[name] = {**template, "inputs": stated}
            origins[name] = assessment_name(kind, draft.origin(source))
    return Draft(stages, origins)


def assessment_name(kind: str, source: str) -> str:
    """``judge_dpo`` for ``evaluate_dpo``, ``judge`` for ``evaluate``, else ``judge_SOURCE``."""
    rest = source.removeprefix("evaluate")
    return kind + rest if rest != source and rest[:1] in ("", "_", ",") else f"{kind}_{source}"


def _check(kind: str, template: Any) -> None:
    if kind not in KINDS:
        raise ConfigError(
            f"assess.{kind}: unknown.{did_you_mean(str(kind), KINDS)} Known: {', '.join(KINDS)}."
        )
    if template is None:
        return
    if not isinstance(template, Mapping) or "_target_" not in template:
        raise ConfigError(
            f"assess.{kind}: expected a stage as a template: /stage@assess.{kind}: {kind}."
        )
    found = getattr(locate(template["_target_"], f"assess.{kind}._target_"), "kind", None)
    if found != kind:
        raise ConfigError(f"assess.{kind}: the template is a {found} stage, not a {kind} stage.")


def _evaluations(stages: Mapping[str, Node]) -> dict[str, Node]:
    """Evaluations whose numbers are reported: on validation prompts settings are chosen."""
    return {
        name: node
        for name, node in stages.items()
        if kind_of(name, node) == "evaluate" and node.get("split") == "test"
    }


def _is_of_reference(node: Node) -> bool:
    """Whether an evaluation is of the reference itself, one sample each: usually SFT's."""
    inputs = inputs_of(node)
    same = inputs.get("policy") is not None and inputs.get("policy") == inputs.get("reference")
    return same and node.get("best_of", 1) == 1


def _judged(stages: Mapping[str, Node]) -> dict[str, dict[str, str]]:
    """Inputs of a judge stage by the evaluation that it judges."""
    evaluations = _evaluations(stages)
    opponents: dict[str, str] = {}
    for name, node in evaluations.items():
        if _is_of_reference(node):
            opponents.setdefault(inputs_of(node)["reference"], name)
    found = {}
    for name, node in evaluations.items():
        opponent = opponents.get(inputs_of(node).get("reference", ""))
        found[name] = {"samples": name} | ({"opponent": opponent} if opponent else {})
    return found


def _benchmarked(stages: Mapping[str, Node]) -> dict[str, dict[str, str]]:
    """Inputs of a benchmark stage by one evaluation of every policy."""
    first: dict[str, str] = {}
    for name, node in _evaluations(stages).items():
        policy = inputs_of(node).get("policy")
        if policy is not None:
            first.setdefault(policy, name)
    return {name: {"policy": policy} for policy, name in first.items()}


def _reward_tested(stages: Mapping[str, Node]) -> dict[str, dict[str, str]]:
    """Inputs of a reward benchmark by the reward stage; its own validation pairs come along."""
    found = {}
    for name, node in stages.items():
        if kind_of(name, node) == "reward":
            own = inputs_of(node).get("annotations")
            found[name] = {"reward": name} | ({"annotations": own} if own else {})
    return found
