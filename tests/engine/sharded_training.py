"""A policy and a value view of a tiny model, trained in one process or several; also a script.

``python sharded_training.py FOLDER`` reads FOLDER/cases.json and does every case in turn: starting
a process costs more than all trainings. A case names its run, and how it is executed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.pack import flatten
from alignlab.engine.distributed import Engine
from alignlab.engine.loop import train
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.sharded import placing
from alignlab.engine.stopping import EarlyStopping
from alignlab.engine.work import Micro
from alignlab.errors import DivergenceError, Interrupted
from alignlab.models.backbone import Backbone
from alignlab.models.load import Adapter, BackboneConfig
from alignlab.models.selective import Selective
from alignlab.run import Run

HERE = Path(__file__).resolve()
STEPS = 5


@dataclass(frozen=True)
class Case:
    """One training: what is trained, and where it is executed, stopped or broken."""

    name: str  # of its run's folder
    rank: int | None = None  # of the adapters; None: full parameters
    layers: str | Sequence[str] = "all-linear"  # that have adapters
    last_layers: int = 0  # so many are trained, without adapters; 0: as ``rank`` says
    zero: int = 0
    offload: str = "none"
    dtype: str = "float32"
    ema: float | None = None
    patience: bool = False
    model: str = "tied"  # or "untied", or "experts"
    checkpointing: bool = False
    max_norm: float | None = 0.5
    stop_after: int = 0  # steps; 0: train to the end, on from a checkpoint if there is one
    broken: str = ""  # "loss" or "gradient": not finite in the third step, on the last process


def engine(case: Case) -> Engine:
    return Engine(
        device="cpu",
        token_budget=64,
        threads=1,
        data_workers=0,
        zero=case.zero,
        offload=case.offload,  # type: ignore[arg-type]
        deterministic=False,
        checkpoint_every_seconds=1e9,
        keep_checkpoints=2,
        log_every=1,
        progress=False,
    )


def model_folder(folder: Path, kind: str) -> Path:
    """A random Llama, or a mixture of four experts, on disk, the same in every test."""
    from tokenizers import Tokenizer, models
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        PreTrainedTokenizerFast,
    )

    made = folder / f"model-{kind}"
    if made.is_dir():
        return made
    torch.manual_seed(0)
    shape = {
        "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
        "tie_word_embeddings": kind == "tied",
    }  # fmt: skip
    if kind == "experts":
        config = MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=1)
        MixtralForCausalLM(config).save_pretrained(made)
    else:
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(made)
    words = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(made)
    return made


def open_backbone(case: Case, folder: Path) -> Backbone:
    layers = case.layers if isinstance(case.layers, str) else tuple(case.layers)
    config = BackboneConfig(
        path=str(model_folder(folder, case.model)),
        revision=None,
        adapter=Selective(last_layers=case.last_layers)
        if case.last_layers
        else Adapter(rank=case.rank, alpha=8.0, dropout=0.0, target_modules=layers),
        dtype=case.dtype,  # type: ignore[arg-type]
        layout="auto",
        gradient_checkpointing=case.checkpointing,
    )
    backbone = Backbone.load(config, folder / "cache", seed=3, place=placing(engine(case)))
    backbone.add("policy", source=None, trainable=True)
    backbone.add("reference", source=None, trainable=False)
    backbone.add("value", source=None, trainable=True, head=True)
    return backbone


def group(row: int) -> TokenGroup:
    """A prompt with two completions of lengths of its own."""
    draw = np.random.default_rng(row)
    sizes = draw.integers(1, 7, 3)
    ids = [draw.integers(2, 61, size).astype(np.int32) for size in sizes]
    return TokenGroup(ids[0], tuple(ids[1:]), NONE, row=row, id=str(row))


class PolicyAndValue:
    """Likelihood of the policy and squared error of the value, over five rows a step.

    Rows are dealt out one by one, so the shares are unlike; of the value's one row every second
    process has nothing at all.
    """

    def __init__(self, case: Case, backbone: Backbone, rank: int, world: int) -> None:
        self.case, self.backbone, self.rank, self.world = case, backbone, rank, world
        self.before_loss: Any = None

    def micros(self, step: int) -> list[Micro]:
        rows = [5 * step + i for i in range(5)]
        policy = [Micro("policy", (flatten([group(r)]), step), 1, f"row {r}") for r in rows]
        value = [Micro("value", (flatten([group(rows[0])]), step), 1, f"value {rows[0]}")]
        return [*policy[self.rank :: self.world], *value[self.rank :: self.world]]

    def loss(self, view: Any, micro: Micro) -> Any:
        batch, step = micro.data
        if self.before_loss:
            self.before_loss(step)
        if micro.view == "policy":
            loss = -view.logps(batch).sum() / 50
        else:
            loss = (view.values(batch) - 1).square().sum() / 5
        if step == 3 and self.rank == self.world - 1 and self.case.broken:
            loss = loss * float("nan") if self.case.broken == "loss" else _explode(loss)
        return loss, {"seen": (1.0, 1.0)}

    def state(self) -> dict[str, Any]:
        return {"mark": 7}

    def load_state(self, state: dict[str, Any]) -> None:
        assert state == {"mark": 7}


def _explode(loss: torch.Tensor) -> torch.Tensor:
    """The loss itself, with a gradient that is not finite."""
    loss = loss * 1.0
    loss.register_hook(lambda gradient: gradient * float("inf"))
    return loss


def do(case: Case, folder: Path) -> None:
    """Train, and write what came out beside the run: weights, summary or error."""
    workers = engine(case).workers()
    run = workers.own(Run(folder / f"toy-{case.name}"))
    backbone = open_backbone(case, folder)
    work = PolicyAndValue(case, backbone, workers.rank, workers.world)
    if case.stop_after:

        def stop(step: int) -> None:
            if step == case.stop_after + 1:
                raise Interrupted("enough.", 15)

        work.before_loss = stop

    def evaluate() -> dict[str, float]:
        with torch.no_grad(), backbone.view("policy", alike=True) as view:
            return {"nll": float(-view.logps(flatten([group(1), group(2)])).mean())}

    out: dict[str, Any] = {"world": workers.world}
    try:
        result = train(
            work,
            backbone,
            ["policy", "value"],
            optimizer=optimizer(case),
            steps=STEPS,
            run=run,
            engine=engine(case),
            seed=3,
            evaluate=evaluate,
            evaluate_every=2,
            early_stopping=EarlyStopping(metric="nll", mode="max", patience=9, min_delta=0.0)
            if case.patience
            else None,
        )
        out |= {"steps": result.steps, "best": result.best_step}
    except Interrupted:
        return
    except DivergenceError as error:
        out["error"] = str(error)
    with torch.no_grad(), backbone.view("reference") as view:  # whole on every process
        out["reference"] = float(view.logps(flatten([group(1 + workers.rank)])).sum())
    for view in ("policy", "value"):
        with backbone.whole(view):
            if workers.is_main:
                backbone.save(view, run.path / view)
                weights = {n: p.clone() for n, p in backbone.trainable_parameters(view).items()}
                torch.save(weights, run.path / f"{view}.pt")
    out["counts"] = [backbone.parameter_counts(v) for v in ("policy", "reference", "value")]
    if workers.is_main:
        (run.path / "out.json").write_text(json.dumps(out))
    workers.barrier()


def optimizer(case: Case) -> Optimizer:
    return Optimizer(
        learning_rate=0.005,
        betas=(0.9, 0.99),
        eps=1e-3,
        weight_decay=0.1,
        schedule="linear",
        warmup=1,
        floor=0.1,
        max_grad_norm=case.max_norm,
        ema=case.ema,
        rates={"value": 3.0},
    )


def start(folder: Path, cases: Sequence[Case], processes: int) -> None:
    """Do the cases in ``processes`` processes that train together, and wait for them."""
    from dataclasses import asdict

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    for kind in {case.model for case in cases}:
        model_folder(folder, kind)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[2]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(HERE), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    errors = [worker.communicate(timeout=1500)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes, "\n".join(errors)


def main(folder: Path) -> None:
    """Do every case."""
    for stated in json.loads((folder / "cases.json").read_text()):
        do(Case(**stated), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
