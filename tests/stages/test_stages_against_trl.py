"""Whole trainings of our stages against whole trainings of TRL 1.16's own trainers.

Both sides get the same weights, the same text (the token ids are compared before anything else),
the same rows in the same order and the same AdamW. They must then agree in the loss and the clipped
gradient of every step, in the weights after the last one, and in the log-probability and the
implicit reward of every completion under those weights.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from stage_lab import Caught, Lab, objective
from torch import Tensor
from trl_lab import (
    STEPS,
    Training,
    arguments,
    causal,
    in_order,
    make_base,
    text,
    tokenizer,
    train_ours,
    train_theirs,
    write_pairs,
)

from alignlab.data.group import TokenGroup
from alignlab.data.order import step_rows
from alignlab.objectives.pairwise import log_ratios
from alignlab.run import Run
from alignlab.stages.arrange import pair_logps
from alignlab.stages.grpo_work import GRPOWork
from alignlab.stages.reference import ReferenceLogps, completion_sums
from alignlab.stages.reward import scores_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SAME = 1e-5
Record = Callable[[str, object], None]
BATCH = 4


@dataclass
class World:
    """A base model and the runs that the methods start from; the reference is not the start."""

    lab: Lab
    base: Any
    sft: Run
    reference: Run
    pairs: Run
    empty: Run  # pairs without a prompt: a single BOS

    def inputs(self, **changed: Run) -> dict[str, Run]:
        return {
            "init": self.sft,
            "reference": self.reference,
            "annotations": self.pairs,
        } | changed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("trl")
    make_base(folder / "base")
    labs = []
    for name in ("pairs", "empty"):
        data = folder / f"{name}.jsonl"
        write_pairs(data, prompts=name == "pairs")
        overrides = (f"backbone.path={folder / 'base'}", "reward@gold=length")
        labs.append(Lab.make(folder / name, *overrides, data=data))
    lab = labs[0]
    sft = lab.run(lab.stage("sft", steps=4, batch=BATCH), {})
    reference = lab.run(lab.stage("sft", steps=2, batch=BATCH, seed=5), {})
    pairs, empty = (
        one.run(one.stage("annotate", validation_share=0.0, prompts=100), {"policy": sft})
        for one in labs
    )
    return World(lab, folder / "base", sft, reference, pairs, empty)


def largest(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def same_training(ours: Training, theirs: Training, record_property: Record) -> None:
    """Losses, gradient norms and gradients of all steps, and the last weights; all to 1e-5."""
    assert len(ours.losses) == len(theirs.losses) == len(ours.gradients) == len(theirs.gradients)
    assert largest(ours.start, theirs.start) == 0
    assert largest(ours.start, ours.end) > 1e-2  # it went somewhere
    loss = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    norm = max(abs(a - b) / max(b, 1) for a, b in zip(ours.norms, theirs.norms, strict=True))
    pairs = zip(ours.gradients, theirs.gradients, strict=True)
    gradient = max(largest(a, b) for a, b in pairs)
    weight = largest(ours.end, theirs.end)
    record_property(
        "measured",
        f"{len(ours.losses)} steps: loss {loss:.0e}, gradient {gradient:.0e}, weights {weight:.0e}",
    )
    assert loss < SAME
    assert norm < SAME
    assert gradient < SAME
    assert weight < SAME


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


def row_by_row(trainer: Any, rows: Any) -> list[dict[str, float]]:
    """What TRL logs about every row when it is alone in its batch."""
    found = []
    for row in rows:
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, trainer.data_collator([row]))
        trainer.log({"loss": float(loss)})
        found.append(trainer.state.log_history[-1])
    return found


@pytest.mark.conformance(
    "oracle", "SFT", "a whole training equals TRL's SFTTrainer: losses, gradients, weights"
)
def test_sft(world: World, caught: Caught, tmp_path: Any, record_property: Record) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    stage = world.lab.stage("sft", steps=STEPS, batch=BATCH)
    ours = train_ours(world.lab, stage, {}, caught)
    groups = [g for step in in_order(caught.work) for g in step]
    trainer = SFTTrainer(
        model=causal(world.base),
        args=SFTConfig(
            # Two micro-batches a step: the token mean is over both of them.
            **arguments(
                stage, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2
            ),
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": text(g.prompt), "completion": " " + text(g.completions[0])} for g in groups]
        ),
        processing_class=tokenizer(),
    )
    for row, group in zip(trainer.train_dataset, groups, strict=True):
        assert row["input_ids"] == [*group.prompt, *group.completions[0]]
        assert row["labels"] == [*[-100] * len(group.prompt), *group.completions[0]]
    same_training(ours, train_theirs(trainer), record_property)


def pair_rows(groups: list[TokenGroup]) -> list[dict[str, str]]:
    rows = []
    for group in groups:
        ((good, bad),) = group.verdict.pairs()
        chosen, rejected = (" " + text(group.completions[n]) for n in (good, bad))
        rows.append({"prompt": text(group.prompt), "chosen": chosen, "rejected": rejected})
    return rows


@dataclass(frozen=True)
class Method:
    """One of our objectives beside the TRL configuration that should be the same."""

    objective: Mapping[str, Any]
    trainer: str
    config: Mapping[str, Any]
    micro: int = 2  # pairs of a TRL micro-batch; the rest of the step is accumulated
    empty: bool = False  # train on pairs without a prompt
    per_token: bool = False  # TRL logs mean log-probs


PAIRWISE = {
    "DPO": Method(objective("dpo") | {"beta": 0.3}, "DPO", {"loss_type": ["sigmoid"], "beta": 0.3}),
    "DPO hinge": Method(
        objective("hinge") | {"beta": 0.2}, "DPO", {"loss_type": ["hinge"], "beta": 0.2}
    ),
    "IPO (mean)": Method(
        objective("ipo") | {"tau": 0.4}, "DPO", {"loss_type": ["ipo"], "beta": 0.4}
    ),
    "rDPO": Method(
        objective("rdpo") | {"beta": 0.3, "label_smoothing": 0.2},
        "DPO",
        {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
    ),
    "DPO length-normalised": Method(
        objective("dpo_norm") | {"beta": 2.0}, "DPO", {"loss_type": ["sigmoid_norm"], "beta": 2.0}
    ),
    # TRL's sigmoid ignores label_smoothing. Its aot does not, and sorting one pair is no sorting.
    "cDPO": Method(
        objective("cdpo") | {"beta": 0.3, "label_smoothing": 0.2},
        "DPO",
        {"loss_type": ["aot"], "beta": 0.3, "label_smoothing": 0.2},
        micro=1,
    ),
    # One pair per micro-batch (TRL pools the likelihood over its tokens) and a prompt of BOS alone
    # (TRL's likelihood term is over the prompt too, whose first token is never predicted).
    "ORPO": Method(
        objective("orpo") | {"weight": 0.3},
        "ORPO",
        {"beta": 0.3},
        micro=1,
        empty=True,
        per_token=True,
    ),
    "SimPO": Method(
        objective("simpo") | {"beta": 2.0, "gamma_beta_ratio": 0.75},
        "CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.5, "cpo_alpha": 0.0},
        per_token=True,
    ),
    "SLiC-HF (calibration term)": Method(
        objective("slic") | {"delta": 1.0, "weight": 0.0},
        "CPO",
        {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0},
    ),
}


def pair_trainer(world: World, method: Method, stage: Any, groups: Any, folder: Any) -> Any:
    from datasets import Dataset

    config, trainer = pair_classes(method.trainer)
    given = {"ref_model": causal(world.reference.model_dir)} if method.trainer == "DPO" else {}
    return trainer(
        model=causal(world.sft.model_dir),
        args=config(
            **arguments(
                stage,
                folder,
                per_device_train_batch_size=method.micro,
                gradient_accumulation_steps=BATCH // method.micro,
            ),
            disable_dropout=True,
            **method.config,
        ),
        train_dataset=Dataset.from_list(pair_rows(groups)),
        processing_class=tokenizer(),
        **given,
    )


def pair_classes(name: str) -> tuple[Any, Any]:
    if name == "DPO":
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer
    module = importlib.import_module(f"trl.experimental.{name.lower()}")
    return getattr(module, f"{name}Config"), getattr(module, f"{name}Trainer")


def trl_ids(row: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """Prompt, chosen and rejected ids of a row as DPO's or the older trainers have tokenised it."""
    if "chosen_ids" in row:
        return row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]
    prompt = row["prompt_input_ids"]
    return (
        prompt,
        *(row[f"{side}_input_ids"][len(prompt) :] for side in ("chosen", "rejected")),
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.conformance(
                "oracle",
                name,
                f"a whole training equals TRL's {method.trainer}Trainer: losses, gradients and "
                "weights of every step, log-probs and implicit rewards of every completion",
            ),
        )
        for name, method in PAIRWISE.items()
    ],
)
def test_pairwise(
    world: World,
    caught: Caught,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    name: str,
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    method = PAIRWISE[name]
    stage = world.lab.stage("dpo", steps=STEPS, batch=BATCH, objective=dict(method.objective))
    inputs = world.inputs(annotations=world.empty if method.empty else world.pairs)
    ours = train_ours(world.lab, stage, inputs, caught)
    groups = [g for step in in_order(caught.work) for g in step]
    trainer = pair_trainer(world, method, stage, groups, tmp_path)
    beta = trainer.beta
    for row, group in zip(trainer.train_dataset, groups, strict=True):
        ids = (group.prompt, *group.completions)
        assert [list(x) for x in trl_ids(row)] == [x.tolist() for x in ids]
    theirs = train_theirs(trainer)
    same_training(ours, theirs, record_property)
    logs = row_by_row(trainer, trainer.train_dataset)
    found = [(log["logps/chosen"], log["logps/rejected"]) for log in logs]
    sums = completion_sums(caught.backbone, "policy", groups, world.lab.engine).detach()
    lengths = torch.tensor([[len(c) for c in group.completions] for group in groups])
    ours_logps = sums.view(-1, 2) / (lengths if method.per_token else 1)
    close(ours_logps, torch.tensor(found))

    if method.trainer == "DPO":
        reference = ReferenceLogps(
            caught.backbone, world.reference, world.lab.engine, world.lab.store.cache
        )
        reference.prepare(groups)
        n = lengths.flatten()
        before = pair_logps(reference.sums(groups), n, groups)
        rewards = [beta * ratio for ratio in log_ratios(pair_logps(sums, n, groups), before)]
    else:  # without a reference TRL logs β · log-prob as the reward
        rewards = beta * ours_logps.T
    found = [(log["rewards/chosen"], log["rewards/rejected"]) for log in logs]
    close(torch.stack(list(rewards), 1), torch.tensor(found))


@pytest.mark.parametrize("change", ["beta", "order", "reference"])
def test_the_comparison_would_notice(
    world: World, caught: Caught, tmp_path: Any, record_property: Record, change: str
) -> None:
    """One per cent of β, another order of the rows, the policy's start as the reference."""
    method = PAIRWISE["DPO"]
    common = {"steps": STEPS, "batch": BATCH}
    right = world.lab.stage("dpo", **common, objective=dict(method.objective))
    if change == "beta":
        chosen = {**method.objective, "beta": method.objective["beta"] * 1.01}
        wrong = world.lab.stage("dpo", **common, objective=chosen)
    else:
        wrong = replace(right, seed=right.seed + (change == "order"))
    reference = world.sft if change == "reference" else world.reference
    ours = train_ours(world.lab, wrong, world.inputs(reference=reference), caught)
    work = replace(caught.work, seed=right.seed)
    groups = [g for step in in_order(work) for g in step]
    theirs = train_theirs(pair_trainer(world, method, right, groups, tmp_path))
    assert largest(ours.end, theirs.end) > 1e-4
    with pytest.raises(AssertionError):
        same_training(ours, theirs, record_property)


def kto_rows(groups: list[TokenGroup]) -> list[dict[str, Any]]:
    """A step of KTO in the order in which TRL's mismatched completions are ours.

    TRL gives every row the completion of the row before it, we give a prompt the completions of the
    next prompt. So the prompts stand backwards here, with all first completions and then all
    second ones.
    """
    return [
        {
            "prompt": text(group.prompt),
            "completion": " " + text(group.completions[n]),
            "label": bool(group.verdict.desirable()[n]),
        }
        for n in range(len(groups[0].completions))
        for group in reversed(groups)
    ]


@pytest.fixture(scope="module")
def thumbs(world: World) -> Run:
    """One completion per prompt, thumbs up and down in no order."""
    run = world.lab.new_run("annotate")
    run.path.mkdir(parents=True)
    ups = [True, False, False, True, True, True, False, True, False]
    with (run.path / "annotations.jsonl").open("w") as file:
        for n, line in enumerate((world.pairs.path / "annotations.jsonl").open()):
            row = json.loads(line)
            for name in ("completions", "completion_ids", "truncated"):
                row[name] = row[name][n % 2 : n % 2 + 1]
            up = ups[n % len(ups)]
            row["verdict"] = {"kind": "thumbs", "ranks": [], "scores": [], "thumbs": [up]}
            file.write(json.dumps(row) + "\n")
    return run


@pytest.mark.conformance(
    "oracle",
    "KTO",
    "a whole training equals TRL's KTOTrainer on rows put in its order: losses, KL point, gradients"
    " and weights of every step, log-probs and implicit rewards of every completion",
)
@pytest.mark.parametrize("data", ["pairs", "thumbs"])
def test_kto(
    world: World, thumbs: Run, caught: Caught, tmp_path: Any, record_property: Record, data: str
) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    weighting = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    chosen = objective("kto") | weighting
    stage = world.lab.stage("dpo", steps=STEPS, batch=BATCH, objective=chosen)
    annotations = world.pairs if data == "pairs" else thumbs
    ours = train_ours(world.lab, stage, world.inputs(annotations=annotations), caught)
    rows = [row for step in in_order(caught.work) for row in kto_rows(step)]
    per_step = len(rows) // STEPS
    trainer = KTOTrainer(
        model=causal(world.sft.model_dir),
        ref_model=causal(world.reference.model_dir),
        args=KTOConfig(
            **arguments(stage, tmp_path, per_device_train_batch_size=per_step), **weighting
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    theirs = train_theirs(trainer)
    same_training(ours, theirs, record_property)
    points = [line["kl_point"] for line in ours.logs]
    assert points == pytest.approx([line["kl"] for line in theirs.logs], abs=SAME)
    assert max(points) > 0.01  # not all clamped

    groups = [g for step in in_order(caught.work) for g in step]
    engine = world.lab.engine
    caught.backbone.add("reference", source=world.reference.model_dir, trainable=False)
    with torch.no_grad():
        policy = completion_sums(caught.backbone, "policy", groups, engine)
        reference = completion_sums(caught.backbone, "reference", groups, engine)
    known = {
        (tuple(g.prompt), tuple(c)): (p, p - r)
        for (g, c), p, r in zip(
            ((g, c) for g in groups for c in g.completions), policy, reference, strict=True
        )
    }
    for row, log in zip(
        trainer.train_dataset, row_by_row(trainer, trainer.train_dataset), strict=True
    ):
        logp, ratio = known[tuple(row["prompt_ids"]), tuple(row["completion_ids"])]
        side = "chosen" if row["label"] else "rejected"
        close(logp, torch.tensor(log[f"logps/{side}"]))
        close(0.2 * ratio, torch.tensor(log[f"rewards/{side}"]))


@pytest.mark.conformance(
    "oracle",
    "reward model (Bradley–Terry)",
    "a whole training equals TRL's RewardTrainer: losses, gradients, weights, all rewards",
)
def test_reward(world: World, caught: Caught, tmp_path: Any, record_property: Record) -> None:
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    stage = world.lab.stage(
        "reward", steps=STEPS, batch=BATCH, normalize=False, objective__centering=0.0
    )
    inputs = {name: world.inputs()[name] for name in ("init", "annotations")}
    ours = train_ours(world.lab, stage, inputs, caught, view="reward")
    groups = [g for step in in_order(caught.work) for g in step]
    model = AutoModelForSequenceClassification.from_pretrained(
        world.sft.model_dir, num_labels=1, dtype=torch.float32
    )
    renamed(ours)
    with torch.no_grad():
        model.score.weight.copy_(ours.start["score.weight"])
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            **arguments(
                stage, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2
            ),
            center_rewards_coefficient=None,
        ),
        train_dataset=Dataset.from_list(pair_rows(groups)),
        processing_class=tokenizer(),
    )
    for row, group in zip(trainer.train_dataset, groups, strict=True):
        assert row["chosen_ids"] == [*group.prompt, *group.completions[0]]
        assert row["rejected_ids"] == [*group.prompt, *group.completions[1]]
    theirs = train_theirs(trainer)
    same_training(ours, theirs, record_property)
    with torch.no_grad():
        scores = scores_of(caught.backbone, "reward", groups, world.lab.engine).view(-1, 2)
    logs = row_by_row(trainer, trainer.train_dataset)
    found = [
        (log["mean_reward"] + log["margin"] / 2, log["mean_reward"] - log["margin"] / 2)
        for log in logs
    ]
    close(scores, torch.tensor(found))


def renamed(ours: Training) -> None:
    """Our reward view's names as TRL has them, without what TRL's model does not have.

    That is the language-model head, which a reward view carries along untouched, and the bias of
    our scalar head, which no difference of two rewards can see.
    """
    for weights in (ours.start, ours.end, *ours.gradients):
        weights["score.weight"] = weights.pop("head.linear.weight")
        assert abs(float(weights.pop("head.linear.bias"))) < 1e-6
        weights.pop("lm_head.weight", None)


@dataclass(frozen=True)
class Online:
    """A configuration of our GRPO stage beside the TRL configuration that should be the same."""

    stage: Mapping[str, Any]
    config: Mapping[str, Any]
    updates: int = 2  # optimizer steps per iteration
    scale: float = 1.0  # our loss over TRL's


LONGEST = 8
TOKEN = {"normalizer": "token"}
NO_KL = {"kl_coef": 0.0}
ONLINE = {
    "GRPO (grpo)": Online({"kl_coef": 0.2}, {"loss_type": "grpo", "beta": 0.2}),
    "GRPO (bnpo)": Online(TOKEN | {"kl_coef": 0.2}, {"loss_type": "bnpo", "beta": 0.2}),
    # TRL counts the tokens of the generation batch, we count those of the optimizer step.
    "GRPO (dapo)": Online(
        TOKEN | NO_KL | {"clip_high": 0.28},
        {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
        updates=1,
    ),
    "GRPO (dr_grpo)": Online(
        NO_KL | {"normalizer": "constant", "advantage": "group_mean"},
        {"loss_type": "dr_grpo", "beta": 0.0, "scale_rewards": "none"},
    ),
    # Our normaliser divides by the longest completion too, a constant.
    "RLOO": Online(
        {
            "normalizer": "constant",
            "advantage": "leave_one_out",
            "ratio": "sequence",
            "kl_place": "reward",
            "kl_coef": 0.2,
        },
        {"beta": 0.2},
        scale=1 / LONGEST,
    ),
}


@dataclass
class Rollouts:
    """The rollouts of our stage, iteration by iteration, to be given to TRL."""

    experiences: list[Any]
    orders: list[list[int]]  # row of the iteration (prompt-major) for each row of its updates
    at: int = -1

    def rows(self, experience: Any) -> list[tuple[list[int], list[int]]]:
        return [(g.prompt.tolist(), c.tolist()) for g in experience.groups for c in g.completions]

    def generate(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
        """What ``model.generate`` would return: prompts, completions, padding after EOS."""
        self.at += 1
        rows = self.rows(self.experiences[self.at])
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        assert prompts == [prompt for prompt, _ in rows]
        longest = max(len(completion) for _, completion in rows)
        padded = [completion + [0] * (longest - len(completion)) for _, completion in rows]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    def reward(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        experience = self.experiences[self.at]
        assert completion_ids == [completion for _, completion in self.rows(experience)]
        return experience.scores.tolist()

    def arranged(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """In place of TRL's shuffle: the rows of our first update, of our second, …"""
        order = torch.tensor(self.orders[self.at])
        return {
            name: value[order] if isinstance(value, Tensor) and value.ndim else value
            for name, value in batch.items()
        }


def rollouts_of(stage: Any, experiences: list[Any]) -> Rollouts:
    orders = []
    for iteration in range(len(experiences)):
        size = stage.rollout_batch
        groups = step_rows(0, size, size, stage.seed * 1_000_003 + iteration)
        updates = [groups[index :: stage.updates] for index in range(stage.updates)]
        orders.append(
            [g * stage.group + k for part in updates for g in part for k in range(stage.group)]
        )
    return Rollouts(experiences, orders)


@pytest.fixture(scope="module")
def reward(world: World) -> Run:
    stage = world.lab.stage("reward", steps=3, batch=BATCH)
    inputs = {name: world.inputs()[name] for name in ("init", "annotations")}
    return world.lab.run(stage, inputs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.conformance(
                "oracle",
                name,
                "a whole training equals TRL's trainer given our rollouts: advantages, log-probs,"
                " losses, gradients and weights of every step",
            ),
        )
        for name in ONLINE
    ],
)
def test_online(
    world: World,
    reward: Run,
    caught: Caught,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    name: str,
) -> None:
    online = ONLINE[name]
    seen: list[dict[str, Tensor]] = []
    ours, theirs, rollouts = train_online(
        world, reward, online, caught, tmp_path, monkeypatch, seen
    )
    experiences = rollouts.experiences
    for line, gradients in zip(ours.logs, ours.gradients, strict=True):
        line["loss"] /= online.scale
        line["grad_norm"] /= online.scale
        for gradient in gradients.values():
            gradient /= online.scale
    same_training(ours, theirs, record_property)
    share = [line["zero_std_share"] for line in ours.logs if "zero_std_share" in line]
    for step, (mine, other) in enumerate(zip(ours.logs, theirs.logs, strict=True)):
        # Groups of equal rewards stay out of our batch, and so out of its metrics, where they have
        # no gradient; TRL counts their tokens.
        if share[step // online.updates] == 0:
            assert mine["clip_fraction"] == pytest.approx(other["clip_ratio/region_mean"], abs=SAME)
    assert online.updates == 1 or max(line["clip_fraction"] for line in ours.logs) > 0.1

    per_update = len(rollouts.orders[0]) // online.updates
    for step, batch in enumerate(seen):
        iteration, index = divmod(step, online.updates)
        experience = experiences[iteration]
        rows = rollouts.orders[iteration][index * per_update : (index + 1) * per_update]
        mask = batch["completion_mask"].bool()
        gains = torch.stack([experience.tokens["advantages"][row][0] for row in rows])
        close(gains, batch["advantages"])
        old = [experience.old[row] for row in rows]
        if batch.get("old_per_token_logps") is not None:
            close(torch.cat(old), batch["old_per_token_logps"][mask])
        if "old_logps" in batch:
            close(torch.stack([x.sum() for x in old]), batch["old_logps"])
        if batch.get("ref_per_token_logps") is not None:
            reference = torch.cat([experience.reference[row] for row in rows])
            close(reference, batch["ref_per_token_logps"][mask])


def train_online(
    world: World,
    reward: Run,
    online: Online,
    caught: Caught,
    folder: Any,
    monkeypatch: pytest.MonkeyPatch,
    seen: list[dict[str, Tensor]] | None = None,
) -> tuple[Training, Training, Rollouts]:
    """Train both; ``seen`` receives the batches that TRL computed its losses from."""
    experiences: list[Any] = []
    collect = GRPOWork.collect

    def keeping(work: GRPOWork, iteration: int) -> Any:
        experiences.append(collect(work, iteration))
        return experiences[-1]

    monkeypatch.setattr(GRPOWork, "collect", keeping)
    stage = world.lab.stage(
        "grpo",
        iterations=6 // online.updates,
        updates=online.updates,
        rollout_batch=BATCH,
        group=3,
        max_completion=LONGEST,
        missing_eos_score=None,
        optimizer__learning_rate=3e-2,  # so that the second update meets the clip
        sampling__max_new_tokens=LONGEST,
        sampling__temperature=1.3,
        **online.stage,
    )
    inputs = {"init": world.sft, "reference": world.sft, "reward": reward}
    ours = train_ours(world.lab, stage, inputs, caught)
    rollouts = rollouts_of(stage, experiences)
    trainer = online_trainer(world, online, stage, rollouts, folder, monkeypatch)
    compute_loss = trainer.compute_loss

    def looking(model: Any, batch: dict[str, Tensor], **more: Any) -> Tensor:
        if seen is not None:
            seen.append(batch)
        return compute_loss(model, batch, **more)

    trainer.compute_loss = looking
    return ours, train_theirs(trainer), rollouts


def online_trainer(
    world: World,
    online: Online,
    stage: Any,
    rollouts: Rollouts,
    folder: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """TRL's trainer over our rollouts: only ``generate``, the scores and the shuffle are given."""
    import trl
    from datasets import Dataset

    kind = "GRPO" if "loss_type" in online.config else "RLOO"
    common = arguments(
        stage,
        folder,
        steps=stage.iterations * stage.updates,
        per_device_train_batch_size=stage.rollout_batch * stage.group // stage.updates,
    )
    # Adam with gradients g·s and eps·s moves as with g and eps: our constant goes in there.
    common["adam_epsilon"] /= online.scale
    common["max_grad_norm"] /= online.scale
    if kind == "GRPO":
        common["use_bias_correction_kl"] = False
    trainer = getattr(trl, f"{kind}Trainer")(
        model=causal(world.sft.model_dir),
        reward_funcs=rollouts.reward,
        args=getattr(trl, f"{kind}Config")(
            **common,
            steps_per_generation=stage.updates,
            num_generations=stage.group,
            max_completion_length=LONGEST,
            temperature=stage.sampling.temperature,
            shuffle_dataset=False,
            **online.config,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": text(g.prompt)} for e in rollouts.experiences for g in e.groups]
        ),
        processing_class=tokenizer(),
    )
    trainer.model.generate = rollouts.generate
    module = f"trl.trainer.{kind.lower()}_trainer.shuffle_sequence_dict"
    monkeypatch.setattr(module, rollouts.arranged)
    return trainer


# Where a whole training cannot agree: what TRL does otherwise, and by how much.


@pytest.mark.difference(
    method="GRPO (dapo)",
    point="several optimizer steps per rollout: which tokens are counted",
    equation="DAPO, 2503.14476 eq. 8: Σ over tokens / their number",
    ours="tokens of the optimizer step",
    trl="tokens of the generation batch / optimizer steps in it",
    halos="–",
    original="the paper's equation: tokens of one prompt's group",
)
def test_dapo_counts_the_tokens_of_the_generation_batch(
    world: World,
    reward: Run,
    caught: Caught,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    online = replace(ONLINE["GRPO (dapo)"], updates=2)
    ours, theirs, rollouts = train_online(world, reward, online, caught, tmp_path, monkeypatch)
    lengths = rollouts.experiences[0].lengths
    first = int(lengths[rollouts.orders[0][: len(lengths) // 2]].sum())
    counted = int(lengths.sum()) / 2
    assert abs(counted / first - 1) > 0.05
    # Before anything has moved the one loss is the other times a ratio of token counts.
    assert theirs.losses[0] * counted == pytest.approx(ours.losses[0] * first, rel=SAME)
    assert theirs.norms[0] * counted == pytest.approx(ours.norms[0] * first, rel=SAME)
    assert largest(ours.end, theirs.end) > 1e-4


@pytest.mark.difference(
    method="every method",
    point="learning rate of the first warm-up step",
    equation="–",
    ours="peak / warm-up steps: the first step learns",
    trl="0: the first step (of transformers' schedule) does nothing",
    halos="–",
    original="DPO's code: peak · min(1, (step + 1) / (warm-up + 1)): the first step learns",
)
def test_the_first_step_of_a_warm_up(world: World, caught: Caught, tmp_path: Any) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    constant = world.lab.stage("sft", steps=4, batch=BATCH)
    stage = replace(constant, optimizer=replace(constant.optimizer, warmup=2))
    ours = train_ours(world.lab, stage, {}, caught)
    groups = [g for step in in_order(caught.work, 4) for g in step]
    rows = [{"prompt": text(g.prompt), "completion": " " + text(g.completions[0])} for g in groups]
    given = arguments(constant, tmp_path, steps=4, per_device_train_batch_size=BATCH)
    given |= {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    trainer = SFTTrainer(
        model=causal(world.base),
        args=SFTConfig(**given, completion_only_loss=True),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    theirs = train_theirs(trainer)
    peak = stage.optimizer.learning_rate
    assert [line["learning_rate"] / peak for line in ours.logs] == [0.5, 1.0, 1.0, 1.0]
    assert [line["learning_rate"] / peak for line in theirs.logs] == [0.0, 0.5, 1.0, 1.0]
    assert largest(ours.end, theirs.end) > 1e-3


@pytest.mark.difference(
    method="reward model (Bradley–Terry)",
    point="bias of the scalar head, with centering",
    equation="2312.09244 eq. 2: + c·(r_w + r_l)²; the origin of r is free otherwise",
    ours="w·h + b: b moves, and the reward run is normalised to mean 0, deviation 1",
    trl="w·h (no bias): the body has to move the origin",
    halos="a head of two logits, the second is the reward",
    original="Ziegler 2019, Stiennon 2020: w·h + b, then gain and bias",
)
def test_centering_moves_the_bias_of_our_reward_head(
    world: World, caught: Caught, tmp_path: Any
) -> None:
    from transformers import AutoModelForSequenceClassification

    inputs = {name: world.inputs()[name] for name in ("init", "annotations")}
    common = {"steps": STEPS, "batch": BATCH, "normalize": False}
    biases = []
    for centering in (0.0, 0.1):
        stage = world.lab.stage("reward", **common, objective__centering=centering)
        biases.append(
            train_ours(world.lab, stage, inputs, caught, "reward").end["head.linear.bias"]
        )
    assert abs(float(biases[0])) < 1e-6
    assert abs(float(biases[1])) > 1e-3
    theirs = AutoModelForSequenceClassification.from_pretrained(world.sft.model_dir, num_labels=1)
    assert [name for name, _ in theirs.score.named_parameters()] == ["weight"]
