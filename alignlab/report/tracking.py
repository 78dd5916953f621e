"""The report of a study as a run of Weights & Biases: ranking, figures, and the page itself."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from alignlab import files
from alignlab.engine import mirror
from alignlab.engine.tracking import Tracking
from alignlab.report.analysis import Analysis
from alignlab.report.exports import ranking_rows
from alignlab.report.table import Study
from alignlab.report.verdict import verdict

SECONDS = 90.0  # most that the end of a command waits for W&B; the files are written by then
PAGES = ("index.html", "report.md", "report.tex", "*.csv", "*.pdf", "tables/*")


def publish(
    analysis: Analysis, folder: Path, tracking: Tracking, *, seconds: float = SECONDS
) -> str | None:
    """Log the report in ``folder`` to one W&B run per study, and return where it went.

    The run holds the ranking as a table, every figure as an image, the page as a panel and, with
    all tables, as an artifact of type ``report``. A later report of the study continues the run.
    None when tracking is disabled or W&B fails, which is said and stops nothing.

    Raises:
        ConfigError: ``tracking.mode=online`` without a key.
    """
    if tracking.mode == "disabled":
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode = tracking.resolve()
    if mode == "disabled":
        return None
    if mode == "online" and mirror.unreachable.is_set():
        mode = "offline"
    said: list[str] = []
    trouble: list[BaseException] = []
    description = _description(analysis, folder, tracking)

    def work() -> None:
        try:
            said.append(_log(analysis, folder, description, mode))
        except (Exception, SystemExit) as error:
            trouble.append(error)

    thread = threading.Thread(target=work, name="wandb report", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        mirror.unreachable.set()
        trouble.append(TimeoutError(f"no answer within {seconds:g} s"))
    for error in trouble:
        text = " ".join(str(error).split())[:300]
        print(f"W&B could not take the report ({type(error).__name__}: {text}); {folder} has it.",
              file=sys.stderr, flush=True)  # fmt: skip
    return None if trouble else said[0]


def tracking_of(study: Study) -> Tracking:
    """Where the study's runs were mirrored to, by the newest of their records; mode ``auto``."""
    newest: Mapping[str, Any] = {}
    started = -1.0
    for run in study.runs.values():
        place, at = run.record.get("tracking"), run.number("started") or 0.0
        if isinstance(place, Mapping) and at > started:
            newest, started = place, at
    folder = newest.get("dir")
    return Tracking(
        mode="auto",
        project=str(newest.get("project") or "alignlab"),
        entity=newest.get("entity"),
        group=newest.get("group"),
        dir=Path(folder) if folder else None,
    )


def _description(analysis: Analysis, folder: Path, tracking: Tracking) -> dict[str, Any]:
    """Arguments of ``wandb.init``; the id is kept beside the study file."""
    study = analysis.study
    kept = folder.parent / "wandb.json"
    known = files.read_json(kept) or {}
    identity = str(known.get("id") or f"study-{secrets.token_hex(5)}")
    if "id" not in known:
        files.write_atomically(kept, {"id": identity})
    place = tracking.dir or os.environ.get("WANDB_DIR") or study.root
    return {
        "id": identity,
        "name": f"report {study.name}",
        "project": tracking.project,
        "entity": tracking.entity,
        "group": tracking.group or study.name,
        "job_type": "report",
        "tags": ["report"],
        "dir": str(place),
        "config": {"study": study.name, "command": study.command, "seeds": list(study.seeds),
                   "runs": list(study.runs)},
    }  # fmt: skip


def _log(
    analysis: Analysis,
    folder: Path,
    description: Mapping[str, Any],
    mode: Literal["offline", "online"],
) -> str:
    import wandb

    run = mirror.start(description, mode)
    failed = True
    try:
        rows = ranking_rows(analysis)
        columns: list[str | int] = list(rows[0]) if rows else ["method"]
        table = wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
        images = {f"figures/{p.stem}": wandb.Image(str(p)) for p in sorted(folder.glob("*.png"))}
        page = wandb.Html((folder / "index.html").read_text(encoding="utf-8"), inject=False)
        run.log({"ranking": table, "report": page, **images})
        run.summary.update(_summary(analysis))
        artifact = wandb.Artifact(f"report-{description['id']}", type="report")
        for pattern in PAGES:
            for path in sorted(folder.glob(pattern)):
                artifact.add_file(str(path), name=str(path.relative_to(folder)))
        run.log_artifact(artifact)
        failed = False
    finally:
        run.finish(exit_code=int(failed))
    place = str(Path(run.dir).parent)
    return str(run.url) if mode == "online" else f"{place} (`wandb sync` uploads it)"


def _summary(analysis: Analysis) -> dict[str, Any]:
    """The verdict, and the best method's numbers, for W&B's table of runs."""
    found: dict[str, Any] = {"verdict": " ".join(verdict(analysis))}
    if analysis.trained:
        best = analysis.trained[0]
        found |= {"best": best.method.label, "gold": best.value("gold")}
        over = best.over_sft.get("gold")
        if over is not None:
            found |= {"over_sft": over.value, "over_sft_low": over.low, "over_sft_high": over.high}
    if analysis.detectable is not None:
        found["detectable"] = analysis.detectable
    return found
