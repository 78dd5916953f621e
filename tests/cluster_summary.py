"""One line at the end of a test run: how much was tried on a cluster, and why the rest was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

FOLDER = "tests/cluster/"
RAN = ("passed", "failed", "error", "xfailed", "xpassed")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the line where the folder was, or should have been, part of the run."""
    line = summary(terminalreporter.stats, terminalreporter.config.args)
    if line is not None:
        terminalreporter.write_line(line)


def summary(stats: Mapping[str, Sequence[Any]], args: Sequence[str]) -> str | None:
    """What became of the cluster tests; None where they were not asked for.

    ``stats`` are the reports of a run by outcome, ``args`` the files and folders it was given.
    """
    ran = {r.nodeid for word in RAN for r in stats.get(word, ()) if _of_cluster(r)}
    skipped = [r for r in stats.get("skipped", ()) if _of_cluster(r)]
    if not ran and not skipped:
        everything = any(arg.rstrip("/") in ("", ".", "tests") for arg in args)
        return "cluster tests: none ran, all deselected" if everything else None
    reasons = Counter(_reason(report) for report in skipped)
    why = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return f"cluster tests: {len(ran)} ran, {len(skipped)} skipped" + (
        f" because: {why}" if why else ""
    )


def _of_cluster(report: Any) -> bool:
    return str(getattr(report, "nodeid", "")).startswith(FOLDER)


def _reason(report: Any) -> str:
    _, _, text = report.longrepr
    return str(text).removeprefix("Skipped: ")
