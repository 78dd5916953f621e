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
from cases import MAX_COMPLETION, MAX_PROMPT, ONLINE, Case, backbone_config, fixed_completions, load

REWARD = {
    "_target_": "alignlab.rewards.verifiable.Matches",
    "pattern": r"t\d*[05]\b",
    "whole": False,
    "ignore_case": False,
}
PPO_EPOCHS, PPO_MINIBATCHES = 2, 2  # as in peer_ppo.py
STAGES = {"reward_k4": "reward", "reward_k9": "reward", "ipo": "dpo", "simpo": "dpo"}
INPUTS = {
    "sft": {"init": "sft"},
    "reward": {"init": "sft", "annotations": "annotate"},
    "dpo": {"init": "sft", "reference": "sft", "annotations": "annotate"},
    "kto": {"init": "sft", "reference": "sft", "annotations": "annotate"},
    "grpo": {"init": "sft", "reference": "sft"},
    "ppo": {"init": "sft", "reference": "sft", "reward": "reward"},
}


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


def engine_of(job: Mapping[str, Any]) -> Any:
    """The engine as conf/engine/auto.yaml has it, quiet and without checkpoints."""
    from alignlab.engine.distributed import Engine

    return Engine(
        device="auto",
        token_budget=job["options"].get("token_budget", 4096),
        threads=job["threads"],
        zero=0,
        deterministic=False,
        checkpoint_every_seconds=86400,
        keep_checkpoints=1,
        log_every=1,
        progress=False,
    )


def stage_of(job: Mapping[str, Any], folder: Path, case: Case) -> Any:
    """The stage of a case, from conf/ as the command line makes it."""
    import yaml

    from alignlab.compose import compose, conf_dir
    from alignlab.plan import build_stage

    config = compose(
        [
            "pipeline=compare",
            "backbone=hub",
            f"backbone.path={folder / 'model'}",
            f"backbone.dtype={job['dtype']}",
            f"adapter={case.adapter}",
            f"data.path={folder / 'rows.jsonl'}",
            f"+data.validation_path={folder / 'held_out.jsonl'}",
            "data.validation=0",
            "data.test=0",
            "annotator=gold",
            "reward@gold=length",
            "reward@audit=length",
        ]
    )
    kind = STAGES.get(case.work, case.work)
    node = dict(config["stages"][kind])
    node["inputs"] = INPUTS[kind]
    node["seed"] = case.seed
    fields: dict[str, Any] = {"max_prompt": MAX_PROMPT, "max_completion": MAX_COMPLETION}
    if kind in ("sft", "reward", "dpo", "kto"):
        fields = {**fields, "batch": case.batch, "steps": case.updates, "evaluate_every": 0}
        fields |= {"normalize": False, "rows": None, "evaluate_rows": 1}
    else:
        fields |= {"rollout_batch": case.batch, "prompts": 10**6, "missing_eos_score": None}
        fields |= {"iterations": case.updates, "group": case.group, "updates": 1}
        fields |= {"ppo_epochs": PPO_EPOCHS, "minibatches": PPO_MINIBATCHES}
        fields["kl_coef"] = 0.0 if kind == "grpo" else 0.05
        node["sampling"] = {**node["sampling"], "max_new_tokens": case.new_tokens}
        node["reward"] = REWARD if kind == "grpo" else None
    node |= {name: value for name, value in fields.items() if name in node}
    if "objective" in node and kind != "reward":
        path = conf_dir() / "objective" / f"{case.work}.yaml"
        node["objective"] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if kind == "reward":
        node["objective"] = {**node["objective"], "centering": 0.0}
    node["optimizer"] = {
        **node["optimizer"],
        "learning_rate": job["options"].get("learning_rate", case.learning_rate),
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0,
        "max_grad_norm": 1.0,
    }
    stage = build_stage(node, f"stages.{kind}")
    limit = job.get("updates") or case.updates
    changed = {"iterations" if case.work in ONLINE else "steps": limit}
    from dataclasses import replace

    return replace(stage, **changed)


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


