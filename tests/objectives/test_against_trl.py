"""Our objectives against TRL's own trainers, on the very tokens that TRL feeds its model.

TRL computes its loss from a batch of its own collator. The test reads the token ids and masks of
that batch, computes log-probs from a copy of the model in the plainest way (full forward,
log_softmax, gather, sum), and hands them to our objective. Both must give the same number, and the
same gradient in every weight. (tests/stages/test_stages_against_trl.py compares whole trainings.)
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from alignlab.models.logps import head_of
from alignlab.models.smoothing import token_logps_mean
from alignlab.objectives import (
    advantage,
    anchored,
    divergence,
    groupwise,
    likelihood,
    links,
    pairwise,
    penalized,
    policy,
    ranking,
    unpaired,
)
from alignlab.tensors import GroupLogps, GroupScores, PairLogps, SingleLogps, TokenLogps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]
WORDS = ["<pad>", "<bos>", "<eos>", *[f"w{n}" for n in range(29)]]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

ROWS = [  # prompt, chosen, rejected: lengths differ within and between pairs
    ("w0 w1 w2", " w3 w4 w5 w6", " w7 w8"),
    ("w9", " w1", " w2 w3 w4 w5 w6 w7"),
    ("w5 w6 w7 w8 w9", " w10 w11", " w12 w13"),
    ("w1 w1", " w14 w15 w16", " w17"),
]


@functools.cache
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: n for n, w in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def llama(seed: int, kind: str = "LlamaForCausalLM"):
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,  # far from uniform, so that a wrong formula shows
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
    )
    return getattr(transformers, kind)(config).eval()


def token_logps(model, input_ids, attention_mask, completion_mask) -> torch.Tensor:
    """(B, T) log-probs of completion tokens, 0 elsewhere: full forward, log_softmax, gather."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
    predicted = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(predicted * completion_mask[:, 1:], (1, 0))


def same(ours, trained, theirs, model, record_property) -> None:
    """One number, and the gradient that it has in every weight of two copies of a model."""
    torch.testing.assert_close(ours, theirs, **TOLERANCE)
    ours.backward()
    theirs.backward()
    largest, size, other = 0.0, 0.0, dict(model.named_parameters())
    for name, parameter in trained.named_parameters():
        torch.testing.assert_close(parameter.grad, other[name].grad, **TOLERANCE)
        largest = max(largest, float((parameter.grad - other[name].grad).abs().max()))
        size = max(size, float(parameter.grad.abs().max()))
    assert size > 1e-3  # there was a gradient to compare
    trained.zero_grad()
    model.zero_grad()
    loss = abs(float(ours - theirs))
    record_property("measured", f"loss {loss:.0e}, gradient {largest:.0e} of {size:.1g}")


def oracle(subject: str, claim: str):
    return pytest.mark.conformance("oracle", subject, claim)


def options(path, **more) -> dict:
    return {
        "output_dir": str(path),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "per_device_train_batch_size": 2,
        **more,
    }


def preference_dataset():
    from datasets import Dataset

    return Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ROWS])


def pair_logps(model, batch) -> PairLogps:
    """TRL's DPO batch is [all chosen, all rejected]."""
    mask = batch["completion_mask"]
    sums = token_logps(model, batch["input_ids"], batch["attention_mask"], mask).sum(1)
    return PairLogps(*sums.chunk(2), *mask.sum(1).chunk(2))


