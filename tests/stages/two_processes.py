"""A script: the same stages in every process of a group, as ``torchrun`` would start them.

``python two_processes.py FOLDER`` reads FOLDER/plan.json and trains into the stores that it names.
Starting a process costs more than all its trainings, so one pair does all of them. A case names a
chain, a method and a key, and may have changes of the stage, of the engine, and a planted bug.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve()


def start(
    folder: Path,
    plan: dict[str, Any],
    processes: int,
    *,
    patience: float = 300.0,
    script: Path = HERE,
    **environment: str,
) -> None:
    """Run ``script`` in ``processes`` processes of a group, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), str(HERE.parents[1])]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        **environment,
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        errors = [worker.communicate(timeout=patience)[1] for worker in workers]
    finally:
        for worker in workers:  # one that hangs would outlive the test
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * processes, "\n".join(errors)


def described(chain: Any) -> dict[str, Any]:
    """A chain as plain data: its lab and its runs."""
    from equivalence_cases import early

    from alignlab import typed

    early(chain)  # made here, so that the processes find it
    lab = chain.lab
    return {
        "store": str(lab.store.root),
        "configs": lab.configs,
        "engine": typed.to_mapping(lab.engine),
        "runs": [str(run.path) for run in (chain.sft, chain.annotations, chain.reward)],
    }


def opened(of: dict[str, Any]) -> Any:
    """The chain that was described."""
    from stage_lab import Chain, Lab

    from alignlab import typed
    from alignlab.engine.distributed import Engine
    from alignlab.run import Run, Store

    engine = typed.build(Engine, of["engine"], "engine")
    lab = Lab(Store(Path(of["store"])), of["configs"], engine)
    return Chain(lab, *(Run(Path(path)) for path in of["runs"]))


def main(folder: Path) -> None:
    """Do every case of the plan."""
    from equivalence_cases import method
    from mutation import planted

    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    chains = {name: opened(of) for name, of in plan["chains"].items()}
    for case in plan["cases"]:
        chain = chains[case["chain"]]
        stage, inputs = method(chain, case["method"], **case.get("changes", {}))
        stated = {"token_budget": plan["token_budget"], **case.get("engine", {})}
        engine = replace(chain.lab.engine, **stated)
        run, workers = chain.lab.store.run(stage.kind, case["key"]), engine.workers()
        with planted(*case["planted"]) if case.get("planted") else nullcontext():
            stage.run(inputs, run, engine)
        workers.barrier()  # what the main process writes is whole before anybody reads it
        if workers.is_main:
            run.finish()
        workers.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
