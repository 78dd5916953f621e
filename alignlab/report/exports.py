"""The numbers of the page as CSV files; full precision, one row per thing."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.report.analysis import CELL_METRICS, Analysis, Score
from alignlab.report.folders import prompt_key
from alignlab.report.table import COSTS, shared_stages

SAMPLE_COLUMNS = (
    "sample", "prompt", "completion", "tokens", "finished", "gold", "audit", "proxy", "kl",
)  # fmt: skip
METHOD_METRICS = (*CELL_METRICS, "gold_iqm", "distinct_1", "distinct_2", "reference_nll")


def write_csv(analysis: Analysis, folder: Path) -> None:
    """Write methods.csv, differences.csv, cost.csv and samples.csv into ``folder``."""
    _write(folder / "methods.csv", [_method(s) for s in analysis.scores])
    _write(folder / "differences.csv", _differences(analysis))
    _write(folder / "cost.csv", _costs(analysis))
    _write(folder / "samples.csv", _samples(analysis))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: _cell(v) for k, v in row.items()})


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


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
    return [
        {
            "method": score.method.id,
            "seed": seed,
            "run": score.method.evaluations[seed].name,
            "prompt_id": prompt_key(row),
            **{key: row.get(key) for key in SAMPLE_COLUMNS},
        }
        for score in analysis.scores
        for seed, rows in score.method.rows.items()
        for row in rows
    ]