@oracle("SFT", "loss and gradient in every weight equal SFTTrainer's")
def test_sft_trainer(tmp_path, record_property):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trained = llama(0)
    trainer = SFTTrainer(
        model=copy.deepcopy(trained),
        args=SFTConfig(**options(tmp_path), completion_only_loss=True),
        train_dataset=Dataset.from_list([{"prompt": p, "completion": c} for p, c, _ in ROWS]),
        processing_class=tokenizer(),
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    mask = (batch["labels"] != -100).long()
    logps = token_logps(trained, batch["input_ids"], (batch["input_ids"] != 0).long(), mask)
    theirs = trainer.compute_loss(trainer.model, batch)
    ours = likelihood.nll(logps[mask.bool()]).mean()
    same(ours, trained, theirs, trainer.model, record_property)


@oracle("SFT", "with smoothed labels the loss and its gradient are torch's cross_entropy's")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_label_smoothing(smoothing, record_property):
    ours, theirs = llama(0), llama(0)
    ids = torch.tensor([[1, 5, 9, 3, 30, 2], [1, 7, 7, 11, 4, 2]])
    targets = ids[:, 1:].flatten()
    logits = theirs(ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    states = ours(ids, output_hidden_states=True).hidden_states[-1][:, :-1].flatten(0, 1)
    logps, mean = token_logps_mean(states, head_of(ours), targets)
    found = likelihood.smoothed_nll(logps, mean, label_smoothing=smoothing).mean()
    same(found, ours, expected, theirs, record_property)


def both_thumbs(policy: PairLogps, reference: PairLogps) -> torch.Tensor:
    """BCO's losses of the two answers of a pair, as a thumb up and a thumb down, added."""

    def singles(logps: PairLogps) -> SingleLogps:
        up = torch.ones_like(logps.chosen, dtype=torch.bool)
        return SingleLogps(
            torch.cat([logps.chosen, logps.rejected]),
            torch.cat([logps.chosen_length, logps.rejected_length]),
            torch.cat([up, ~up]),
        )

    found = unpaired.bco(singles(policy), singles(reference), torch.tensor(0.0), beta=0.3)
    return found.view(2, -1).sum(0)


def best_of_two(policy: PairLogps, reference: PairLogps) -> torch.Tensor:
    """NCA of two answers whose scores leave no doubt."""

    def groups(logps: PairLogps) -> GroupLogps:
        every = torch.arange(len(logps.chosen))
        return GroupLogps(
            completion=torch.stack([logps.chosen, logps.rejected], 1).flatten(),
            length=torch.stack([logps.chosen_length, logps.rejected_length], 1).flatten(),
            utility=torch.tensor([1.0, 0.0]).repeat(len(every)),
            group=every.repeat_interleave(2),
            better=2 * every,
            worse=2 * every + 1,
            pair_group=every,
            groups=len(every),
        )

    return groupwise.nca(groups(policy), groups(reference), beta=0.3, alpha=1e-3)


PAIRWISE = {
    "DPO": (
        {"loss_type": ["sigmoid"], "beta": 0.3},
        functools.partial(pairwise.dpo, beta=0.3, label_smoothing=0.0),
    ),
    "DPO hinge": (
        {"loss_type": ["hinge"], "beta": 0.2},
        functools.partial(pairwise.hinge, beta=0.2),
    ),
    "IPO (mean)": (
        {"loss_type": ["ipo"], "beta": 0.4},
        functools.partial(pairwise.ipo, tau=0.4, normalize="mean"),
    ),
    "rDPO": (
        {"loss_type": ["robust"], "beta": 0.3, "label_smoothing": 0.2},
        functools.partial(pairwise.robust_dpo, beta=0.3, label_smoothing=0.2),
    ),
    "DPO length-normalised": (
        {"loss_type": ["sigmoid_norm"], "beta": 2.0},
        functools.partial(pairwise.dpo_norm, beta=2.0),
    ),
    "APO-zero": (
        {"loss_type": ["apo_zero"], "beta": 0.3},
        functools.partial(anchored.apo_zero, beta=0.3),
    ),
    "APO-down": (
        {"loss_type": ["apo_down"], "beta": 0.3},
        functools.partial(anchored.apo_down, beta=0.3),
    ),
    "SPPO (hard)": (
        {"loss_type": ["sppo_hard"], "beta": 0.2},
        functools.partial(anchored.sppo, beta=0.2),
    ),
    "EXO (pairs)": (
        {"loss_type": ["exo_pair"], "beta": 0.3, "label_smoothing": 0.01},
        functools.partial(links.exo_pair, beta=0.3, label_smoothing=0.01),
    ),
    "DiscoPOP": (
        {"loss_type": ["discopop"], "beta": 0.1, "discopop_tau": 0.3},
        functools.partial(links.discopop, beta=0.1, tau=0.3),
    ),
    "f-DPO (forward KL)": (
        {"loss_type": ["sigmoid"], "beta": 0.01, "f_divergence_type": "forward_kl"},
        functools.partial(links.f_dpo, beta=0.01, divergence="forward_kl"),
    ),
    "f-DPO (Jensen–Shannon)": (
        {"loss_type": ["sigmoid"], "beta": 0.5, "f_divergence_type": "js_divergence"},
        functools.partial(links.f_dpo, beta=0.5, divergence="jensen_shannon"),
    ),
    "BCO (pairs, no shift)": ({"loss_type": ["bco_pair"], "beta": 0.3}, both_thumbs),
    "NCA (pairs)": ({"loss_type": ["nca_pair"], "beta": 0.3}, best_of_two),
}


def dpo_trainer(tmp_path, trained, reference, **config):
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=copy.deepcopy(trained),
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(**options(tmp_path, **config)),
        train_dataset=preference_dataset(),
        processing_class=tokenizer(),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=oracle(
                name, "loss of every pair and gradient in every weight equal DPOTrainer's"
            ),
        )
        for name in PAIRWISE
    ],
)
def test_dpo_trainer(tmp_path, record_property, name):
    config, objective = PAIRWISE[name]
    trained, reference = llama(0), llama(1)
    trainer = dpo_trainer(tmp_path, trained, reference, **config)
    losses = []
    for row in list(trainer.train_dataset):
        batch = trainer.data_collator([row])
        theirs = trainer.compute_loss(trainer.model, batch)
        ours = objective(pair_logps(trained, batch), pair_logps(reference, batch))
        torch.testing.assert_close(ours, theirs.reshape(1), **TOLERANCE)
        losses.append(float(ours))
    assert torch.tensor(losses).std() > 0.01  # the pairs do differ
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, batch)
    ours = objective(pair_logps(trained, batch), pair_logps(reference, batch)).mean()
    torch.testing.assert_close(float(ours), sum(losses) / len(losses), **TOLERANCE)
    same(ours, trained, theirs, trainer.model, record_property)


