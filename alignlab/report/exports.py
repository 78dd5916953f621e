"""The numbers of the page as rows for files: full precision, one row per thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.report.analysis import CELL_METRICS, Analysis, Score
from alignlab.report.concerns import Concern
from alignlab.report.folders import prompt_key
from alignlab.report.statistics import Interval
from alignlab.report.table import COSTS, shared_stages
from alignlab.report.writing import Rows, write_csv, write_table

SAMPLE_COLUMNS = (
    "sample", "prompt", "completion", "tokens", "finished", "gold", "audit", "proxy", "kl",
)  # fmt: skip
METHOD_METRICS = (*CELL_METRICS, "gold_iqm", "distinct_1", "distinct_2", "reference_nll")
REWARDS = ("audit", "proxy", "kl", "tokens")
TEXTS = ("distinct_2", "repetition", "finished", "reference_nll")


def write_exports(
    analysis: Analysis, tables: Mapping[str, Rows], concerns: Sequence[Concern], folder: Path
) -> None:
    """Write the study's own tables and those of its chapters.

    ``methods``, ``differences``, ``cost`` and ``samples`` stand as CSV beside the page; these and
    every other table stand in ``tables/`` as CSV and Parquet, short ones as Markdown and LaTeX too.
    """
    own: dict[str, Rows] = {
        "methods": [_method(s) for s in analysis.scores],
        "differences": _differences(analysis),
        "cost": _costs(analysis),
        "samples": _samples(analysis),
    }
    for stem, rows in own.items():
        write_csv(rows, folder / f"{stem}.csv")
    doubts = [{"level": c.level, "topic": c.topic, "text": c.text} for c in concerns]
    for stem, rows in {**own, **tables, "doubts": doubts}.items():
        write_table(rows, stem, folder / "tables")


def _spread(name: str, found: Interval | None) -> dict[str, Any]:
    """An interval as the columns ``name``, ``name_low`` and ``name_high``."""
    fields = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    return {key: getattr(found, field) if found else None for key, field in fields.items()}


def ranking_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """The ranking as the page shows it, best gold reward first."""
    return [
        {
            "method": score.method.label,
            "settings": score.method.settings,
            "seeds": len(score.method.seeds),
            **_spread("gold", score.metrics.get("gold")),
            **_spread("gold_over_sft", score.over_sft.get("gold")),
            "holm_p": score.p_over_sft,
            "rank": "–".join(str(r) for r in dict.fromkeys(score.ranks)),
            **{k: v for m in REWARDS for k, v in _spread(m, score.metrics.get(m)).items()},
        }
        for score in analysis.scores
    ]


def property_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """The texts of every method and what it cost, in the order of the ranking."""
    return [
        {
            "method": score.method.label,
            **{k: v for m in TEXTS for k, v in _spread(m, score.metrics.get(m)).items()},
            **{key: score.cost.get(key) for key in COSTS},
        }
        for score in analysis.scores
    ]


def gain_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Gains over the baseline by each reward."""
    return [
        {
            "method": score.method.label,
            **_spread("gold", score.over_sft.get("gold")),
            **_spread("audit", score.over_sft.get("audit")),
            **_spread("proxy", score.over_sft.get("proxy")),
        }
        for score in analysis.scores
        if score.over_sft
    ]


def _method(score: Score) -> dict[str, Any]:
    method = score.method
    row: dict[str, Any] = {
        "method": method.id,
        "label": method.full_label,
        "settings": method.settings,
        "seeds": " ".join(map(str, method.seeds)),
        "best_of": method.best_of,
        "prompts": score.metrics["gold"].prompts,
    }
    for metric in METHOD_METRICS:
        found = score.metrics.get(metric)
        for field in ("value", "low", "high", "error"):
            name = metric if field == "value" else f"{metric}_{field}"
            row[name] = getattr(found, field) if found else None
    row["kl_is_analytic_upper_bound"] = score.kl_is_analytic
    for metric in ("gold", "audit", "proxy", "tokens"):
        over = score.over_sft.get(metric)
        for field in ("value", "low", "high"):
            name = f"{metric}_over_sft" + ("" if field == "value" else f"_{field}")
            row[name] = getattr(over, field) if over else None
    row["holm_p_over_sft"] = score.p_over_sft
    row["rank_best"], row["rank_worst"] = score.ranks
    for field in ("value", "low", "high"):
        name = "bradley_terry" + ("" if field == "value" else f"_{field}")
        row[name] = getattr(score.strength, field) if score.strength else None
    row |= dict(score.cost)
    row["runs"] = " ".join(run.name for run in method.evaluations.values())
    row["policies"] = " ".join(run.name for run in method.policies.values() if run)
    return row


def _differences(analysis: Analysis) -> list[dict[str, Any]]:
    return [
        {
            "a": pair.a.id,
            "b": pair.b.id,
            "gold_difference": pair.gold.interval.value,
            "low": pair.gold.interval.low,
            "high": pair.gold.interval.high,
            "error": pair.gold.interval.error,
            "p": pair.gold.p_value,
            "holm_p": pair.holm,
            "distinguishable": pair.distinguishable,
            "win_rate": pair.win.value,
            "win_low": pair.win.low,
            "win_high": pair.win.high,
            "seeds": pair.gold.interval.seeds,
            "prompts": pair.gold.interval.prompts,
        }
        for pair in analysis.pairs
    ]


def _costs(analysis: Analysis) -> list[dict[str, Any]]:
    study = analysis.study
    shared = {run.name for runs in shared_stages(study).values() for run in runs}
    return [
        {
            "run": run.name,
            "kind": run.kind,
            "label": run.label,
            "seed": run.record.get("seed"),
            "shared": run.name in shared,
            "done": run.done,
            **{key: run.number(key) for key in COSTS},
            "updates": run.record.get("updates"),
        }
        for run in study.runs.values()
    ]


def _samples(analysis: Analysis) -> list[dict[str, Any]]:
    everything = (r for s in analysis.scores for rows in s.method.rows.values() for r in rows)
    thoughts = any("thinking" in row for row in everything)
    columns = (*SAMPLE_COLUMNS, "thinking", "thinking_tokens") if thoughts else SAMPLE_COLUMNS
    return [
        {
            "method": score.method.id,
            "seed": seed,
            "run": score.method.evaluations[seed].name,
            "prompt_id": prompt_key(row),
            **{key: row.get(key) for key in columns},
        }
        for score in analysis.scores
        for seed, rows in score.method.rows.items()
        for row in rows
    ]
