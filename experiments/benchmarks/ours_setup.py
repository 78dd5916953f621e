"""alignlab's stage of a case, from conf/ as the command line makes it, and its engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import MAX_COMPLETION, MAX_PROMPT, ONLINE, Case

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


def engine_of(job: Mapping[str, Any]) -> Any:
    """The engine as conf/engine/auto.yaml has it, quiet and without checkpoints."""
    from alignlab.engine.distributed import Engine

    return Engine(
        device="auto",
        token_budget=job["options"].get("token_budget", 4096),
        threads=job["threads"],
        data_workers=0,
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
            f"backbone.layout={job['layout']}",
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
    return replace(stage, **changed)
