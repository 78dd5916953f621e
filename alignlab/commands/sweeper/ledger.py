"""``studies/NAME/trials.json``: every trial of a sweep with its settings, values and end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import files
from alignlab.commands.sweeper.settings import Settings
from alignlab.commands.sweeper.trials import Trials
from alignlab.commands.text import columns
from alignlab.report.trials import FILE

if TYPE_CHECKING:
    from alignlab.commands.sweeper.drive import Sweeper

SHOWN = 12  # trials in the table at the end, best first


class Ledger:
    """Keeps the file true; Optuna's storage decides what a trial came to."""

    def __init__(self, folder: Path, settings: Settings, trials: Trials) -> None:
        self._file, self._settings, self._trials = folder / FILE, settings, trials
        before = files.read_json(self._file) or {}
        self.reasons: dict[int, str] = {
            row["number"]: row["reason"] for row in before.get("trials", [])
        }

    def read(self) -> dict[str, Any]:
        """The content of the file."""
        objectives = [{"name": o.name, "direction": o.direction} for o in self._settings.objectives]
        return {
            "sampler": self._settings.sampler.to_node(),
            "split": self._settings.split,
            "objectives": objectives,
            "n_trials": self._settings.n_trials,
            "trials": [
                {**row, "reason": self.reasons.get(row["number"], "")}
                for row in self._trials.rows()
            ],
            "best": self._trials.best(),
        }

    def write(self) -> None:
        """Replace the file by what is known now."""
        files.write_atomically(self._file, self.read())

    def line(self, number: int) -> str:
        """One trial in words."""
        row = next(row for row in self.read()["trials"] if row["number"] == number)
        names = [o.name for o in self._settings.objectives]
        values = zip(names, row["values"] or (), strict=False)
        told = " ".join(f"{name}={value:.4g}" for name, value in values) or row["reason"]
        return f"trial {number:<3} {row['state']:<9} {told}   {_settings(row)}"


def table(content: Mapping[str, Any], sweeper: Sweeper) -> str:
    """The trials for a terminal, best first, and the command that runs the best one."""
    objectives, trials = content["objectives"], content["trials"]
    sign = -1.0 if objectives[0]["direction"] == "maximize" else 1.0
    best = set(content["best"])
    done = sorted(
        (row for row in trials if row["values"]),
        key=lambda row: (row["number"] not in best, sign * row["values"][0]),
    )
    header = ("trial", *(o["name"] for o in objectives), "settings")
    rows = [
        (
            f"{row['number']}{'*' if row['number'] in best else ''}",
            *(f"{value:.4g}" for value in row["values"]),
            _settings(row),
        )
        for row in done[:SHOWN]
    ]
    counts = {s: sum(row["state"] == s for row in trials) for s in ("done", "diverged", "failed")}
    lines = [columns([header, *rows], right=range(1, 1 + len(objectives)))] if rows else []
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines.append(f"{len(trials)} of {content['n_trials']} trials: {told}.")
    if len(best) == 1:
        found = next(row for row in trials if row["number"] in best)
        lines.append("the best one alone: " + sweeper.command(found["params"]))
    elif best:
        lines.append(f"* not dominated by any other: {len(best)} trials")
    return "\n".join(lines)


def _settings(row: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in row["params"].items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
