"""A script: stages that train nothing, in every process of a group, as ``torchrun`` starts them.

``python dealt_program.py FOLDER`` reads FOLDER/plan.json: stages as configurations, with the runs
behind their inputs and the engine of each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")


def main(folder: Path) -> None:
    """Do every stage of the plan."""
    from alignlab import typed
    from alignlab.engine.distributed import Engine
    from alignlab.plan import build_stage
    from alignlab.run import Run, Store

    for case in json.loads((folder / "plan.json").read_text(encoding="utf-8")):
        stage = build_stage(case["config"], "stages.dealt")
        engine = typed.build(Engine, case["engine"], "engine")
        run = Store(Path(case["store"])).run(stage.kind, case["key"])
        inputs = {role: Run(Path(path)) for role, path in case["inputs"].items()}
        workers = engine.workers()
        stage.run(inputs, run, engine)
        workers.barrier()  # what the main process writes is whole before anybody reads it
        if workers.is_main:
            run.finish()
        workers.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
