"""What every method was given: data and compute side by side, from the records of its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from alignlab.report.analysis import Analysis
from alignlab.report.folders import RunFolder
from alignlab.report.table import Method
from alignlab.stages.stage import ONLINE_KINDS


@dataclass(frozen=True)
class Given:
    """Means over training seeds of what one method read, asked for and spent; None = not known.

    Data are what reached the policy, directly or through its reward model. Compute is that of the
    policy's own run, and of the whole search where there was one.
    """

    method: Method
    prompts: float | None  # different prompts behind its verdicts
    pairs: float | None  # labelled pairs
    unlabelled: float | None  # prompts without a verdict that it sampled on
    queries: float | None  # completions scored by the reward it trained on, or chose by
    generated: float | None  # tokens sampled while training (best of n: while choosing)
    updates: float | None
    flops: float | None
    search_flops: float | None  # of all its trials and their evaluations


COLUMNS: Mapping[str, str] = {
    "prompts": "labelled prompts",
    "pairs": "labelled pairs",
    "unlabelled": "extra prompts",
    "queries": "reward queries",
    "generated": "generated tokens",
    "updates": "updates",
    "flops": "FLOPs",
    "search_flops": "FLOPs, all trials",
}


def given(analysis: Analysis) -> list[Given]:
    """One entry per method, in the order of the ranking."""
    runs = analysis.study.runs
    return [_given(score.method, runs) for score in analysis.scores]


def _given(method: Method, runs: Mapping[str, RunFolder]) -> Given:
    policies = [run for run in method.policies.values() if run is not None]
    if method.best_of > 1:
        return _control(method, runs)
    annotated = [found for run in policies if (found := _annotations(run, runs))]
    online = [run for run in policies if run.kind in ONLINE_KINDS]

    def mean(of: Callable[[RunFolder], float | None], over: Sequence[RunFolder]) -> float | None:
        return _mean([of(run) for run in over])

    return Given(
        method=method,
        prompts=_mean([run.number("prompts") for run in annotated]),
        pairs=_mean([_pairs(run) for run in annotated]),
        unlabelled=mean(_prompts_sampled_on, online) if online else 0.0,
        queries=mean(lambda run: run.number("completions"), online) if online else 0.0,
        generated=mean(lambda run: run.number("tokens_sampled"), policies),
        updates=mean(lambda run: run.number("updates"), policies),
        flops=mean(lambda run: run.number("flops"), policies),
        search_flops=_mean([_search_flops(run) for run in method.selection.values()]),
    )


def _control(method: Method, runs: Mapping[str, RunFolder]) -> Given:
    """Best of n trains nothing: it pays when it is used, here for the prompts of the evaluation."""
    own = list(method.evaluations.values())
    behind = [found for run in own if (found := _annotations(run, runs))]
    return Given(
        method=method,
        prompts=_mean([run.number("prompts") for run in behind]),
        pairs=_mean([_pairs(run) for run in behind]),
        unlabelled=0.0,
        queries=_mean([run.number("completions") for run in own]),
        generated=_mean([run.number("tokens_sampled") for run in own]),
        updates=0.0,
        flops=_mean([run.number("flops") for run in own]),
        search_flops=None,
    )


def _annotations(run: RunFolder, runs: Mapping[str, RunFolder]) -> RunFolder | None:
    """The annotate run that a policy or a reward model learned from, at most one run away."""
    for role, name in run.inputs.items():
        source = runs.get(name)
        if source is None:
            continue
        if source.kind == "annotate":
            return source
        if role.partition("/")[0] == "reward":
            return _annotations(source, runs)
    return None


def _prompts_sampled_on(run: RunFolder) -> float | None:
    """Different prompts of an online run: as many as it has, or as it came to."""
    seen, most = run.number("prompts"), run.config.get("prompts")
    return seen if seen is None or not isinstance(most, int) else min(seen, float(most))


def _pairs(run: RunFolder) -> float | None:
    value = (run.record.get("summary") or {}).get("pairs")
    return float(value) if isinstance(value, int | float) else None


def _search_flops(run: RunFolder) -> float | None:
    """FLOPs of all trials; None when one did not count them."""
    flops = [trial.get("flops") for trial in run.record.get("trials") or ()]
    return float(sum(flops)) if flops and None not in flops else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
