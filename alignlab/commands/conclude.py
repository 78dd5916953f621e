"""The last job of a study on a cluster: submits what Slurm did not take before, or reports.

``python -m alignlab.commands.conclude STORE STUDY SCRIPT``, where SCRIPT is that of this very job,
for the one that comes after it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab import files, typed
from alignlab.commands import study_record
from alignlab.commands.study import note, write_report_of
from alignlab.engine.tracking import Tracking
from alignlab.errors import AlignlabError
from alignlab.launch.slurm.client import LATER, Client, QueueFull
from alignlab.launch.slurm.submission import Submitter
from alignlab.run import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is to be done now; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m alignlab.commands.conclude")
    parser.add_argument("store", type=Path)
    parser.add_argument("study")
    parser.add_argument("script")
    parser.add_argument("--max-queued", type=int)
    parser.add_argument("--max-array", type=int)
    parsed = parser.parse_args(arguments)
    store = Store(parsed.store)
    os.environ["ALIGNLAB_RUNS"] = str(store.root)
    submitter = Submitter(
        store, parsed.study, Client(), note, parsed.script, parsed.max_queued, parsed.max_array
    )
    try:
        if not submit_rest(submitter):
            conclude(store, parsed.study)
    except AlignlabError as error:
        note(f"alignlab: {error}")
        return error.exit_code
    return 0


def submit_rest(submitter: Submitter) -> bool:
    """Submit what is left, if anything is; a full queue is waited for, nobody else would come."""
    while rest := submitter.rest():
        try:
            submitter.submit(rest)
        except QueueFull as error:
            note(str(error))
            time.sleep(LATER)
        else:
            return True
    return False


def conclude(store: Store, study: str) -> None:
    """Bring the record of a study up to date, and write its report if there is one to write."""
    folder = store.studies / study
    record = study_record.read(folder / study_record.FILE)
    record = study_record.updated(record, store)
    evaluated = [s for s in record["stages"].values() if s["kind"] == "evaluate" and s["result"]]
    stated: Mapping[str, Any] = (files.read_json(folder / "study.json") or {}).get("ending", {})
    try:
        if stated.get("report") and evaluated:
            tracking = typed.build(Tracking, stated["tracking"], "tracking")
            print(f"report: {write_report_of(study, store, tracking)}", flush=True)
    finally:
        study_record.write(folder, record)


if __name__ == "__main__":
    sys.exit(main())
