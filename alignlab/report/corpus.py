"""Numbers of a method that belong to whole runs and not to single prompts."""

from __future__ import annotations

import math

from alignlab.report.folders import number, prompt_key
from alignlab.report.statistics import Interval
from alignlab.report.table import Method
from alignlab.report.text import distinct, mean_distinct


def forgetting_of(method: Method) -> Interval | None:
    """Return the policy's NLL per token on human text: mean and range over seeds."""
    found = [
        number((run.record.get("summary") or {}).get("reference_nll"))
        for run in method.evaluations.values()
    ]
    known = [x for x in found if math.isfinite(x)]
    return Interval(sum(known) / len(known), min(known), max(known), 0.0) if known else None


def distincts(method: Method) -> dict[str, Interval]:
    """Corpus distinct-1 and distinct-2, mean over seeds with a jackknife interval over prompts."""
    found: dict[str, Interval] = {}
    for n in (1, 2):
        runs = [
            distinct([(prompt_key(r), str(r.get("completion", ""))) for r in rows], n)
            for rows in method.rows.values()
            if rows
        ]
        value, error = mean_distinct(runs)
        found[f"distinct_{n}"] = Interval(value, value - 1.96 * error, value + 1.96 * error, error)
    return found