@pytest.mark.parametrize(
    ("chosen", "seeds"),
    [([0, 5, 6, 3], (0, 1)), ([0, 1], (1, 0)), ([4, 5, 6], (0, 1))],
    ids=["mixed", "up, clamped", "down"],
)
@oracle("KTO", "loss and gradient in every weight equal KTOTrainer's, given its mismatched pairs")
def test_kto_trainer(tmp_path, record_property, chosen, seeds):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    examples = [{"prompt": p, "completion": c, "label": True} for p, c, _ in ROWS]
    examples += [{"prompt": p, "completion": r, "label": False} for p, _, r in ROWS]
    examples = [examples[n] for n in chosen]
    trained, reference = (llama(seed) for seed in seeds)
    trainer = KTOTrainer(
        model=copy.deepcopy(trained),
        ref_model=copy.deepcopy(reference),
        args=KTOConfig(
            **options(
                tmp_path,
                per_device_train_batch_size=len(examples),
                beta=0.2,
                desirable_weight=1.3,
                undesirable_weight=0.8,
            )
        ),
        train_dataset=Dataset.from_list(examples),
        processing_class=tokenizer(),
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, batch)

    def sums(model, prefix=""):
        parts = [batch[f"{prefix}{k}"] for k in ("input_ids", "attention_mask", "completion_mask")]
        return token_logps(model, *parts).sum(1)

    thumbs = torch.as_tensor(batch["label"], dtype=torch.bool)
    lengths = batch["completion_mask"].sum(1)
    z = unpaired.kl_point(sums(trained, "KL_") - sums(reference, "KL_"))
    ours = unpaired.kto(
        SingleLogps(sums(trained), lengths, thumbs),
        SingleLogps(sums(reference), lengths, thumbs),
        z,
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.8,
    )
    same(ours.mean(), trained, theirs, trainer.model, record_property)
    assert (z > 0) == (seeds == (0, 1))  # the clamp is at work in one of the cases
    # TRL's mismatched completions are the same batch's, shifted by one
    own = [
        r[m.bool()].tolist()
        for r, m in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    other = [
        r[m.bool()].tolist()
        for r, m in zip(batch["KL_input_ids"], batch["KL_completion_mask"], strict=True)
    ]
    assert other == own[-1:] + own[:-1]


def concatenated(chosen: list[int], rejected: list[int]) -> dict:
    """A one-pair batch of TRL's older trainers, with a prompt of one token (BOS)."""
    batch = {"prompt_input_ids": torch.tensor([[1]]), "prompt_attention_mask": torch.ones(1, 1)}
    for name, ids in (("chosen", chosen), ("rejected", rejected)):
        full = torch.tensor([[1, *ids]])
        labels = full.clone()
        labels[0, 0] = -100
        batch |= {f"{name}_input_ids": full, f"{name}_labels": labels}
        batch[f"{name}_attention_mask"] = torch.ones_like(full)
    return batch


def concatenated_logps(model, batch) -> PairLogps:
    found = []
    for name in ("chosen", "rejected"):
        mask = (batch[f"{name}_labels"] != -100).long()
        ids, attention = batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"]
        found.append((token_logps(model, ids, attention, mask).sum(1), mask.sum(1)))
    (chosen, m), (rejected, n) = found
    return PairLogps(chosen, rejected, m, n)


PAIRS = [([3, 4, 5, 2], [6, 2]), ([7, 2], [8, 9, 10, 11, 2]), ([12, 2], [13, 2])]


@oracle("ORPO", "loss and gradient in every weight equal ORPOTrainer's after a one-token prompt")
def test_orpo_trainer(tmp_path, monkeypatch, record_property):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trained = llama(0)
    trainer = ORPOTrainer(
        model=copy.deepcopy(trained),
        args=ORPOConfig(**options(tmp_path, beta=0.3, disable_dropout=True)),
        train_dataset=preference_dataset(),
        processing_class=tokenizer(),
    )
    for chosen, rejected in PAIRS:
        batch = concatenated(chosen, rejected)
        # One pair, a prompt of one token: TRL's NLL over prompt and completion is ours over the
        # completion alone, and its mean over the micro-batch is ours over the pair.
        theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
        ours = pairwise.orpo(concatenated_logps(trained, batch), weight=0.3)
        same(ours.mean(), trained, theirs, trainer.model, record_property)


CPO = {
    "SimPO": (
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.5},
        functools.partial(pairwise.simpo, beta=2.0, gamma_beta_ratio=1.5 / 2.0),
    ),
    "AlphaPO": (
        {"loss_type": "alphapo", "alpha": 0.1, "beta": 0.5, "simpo_gamma": 0.3},
        functools.partial(links.alpha_po, alpha=0.1, beta=0.5, gamma_beta_ratio=0.3 / 0.5),
    ),
    # TRL's max(0, 1 − βΔ) is max(0, 1/β − Δ) but for the factor β.
    "SLiC-HF (calibration term)": (
        {"loss_type": "hinge", "beta": 0.02},
        lambda logps: 0.02 * pairwise.slic(logps, delta=50.0, weight=0.0),
    ),
    # With a prompt of one token TRL's likelihood of prompt and completion is the completion's.
    "CPO": (
        {"loss_type": "sigmoid", "beta": 0.2, "cpo_alpha": 0.7},
        functools.partial(penalized.cpo, beta=0.2, weight=0.7, normalize="mean"),
    ),
}


