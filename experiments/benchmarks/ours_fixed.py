"""alignlab's numbers for completions that are given: what online works are compared by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from cases import Case, fixed_completions
from make_case import backbone_config
from ours_setup import engine_of, stage_of


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