def fixed_rollouts(
    job: Mapping[str, Any],
    folder: Path,
    case: Case,
    rows: Sequence[Mapping[str, Any]],
    answer: Path,
) -> None:
    """Loss of GRPO's first update on completions, rewards and old log-probs that are given.

    Writes the old log-probs, which the other side reads: the policy's own, moved by fixed noise,
    so that ratios lie on both sides of the clip.
    """
    import torch

    from alignlab.models.backbone import Backbone
    from alignlab.objectives.advantage import group_advantages
    from alignlab.stages.grpo_work import GRPOWork
    from alignlab.stages.online import Experience, token_outputs

    record = measure.Record()
    stage, engine = stage_of(job, folder, case), engine_of(job)
    record.imported()
    groups = token_groups(fixed_completions(case, rows))
    backbone = Backbone.load(backbone_config(folder, case), Path(folder), "cpu", seed=0)
    backbone.add("policy", source=folder / "store" / "sft-000000" / "model", trainable=True)
    now = token_outputs(backbone, "policy", groups, engine, lambda v, b: v.logps(b))
    noise = torch.Generator().manual_seed(case.seed)
    old = [x + 0.3 * torch.randn(x.shape, generator=noise) for x in now]
    scores = torch.randn(len(old), generator=noise)
    owner = torch.arange(len(groups)).repeat_interleave(case.group)
    advantages = group_advantages(scores, owner, len(groups), kind="group_std", epsilon=1e-4)
    work = GRPOWork(stage, backbone, None, groups, None, engine)  # type: ignore[arg-type]
    work.iteration = 0
    work.experience = Experience(
        groups=groups,
        scores=scores,
        finished=torch.ones(len(old), dtype=torch.bool),
        old=old,
        reference=[],
        tokens={"advantages": [a.expand(len(x)) for a, x in zip(advantages, old, strict=True)]},
    )
    loss = 0.0
    for micro in work.micros(1):
        with torch.no_grad(), backbone.view(micro.view) as view:
            loss += float(work.loss(view, micro)[0])
    record.step(loss)
    fixed = {
        "old": [x.tolist() for x in old],
        "advantages": advantages.tolist(),
        "logps": [x.tolist() for x in now],
    }
    (folder / "fixed.json").write_text(json.dumps(fixed), encoding="utf-8")
    record.write(answer, 1.0)


def token_groups(given: Sequence[tuple[list[int], list[list[int]]]]) -> list[Any]:
    """Prompts and completions as alignlab's token groups."""
    import numpy as np

    from alignlab.data.group import NONE, TokenGroup

    return [
        TokenGroup(
            prompt=np.asarray(prompt, dtype=np.int32),
            completions=tuple(np.asarray(c, dtype=np.int32) for c in completions),
            verdict=NONE,
            row=row,
            id=str(row),
        )
        for row, (prompt, completions) in enumerate(given)
    ]


def fixed_scores(
    job: Mapping[str, Any],
    folder: Path,
    case: Case,
    rows: Sequence[Mapping[str, Any]],
    answer: Path,
) -> None:
    """PPO: log-probs, values and scores of given completions under the views of one backbone."""
    import torch

    from alignlab.models.backbone import Backbone
    from alignlab.rewards.learned import score_groups
    from alignlab.stages.online import token_outputs

    record = measure.Record()
    engine = engine_of(job)
    record.imported()
    given = fixed_completions(case, rows)[:2]
    groups = token_groups(given)
    source = folder / "store" / "reward-000000" / "model"
    backbone = Backbone.load(backbone_config(folder, case), Path(folder), "cpu", seed=0)
    backbone.add("policy", source=source, trainable=True)
    backbone.add("value", source=source, trainable=True, head=True)
    backbone.add("reward", source=source, trainable=False, head=True)
    logps = token_outputs(backbone, "policy", groups, engine, lambda v, b: v.logps(b))
    values = token_outputs(backbone, "value", groups, engine, lambda v, b: v.values(b))
    with torch.no_grad(), backbone.view("reward") as view:
        scores = score_groups(view, groups, engine.token_budget, engine.workers().device)
    for parts in zip(logps, values, scores[:, None], strict=True):
        record.losses += [x for part in parts for x in part.tolist()]
    fixed = {
        "prompts": [prompt for prompt, completions in given for _ in completions],
        "completions": [c for _, completions in given for c in completions],
    }
    (folder / "fixed.json").write_text(json.dumps(fixed), encoding="utf-8")
    record.ends.append(measure.time.perf_counter())
    record.write(answer, 1.0)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