def cpo_trainer(tmp_path, trained, **config):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(
        model=copy.deepcopy(trained),
        args=CPOConfig(**options(tmp_path, **config)),
        train_dataset=preference_dataset(),
        processing_class=tokenizer(),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=oracle(name, "loss and gradient in every weight equal CPOTrainer's")
        )
        for name in CPO
    ],
)
def test_cpo_trainer(tmp_path, monkeypatch, record_property, name):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    config, objective = CPO[name]
    trained = llama(0)
    trainer = cpo_trainer(tmp_path, trained, **({"cpo_alpha": 0.0} | config))
    for chosen, rejected in PAIRS:
        batch = concatenated(chosen, rejected)
        theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
        ours = objective(concatenated_logps(trained, batch))
        same(ours.mean(), trained, theirs, trainer.model, record_property)


@oracle(
    "reward model (Bradley–Terry)",
    "loss and gradient in every weight equal RewardTrainer's, with margins and centering",
)
@pytest.mark.parametrize("margin", [None, 0.7])
def test_reward_trainer(tmp_path, record_property, margin):
    rows = [{"chosen": p + c, "rejected": p + r} for p, c, r in ROWS]
    if margin is not None:
        rows = [row | {"margin": margin * n} for n, row in enumerate(rows)]
    model = llama(3, "LlamaForSequenceClassification")
    trainer = reward_trainer(tmp_path, model, rows, center_rewards_coefficient=0.05)
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    pairs = torch.arange(len(ROWS))
    scores = GroupScores(
        rewards.logits.squeeze(-1),
        pairs,
        pairs + len(ROWS),
        pairs,
        len(ROWS),
        margin=batch.get("margin"),
    )
    ours = ranking.bradley_terry(scores, centering=0.05).mean()
    same(ours, model, theirs, trainer.model, record_property)


