"""The numbers of the section on tuning as rows for files; full precision, one row per thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignlab.report.folders import show
from alignlab.report.tuning.given import COLUMNS, Given
from alignlab.report.tuning.numbers import Trial, Tuning, ranking, stops

Rows = list[dict[str, Any]]


def settings_text(trial: Trial) -> str:
    """``learning_rate 3e-4, beta 0.1``."""
    return ", ".join(f"{k.rpartition('.')[2]} {show(v)}" for k, v in trial.settings.items())


def search_rows(found: Sequence[Tuning]) -> Rows:
    """One row per method and training seed: what was chosen, and how it did."""
    return [
        {
            "method": t.method.full_label, "metric": t.metric, "trials": t.count,
            "diverged": t.share("diverged"), "failed": t.share("failed"),
            "seed": seed, "run": t.method.selection[seed].name, "chosen": trial.run,
            "settings": settings_text(trial), "validation": trial.value,
            "test": t.tested[seed],
        }
        for t in found
        for seed, trial in sorted(t.chosen.items())
    ]  # fmt: skip


def trial_rows(found: Sequence[Tuning]) -> Rows:
    """One row per trial."""
    return [
        {
            "method": t.method.full_label, "seed": x.seed, "trial": x.number, "run": x.run,
            "evaluation": x.evaluation, "settings": settings_text(x), "status": x.status,
            "validation": x.value, "tokens": x.tokens, "flops": x.flops, "seconds": x.seconds,
        }
        for t in found
        for x in t.all
    ]  # fmt: skip


def rank_rows(found: Sequence[Tuning]) -> Rows:
    """Ranks by the number of trials, with what so many trials cost on average."""
    return [
        {
            "trials": k, "rank": rank, "method": t.method.full_label, "expected_best": t.best_of(k),
            "flops": k * t.mean("flops"), "tokens": k * t.mean("tokens"),
        }
        for k in stops(found)
        for rank, t in enumerate(ranking(found, k), start=1)
    ]  # fmt: skip


def given_rows(resources: Sequence[Given]) -> Rows:
    """One row per method: data and compute."""
    return [
        {"method": g.method.full_label, **{k: getattr(g, k) for k in COLUMNS}} for g in resources
    ]
