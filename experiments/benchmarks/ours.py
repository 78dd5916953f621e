"""alignlab's side: the real stages and the real loop, on a case's tokens. One process, one answer.

``python ours.py JOB.json ANSWER.json``; the runner writes the job and reads the answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from cases import ONLINE, Case, load
from make_case import backbone_config
from ours_fixed import fixed_rollouts, fixed_scores
from ours_setup import INPUTS, PPO_EPOCHS, PPO_MINIBATCHES, STAGES, engine_of, stage_of


def main(job: Mapping[str, Any], answer: Path) -> None:
    """Do what ``job`` says and write the answer."""
    folder = Path(job["case"])
    case, rows = load(folder)
    if case.work == "sampling":
        sampling(job, folder, case, rows, answer)
    elif case.work == "grpo" and job["mode"] == "parity":
        fixed_rollouts(job, folder, case, rows, answer)
    elif case.work == "ppo" and job["mode"] == "parity":
        fixed_scores(job, folder, case, rows, answer)
    else:
        training(job, folder, case, answer)


class Clock:
    """Hears every metrics line of a run, one per optimizer step; ``every`` make an update."""

    def __init__(self, record: measure.Record, every: int = 1) -> None:
        self.record, self.every = record, every

    def logged(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Note the end of an update and its loss."""
        if split == "train" and step % self.every == 0:
            self.record.step(float(metrics["loss"]))
            self.record.norms.append(float(metrics["grad_norm"]))

    def sampled(self, row: Mapping[str, Any]) -> None:
        """Samples are not what is measured."""


def training(job: Mapping[str, Any], folder: Path, case: Case, answer: Path) -> None:
    """Run the stage from its inputs to a finished model folder."""
    from alignlab.run import Store

    record = measure.Record()
    stage, engine = stage_of(job, folder, case), engine_of(job)
    engine.workers()
    record.imported()
    given = Store(folder / "store")
    with tempfile.TemporaryDirectory() as scratch:
        run = Store(Path(scratch)).run(stage.kind, "000000")
        every = PPO_EPOCHS * PPO_MINIBATCHES if case.work == "ppo" else 1
        run.listeners.append(Clock(record, every))
        inputs = {role: given.run(kind, "000000") for role, kind in INPUTS[stage_key(case)].items()}
        stage.run(inputs, run, engine)
        facts = run.record
    for name in ("dtype", "layout", "tokens_sampled", "tokens_trained"):
        if name in facts:
            record.facts[name] = facts[name]
    if case.work in ONLINE:
        record.losses = []  # of samples that the other side does not have
    record.items = items_of(case, load(folder)[1], len(record.ends))
    record.write(answer)


def stage_key(case: Case) -> str:
    """Kind of stage that does the work of a case."""
    return STAGES.get(case.work, case.work)


def items_of(case: Case, rows: Sequence[Mapping[str, Any]], updates: int) -> list[float]:
    """Items of every update: pairs, comparisons, completions, tokens of the loss, episodes."""
    counts = []
    for order in case.order[:updates]:
        sizes = [len(rows[r]["completions"]) for r in order]
        if case.work.startswith("reward"):
            counts.append(sum(k * (k - 1) / 2 for k in sizes))
        elif case.work == "sft":
            counts.append(float(sum(len(rows[r]["completions"][0]) for r in order)))
        elif case.work == "kto":
            counts.append(float(sum(sizes)))
        else:
            counts.append(float(len(order) * case.group))
    return counts


def sampling(
    job: Mapping[str, Any],
    folder: Path,
    case: Case,
    rows: Sequence[Mapping[str, Any]],
    answer: Path,
) -> None:
    """Sample one completion per prompt at temperature 1; greedily for parity."""
    import numpy as np

    from alignlab.models.backbone import Backbone
    from alignlab.rollout.sampler import sample
    from alignlab.rollout.sampling import Sampling

    record = measure.Record()
    engine = engine_of(job)
    device = engine.workers().device
    record.imported()
    source = folder / "store" / "sft-000000" / "model"
    dtype = job["dtype"] if job["dtype"] != "auto" else best_dtype(device)
    backbone = Backbone.load(backbone_config(folder, case, dtype), Path(folder), device, seed=0)
    backbone.add("policy", source=source, trainable=False)
    prompts = [np.asarray(row["prompt"], dtype=np.int32) for row in rows]
    parity = job["mode"] == "parity"
    settings = Sampling(
        max_new_tokens=case.new_tokens,
        temperature=0.0 if parity else 1.0,
        top_p=1.0,
        top_k=0,
        batch=job["options"].get("batch", 32),
    )
    with backbone.view("policy") as view:

        def run(count: int, seed: int) -> Any:
            return sample(
                view.model,
                prompts[:count],
                n=1,
                sampling=settings,
                eos_id=case.stop,
                seeds=[seed + i for i in range(count)],
                device=device,
            )

        if not parity:  # a short warm-up, after which the clock starts
            run(4, seed=0)
            record.step(items=0.0)
        samples = run(len(prompts), seed=1_000)
        record.step(items=float(samples.tokens))
    if parity:
        record.facts["sampled_ids"] = [ids.tolist() for ids in samples.ids]
    record.facts |= {"dtype": backbone.dtype_name, "tokens_sampled": samples.tokens}
    record.write(answer)


def best_dtype(device: Any) -> str:
    """What ``backbone.dtype=auto`` means on this device."""
    from alignlab.models.weights import compute_dtype

    return str(compute_dtype("auto", device)).removeprefix("torch.")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