def reward_trainer(tmp_path, model, rows, **config):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    return RewardTrainer(
        model=copy.deepcopy(model),
        args=RewardConfig(**options(tmp_path, **config)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )


def rollout(trained) -> tuple[dict, TokenLogps, torch.Tensor, torch.Tensor]:
    """A GRPO batch of four completions, left-padded prompts, and the same as flat tokens."""
    generator = torch.Generator().manual_seed(4)
    prompts = torch.tensor([[0, 1, 5], [0, 1, 5], [1, 6, 7], [1, 6, 7]])
    lengths = torch.tensor([4, 1, 3, 2])
    mask = (torch.arange(4) < lengths[:, None]).long()
    completions = torch.randint(3, len(WORDS), (4, 4), generator=generator) * mask
    ids = torch.cat([prompts, completions], 1)
    attention = torch.cat([(prompts != 0).long(), mask], 1)
    completion_mask = torch.cat([torch.zeros_like(prompts), mask], 1)
    new = token_logps(trained, ids, attention, completion_mask)[:, 3:]
    old = new.detach() + 0.4 * torch.randn(new.shape, generator=generator)
    reference = new.detach() + 0.5 * torch.randn(new.shape, generator=generator)
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": (prompts != 0).long(),
        "completion_ids": completions,
        "completion_mask": mask,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    keep = mask.bool()
    owner = torch.arange(4).repeat_interleave(lengths)
    return batch, TokenLogps(new[keep], old[keep], reference[keep]), owner, lengths


def group_trainer(tmp_path, trained, **config):
    import trl
    from datasets import Dataset

    name = config.pop("name")
    trained.save_pretrained(tmp_path / "model")  # TRL reloads the reference from disk
    given = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6}
    args = getattr(trl, f"{name}Config")(**options(tmp_path, **given | config))
    trainer = getattr(trl, f"{name}Trainer")(
        model=type(trained).from_pretrained(tmp_path / "model", dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0 for _ in completions],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": p} for p, _, _ in ROWS]),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss_type", "normalizer"),
    [
        pytest.param(
            loss_type,
            normalizer,
            marks=oracle(
                f"GRPO ({loss_type})",
                "loss and gradient in every weight equal GRPOTrainer's on off-policy rollouts,"
                " clipped on both sides, with k3 with and without the importance ratio",
            ),
        )
        for loss_type, normalizer in [
            ("grpo", "sequence"),
            ("bnpo", "token"),
            ("dapo", "token"),
            ("dr_grpo", "constant"),
        ]
    ],
)
@pytest.mark.parametrize("corrected", [False, True])
def test_grpo_trainer(tmp_path, record_property, loss_type, normalizer, corrected):
    trained = llama(0)
    trainer = group_trainer(
        tmp_path,
        trained,
        name="GRPO",
        loss_type=loss_type,
        beta=0.07,
        epsilon=0.1,
        epsilon_high=0.25,
        use_bias_correction_kl=corrected,
    )
    batch, logps, owner, lengths = rollout(trained)
    rewards, group = torch.tensor([1.0, 0.2, -0.5, 0.4]), torch.tensor([0, 0, 1, 1])
    gain = advantage.group_advantages(rewards, group, 2, kind="group_std", epsilon=1e-4)
    pairs = rewards.view(2, 2)
    theirs_gain = (pairs - pairs.mean(1, keepdim=True)) / (pairs.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(gain, theirs_gain.flatten(), **TOLERANCE)
    theirs = trainer.compute_loss(trainer.model, batch | {"advantages": gain})

    loss = policy.clipped_surrogate(logps, gain[owner], clip_low=0.1, clip_high=0.25)
    kl = divergence.token_kl(logps.new, logps.reference, estimator="k3")
    loss = loss + 0.07 * (kl * policy.importance_ratio(logps) if corrected else kl)
    weight, count = advantage.token_weights(lengths, normalizer=normalizer, max_length=6)
    ours = (weight[owner] * loss).sum() / count
    same(ours, trained, theirs, trainer.model, record_property)
    clipped = policy.clip_fraction(logps, gain[owner], clip_low=0.1, clip_high=0.25)
    assert 0 < clipped.mean() < 1  # both sides of the clip were at work


GAIN = torch.tensor([0.8, -0.8, 0.9, -0.9])


@oracle("GSPO", "loss and gradient in every weight equal GRPOTrainer's (grpo, ratio per sequence)")
def test_gspo_trainer(tmp_path, record_property):
    trained = llama(0)
    clip = {"epsilon": 0.1, "epsilon_high": 0.25}
    trainer = group_trainer(
        tmp_path,
        trained,
        name="GRPO",
        loss_type="grpo",
        beta=0.0,
        importance_sampling_level="sequence",
        **clip,
    )
    batch, logps, owner, lengths = rollout(trained)
    theirs = trainer.compute_loss(trainer.model, batch | {"advantages": GAIN})
    ours = policy.sequence_surrogate(
        logps, GAIN, owner, lengths, clip_low=0.1, clip_high=0.25, ratio="geometric_mean"
    )
    same(ours.mean(), trained, theirs, trainer.model, record_property)


@oracle(
    "CISPO", "loss and gradient in every weight equal GRPOTrainer's (cispo), weights cut at 1.1"
)
def test_cispo_trainer(tmp_path, record_property):
    trained = llama(0)
    trainer = group_trainer(
        tmp_path, trained, name="GRPO", loss_type="cispo", beta=0.0, epsilon_high=1.1
    )
    batch, logps, owner, lengths = rollout(trained)
    theirs = trainer.compute_loss(trainer.model, batch | {"advantages": GAIN})
    bounds = {"clip_low": 1.0, "clip_high": 0.1}  # they state the largest weight itself
    losses = policy.clipped_weight_surrogate(logps, GAIN[owner], **bounds)
    weight, count = advantage.token_weights(lengths, normalizer="token", max_length=6)
    same((weight[owner] * losses).sum() / count, trained, theirs, trainer.model, record_property)
    assert 0 < policy.weight_clip_fraction(logps, **bounds).mean() < 1


@oracle("RLOO", "loss and gradient in every weight equal RLOOTrainer's on off-policy rollouts")
def test_rloo_trainer(tmp_path, record_property):
    trained = llama(0)
    trainer = group_trainer(tmp_path, trained, name="RLOO", epsilon=0.1, epsilon_high=0.25)
    batch, logps, owner, lengths = rollout(trained)
    old = (batch["old_per_token_logps"] * batch["completion_mask"]).sum(1)
    theirs = trainer.compute_loss(trainer.model, batch | {"advantages": GAIN, "old_logps": old})
    ours = policy.sequence_surrogate(
        logps, GAIN, owner, lengths, clip_low=0.1, clip_high=0.25, ratio="product"
    )
    same(ours.mean(), trained, theirs, trainer.model, record_property)


def test_the_tolerance_would_notice_another_convention(tmp_path):
    """IPO of sums, cDPO, DPO-norm at the same β: each is far outside the tolerance."""
    trained, reference = llama(0), llama(1)
    ids = torch.tensor([[1, 3, 4, 5, 6, 2], [1, 3, 7, 8, 2, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "completion_mask": mask}
    pair = (pair_logps(trained, batch), pair_logps(reference, batch))
    plain = pairwise.dpo(*pair, beta=0.3, label_smoothing=0.0)
    smooth = pairwise.dpo(*pair, beta=0.3, label_smoothing=0.2)
    mean = pairwise.ipo(*pair, tau=0.3, normalize="mean")
    total = pairwise.ipo(*pair, tau=0.3, normalize="sum")
    for one, other in ((plain, smooth), (mean, total), (plain, pairwise.dpo_norm(*pair, beta=0.3))):
        assert (one - other).abs().min() > 1e-2
