"""Where implementations of one method disagree: what ours computes, and what theirs computes.

Every test shows both numbers. TRL 1.16 is run for real wherever it has the method; what HALOs and
the authors' own code do is written out here in a line or two of arithmetic, read from their public
sources (github.com/ContextualAI/HALOs, eric-mitchell/direct-preference-optimization, xfactlab/orpo,
princeton-nlp/SimPO, sail-sg/understand-r1-zero, openai/lm-human-preferences).
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from test_against_trl import (
    GAIN,
    ROWS,
    concatenated,
    concatenated_logps,
    cpo_trainer,
    dpo_trainer,
    group_trainer,
    llama,
    options,
    pair_logps,
    preference_dataset,
    reward_trainer,
    rollout,
    token_logps,
    tokenizer,
)

from alignlab.data.group import NONE, PromptGroup, TokenGroup, Verdict
from alignlab.data.order import step_rows
from alignlab.data.template import Tokenization
from alignlab.models.tiny import CHAT_TEMPLATE, byte_tokenizer
from alignlab.objectives import (
    advantage,
    divergence,
    likelihood,
    links,
    pairwise,
    policy,
    ranking,
    unpaired,
)
from alignlab.rewards.shaping import token_rewards
from alignlab.stages.pairing import mismatched
from alignlab.tensors import GroupScores, PairLogps, SingleLogps, TokenLogps

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


def equal(a, b) -> None:
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), **TIGHT, check_dtype=False)


def apart(a, b, by: float = 1e-2) -> None:
    assert abs(float(a) - float(b)) > by


def dpo_case(tmp_path, **config):
    """TRL's trainer, its whole batch, and the log-probs of that batch; π is not π_ref."""
    trained, reference = llama(0), llama(1)
    trainer = dpo_trainer(tmp_path, trained, reference, **config)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        logps = pair_logps(trained, batch), pair_logps(reference, batch)
    theirs = trainer.compute_loss(trainer.model, batch).detach()
    return theirs, *logps


# ------------------------------------------------------------------------------------------- SFT


@pytest.mark.difference(
    method="SFT",
    point="normaliser",
    equation="−Σ log π(y_t) / Σ|y|, over the whole optimizer step",
    ours="token mean over all micro-batches and processes",
    trl="the same (num_items_in_batch)",
    halos="–",
    original="DPO's code: sum over a completion, mean over completions",
)
def test_sft_is_a_token_mean(tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    trained = llama(0)
    trainer = SFTTrainer(
        model=copy.deepcopy(trained),
        args=SFTConfig(**options(tmp_path), completion_only_loss=True),
        train_dataset=Dataset.from_list([{"prompt": p, "completion": c} for p, c, _ in ROWS]),
        processing_class=tokenizer(),
    )
    rows = list(trainer.train_dataset)
    whole = trainer.data_collator(rows)
    mask = (whole["labels"] != -100).long()
    with torch.no_grad():
        logps = token_logps(trained, whole["input_ids"], (whole["input_ids"] != 0).long(), mask)
    count = int(mask.sum())
    ours = likelihood.nll(logps[mask.bool()]).sum() / count
    parts = [trainer.data_collator(rows[:1]), trainer.data_collator(rows[1:])]
    theirs = [trainer.compute_loss(trainer.model, dict(part)).item() for part in parts]
    told = [
        trainer.compute_loss(trainer.model, dict(part), num_items_in_batch=count).item()
        for part in parts
    ]
    equal(sum(told), ours)  # as `Trainer.train` calls it
    apart(sum(theirs) / 2, ours)  # the mean of micro-batch means that it was for years
    apart(-logps.sum(1).mean(), ours, by=1)


# ------------------------------------------------------------------------------------------- DPO


@pytest.mark.difference(
    method="cDPO",
    point="label_smoothing",
    equation="−(1 − ε)·log σ(βh) − ε·log σ(−βh)",
    ours="objective=cdpo (dpo with label_smoothing > 0)",
    trl="ignored by loss_type=sigmoid; only robust, exo_pair and aot read it",
    halos="cdpo, the same formula",
    original="the same formula",
)
def test_dpo_label_smoothing(tmp_path):
    smoothed, *logps = dpo_case(tmp_path, loss_type=["sigmoid"], beta=0.3, label_smoothing=0.2)
    plain, *_ = dpo_case(tmp_path, loss_type=["sigmoid"], beta=0.3)
    assert smoothed == plain
    equal(pairwise.dpo(*logps, beta=0.3, label_smoothing=0.0).mean(), plain)
    h = 0.3 * (logps[0].chosen - logps[1].chosen - logps[0].rejected + logps[1].rejected)
    ours = pairwise.dpo(*logps, beta=0.3, label_smoothing=0.2).mean()
    equal(ours, (-0.8 * F.logsigmoid(h) - 0.2 * F.logsigmoid(-h)).mean())
    apart(ours, smoothed)


@pytest.mark.difference(
    method="cDPO, rDPO",
    point="what ε does",
    equation="cDPO: (1 − ε)·l(h) + ε·l(−h); rDPO: ((1 − ε)·l(h) − ε·l(−h)) / (1 − 2ε)",
    ours="both: cdpo and rdpo",
    trl="rDPO only (loss_type=robust)",
    halos="cDPO only",
    original="cDPO: as stated; rDPO: as stated",
)
def test_conservative_is_not_robust(tmp_path):
    theirs, *logps = dpo_case(tmp_path, loss_type=["robust"], beta=0.3, label_smoothing=0.2)
    robust = pairwise.robust_dpo(*logps, beta=0.3, label_smoothing=0.2)
    conservative = pairwise.dpo(*logps, beta=0.3, label_smoothing=0.2)
    equal(robust.mean(), theirs)
    apart(conservative.mean(), theirs)
    # Labels flipped with probability ε: only rDPO's expectation is the loss of the clean labels.
    clean = pairwise.dpo(*logps, beta=0.3, label_smoothing=0.0)
    flipped = [PairLogps(p.rejected, p.chosen, p.rejected_length, p.chosen_length) for p in logps]
    for one, unbiased in ((pairwise.robust_dpo, True), (pairwise.dpo, False)):
        right = one(*logps, beta=0.3, label_smoothing=0.2)
        wrong = one(*flipped, beta=0.3, label_smoothing=0.2)
        gap = float((0.8 * right + 0.2 * wrong - clean).abs().max())
        assert (gap < 1e-5) if unbiased else (gap > 0.1)


@pytest.mark.difference(
    method="DPO length-normalised",
    point="unit of the mean log-ratio",
    equation="Tülu 3, 2411.15124: β·(lr_w/|y_w| − lr_l/|y_l|)",
    ours="nats per token, β about 2 to 10",
    trl="the same (sigmoid_norm)",
    halos="nats per 100 tokens in its length_normalization option: β·100·lr/|y|",
    original="open-instruct: nats per token, β = 5",
)
def test_length_normalised_dpo_has_no_factor_of_100(tmp_path):
    theirs, *logps = dpo_case(tmp_path, loss_type=["sigmoid_norm"], beta=2.0)
    equal(pairwise.dpo_norm(*logps, beta=2.0).mean(), theirs)
    chosen, rejected = pairwise.log_ratios(*logps)
    chosen, rejected = chosen / logps[0].chosen_length, rejected / logps[0].rejected_length
    halos = -F.logsigmoid(2.0 * 100 * (chosen - rejected)).mean()
    apart(halos, theirs)
    equal(pairwise.dpo_norm(*logps, beta=200.0).mean(), halos)


@pytest.mark.difference(
    method="DPO, KTO, GRPO",
    point="the reference when none is given",
    equation="π_ref = the policy at the start",
    ours="the run named as `reference`; a stage without one is refused",
    trl="reloaded from the name in the model's config, so not what a stage before left in memory",
    halos="–",
    original="DPO's code: the checkpoint that is named",
)
def test_the_reference_comes_from_disk(tmp_path):
    from trl import DPOConfig, DPOTrainer

    llama(1).save_pretrained(tmp_path / "base")
    trained = type(llama(0)).from_pretrained(tmp_path / "base", dtype=torch.float32)
    trained.load_state_dict(llama(0).state_dict())  # an SFT that was not saved
    trainer = DPOTrainer(
        model=trained,
        args=DPOConfig(**options(tmp_path / "out", beta=0.3)),
        train_dataset=preference_dataset(),
        processing_class=tokenizer(),
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    theirs = trainer.compute_loss(trainer.model, batch).detach()
    with torch.no_grad():
        start, base = pair_logps(llama(0), batch), pair_logps(llama(1), batch)
    equal(pairwise.dpo(start, base, beta=0.3, label_smoothing=0.0).mean(), theirs)
    ours = pairwise.dpo(start, start, beta=0.3, label_smoothing=0.0).mean()
    equal(ours, math.log(2))
    apart(ours, theirs)


@pytest.mark.difference(
    method="every pairwise method",
    point="accuracy of a tie",
    equation="share of pairs with r(y_w) > r(y_l)",
    ours="a tie counts ½: an untrained policy reads 0.5",
    trl="a tie counts 0: it reads 0",
    halos="a tie counts 0",
    original="DPO: a tie counts 0",
)
def test_accuracy_of_an_untrained_policy(tmp_path):
    trainer = dpo_trainer(tmp_path, llama(0), llama(0), beta=0.3)
    batch = trainer.data_collator(list(trainer.train_dataset))
    with torch.no_grad():
        logps = pair_logps(llama(0), batch)
        trainer.log({"loss": float(trainer.compute_loss(trainer.model, batch))})
    assert trainer.state.log_history[-1]["eval_rewards/accuracies"] == 0.0
    assert pairwise.pair_metrics(logps, logps)["accuracy"].mean() == 0.5


# ------------------------------------------------------------------------------------------- IPO


@pytest.mark.difference(
    method="IPO",
    point="normaliser",
    equation="ΨPO, 2310.12036 eq. 17: (h − 1/(2τ))²",
    ours="both, by name: ipo (mean per token), ipo_sum",
    trl="mean per token",
    halos="mean per token",
    original="DPO authors' code: sum; the paper writes sequence probabilities",
)
def test_ipo_sum_or_mean(tmp_path):
    theirs, *logps = dpo_case(tmp_path, loss_type=["ipo"], beta=0.4)
    mean = pairwise.ipo(*logps, tau=0.4, normalize="mean").mean()
    total = pairwise.ipo(*logps, tau=0.4, normalize="sum").mean()
    equal(mean, theirs)
    chosen, rejected = pairwise.log_ratios(*logps)
    original = ((chosen - rejected) - 1 / (2 * 0.4)).square().mean()
    equal(total, original)
    apart(total, theirs, by=1)


@pytest.mark.difference(
    method="IPO",
    point="the loss of that name in TRL's CPOTrainer",
    equation="ΨPO, 2310.12036 eq. 17 needs π_ref",
    ours="always against the reference",
    trl="CPO: mean log-probs without a reference (OnlineDPO: summed log-ratios)",
    halos="–",
    original="against the reference",
)
def test_ipo_without_a_reference(tmp_path):
    trained = llama(0)
    trainer = cpo_trainer(tmp_path, trained, loss_type="ipo", beta=0.4, cpo_alpha=0.0)
    batch = concatenated([3, 4, 5, 2], [6, 2])
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    with torch.no_grad():
        logps, reference = concatenated_logps(trained, batch), concatenated_logps(llama(1), batch)
    nothing = PairLogps(*torch.zeros(2, 1), logps.chosen_length, logps.rejected_length)
    equal(pairwise.ipo(logps, nothing, tau=0.4, normalize="mean").mean(), theirs.detach())
    apart(pairwise.ipo(logps, reference, tau=0.4, normalize="mean").mean(), theirs.detach())


# ------------------------------------------------------------------------------------------ ORPO


def orpo_trainer(tmp_path, trained, dataset, processing):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer(
        model=copy.deepcopy(trained),
        args=ORPOConfig(**options(tmp_path, beta=0.3, disable_dropout=True)),
        train_dataset=dataset,
        processing_class=processing,
    )


def nll(model, ids, start: int) -> torch.Tensor:
    """−log π of every token from position ``start`` (at least 1) on."""
    with torch.no_grad():
        logps = model(input_ids=ids).logits.log_softmax(-1)
    return -logps[0, :-1].gather(1, ids[0, 1:, None])[start - 1 :, 0]


@pytest.mark.difference(
    method="ORPO",
    point="span and mean of the likelihood term",
    equation="2403.07691 eq. 6: L_SFT(y_w) + λ·L_OR",
    ours="completion tokens, mean per pair",
    trl="prompt and completion tokens, pooled over the micro-batch",
    halos="–",
    original="prompt and completion unless disable_prompt_loss, pooled over the micro-batch",
)
def test_orpo_likelihood_span(tmp_path):
    trained = llama(0)
    trainer = orpo_trainer(tmp_path, trained, preference_dataset(), tokenizer())
    rows = [trainer.train_dataset[n] for n in (0, 1)]
    found = []
    for row in rows:
        batch = trainer.data_collator([row])
        theirs, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
        with torch.no_grad():
            logps = concatenated_logps(trained, batch)
        ours = pairwise.orpo(logps, weight=0.3)
        ids, prompt = batch["chosen_input_ids"], len(row["prompt_input_ids"])
        assert prompt > 1
        whole, completion = nll(trained, ids, 1), nll(trained, ids, prompt)
        equal(metrics["nll_loss"], whole.mean())
        equal(-logps.chosen / logps.chosen_length, completion.mean().reshape(1))
        # The odds-ratio term is the same; the likelihood term is all that differs.
        equal(theirs.detach() - ours, (whole.mean() - completion.mean()).reshape(1))
        apart(theirs, ours)
        found.append(whole)
    _, metrics = trainer.get_batch_loss_metrics(trainer.model, trainer.data_collator(rows))
    equal(metrics["nll_loss"], torch.cat(found).mean())
    apart(metrics["nll_loss"], (found[0].mean() + found[1].mean()) / 2)


@pytest.mark.difference(
    method="ORPO, CPO, SimPO",
    point="EOS after a chat template that writes something behind it",
    equation="y ends with the token at which sampling stops",
    ours="one EOS; what the template writes behind it is no target",
    trl="ORPO, CPO: a second EOS, trained on; DPO: one EOS, then the template's line break",
    halos="–",
    original="–",
)
def test_orpo_adds_a_second_eos(tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    processing = byte_tokenizer()
    processing.chat_template = CHAT_TEMPLATE.replace(
        "{% endgeneration %}", "{% endgeneration %}{{ '\\n' }}"
    )
    assert processing.chat_template != CHAT_TEMPLATE
    eos, newline = processing.eos_token_id, processing.encode("\n", add_special_tokens=False)[0]
    word = processing.encode("ab", add_special_tokens=False)
    prompt, answer, other = (
        [{"role": role, "content": content}]
        for role, content in (("user", "x"), ("assistant", "ab"), ("assistant", "c"))
    )
    data = Dataset.from_list([{"prompt": prompt, "chosen": answer, "rejected": other}])
    model = llama(0)  # never called
    row = orpo_trainer(tmp_path, model, data, processing).train_dataset[0]
    theirs = row["chosen_input_ids"][len(row["prompt_input_ids"]) :]
    assert theirs == [*word, eos, newline, eos]
    trainer = DPOTrainer(
        model=copy.deepcopy(model),
        ref_model=copy.deepcopy(model),
        args=DPOConfig(**options(tmp_path)),
        train_dataset=data,
        processing_class=processing,
    )
    assert trainer.train_dataset[0]["chosen_ids"] == [*word, eos, newline]

    group = PromptGroup(tuple(prompt), (tuple(answer), tuple(other)), Verdict("ranking", (0, 1)))
    ours = Tokenization(processing, 16, 12).group(group, 0)
    assert ours.completions[0].tolist() == [*word, eos]


# ----------------------------------------------------------------------------------------- SimPO


@pytest.mark.difference(
    method="SimPO",
    point="the margin",
    equation="2405.14734 eq. 6: β·(p_w − p_l) − γ",
    ours="gamma_beta_ratio = γ/β, in nats per token",
    trl="simpo_gamma = γ, and cpo_alpha = 1 adds a likelihood term unless set to 0",
    halos="gamma_beta_ratio = γ/β",
    original="gamma_beta_ratio = γ/β",
)
def test_simpo_gamma(tmp_path):
    trained = llama(0)
    batch = concatenated([3, 4, 5, 2], [6, 2])
    with torch.no_grad():
        logps = concatenated_logps(trained, batch)
    ours = pairwise.simpo(logps, beta=2.0, gamma_beta_ratio=0.75).mean()
    given = {"loss_type": "simpo", "beta": 2.0}

    def theirs(**config):
        trainer = cpo_trainer(tmp_path, trained, **given, **config)
        return trainer.get_batch_loss_metrics(trainer.model, batch)[0].detach()

    equal(theirs(simpo_gamma=1.5, cpo_alpha=0.0), ours)  # γ = β·0.75
    apart(theirs(simpo_gamma=0.75, cpo_alpha=0.0), ours)  # the same number under the other name
    likelihood_term = -(logps.chosen / logps.chosen_length).mean()
    equal(theirs(simpo_gamma=1.5), ours + likelihood_term)


@pytest.mark.difference(
    method="AlphaPO",
    point="an answer that float32 gives probability 0",
    equation="2501.03884: r = (1 − e^(−αp))/α",
    ours="e^(−αp), from αp = −20 on its tangent: finite",
    trl="(eᵖ)^(−α), infinite where eᵖ is 0: the loss is infinite, or NaN",
    halos="has no AlphaPO",
    original="no code known",
)
def test_alpha_po_of_impossible_answers(tmp_path):
    config = {"loss_type": "alphapo", "alpha": 0.25, "beta": 0.5, "simpo_gamma": 0.1}
    trainer = cpo_trainer(tmp_path, llama(0), cpo_alpha=0.0, **config)
    one = torch.ones(2)
    given = {"alpha": 0.25, "beta": 0.5, "gamma_beta_ratio": 0.2}
    for chosen, finite in (((-9.0, -1.0), True), ((-120.0, -1.0), False)):
        policy_logps = PairLogps(torch.tensor(chosen), torch.tensor([-2.0, -3.0]), one, one)
        ours = links.alpha_po(policy_logps, **given)
        theirs, *_ = trainer.cpo_loss(policy_logps.chosen, policy_logps.rejected)
        assert torch.isfinite(ours).all()
        assert bool(torch.isfinite(theirs).all()) is finite
        torch.testing.assert_close(ours[1], theirs[1], **TIGHT)


@pytest.mark.difference(
    method="SimPO, ORPO, IPO, DPO length-normalised",
    point="what |y| counts",
    equation="p = log π(y)/|y|",
    ours="completion tokens, EOS among them",
    trl="the same",
    halos="tokens whose log-prob is not exactly 0",
    original="SimPO: labels that are not masked, EOS among them",
)
def test_the_length_counts_eos(tmp_path):
    trained = llama(0)
    trainer = cpo_trainer(
        tmp_path, trained, loss_type="simpo", beta=2.0, simpo_gamma=0.0, cpo_alpha=0.0
    )
    batch = concatenated([3, 4, 5, 2], [6, 2])
    _, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    with torch.no_grad():
        logps = concatenated_logps(trained, batch)
    assert logps.chosen_length.tolist() == [4]
    equal(metrics["logps/chosen"], logps.chosen.item() / 4)
    apart(metrics["logps/chosen"], logps.chosen.item() / 3)
    certain = torch.tensor([-0.5, 0.0, -0.1])  # one token that the policy is sure of
    assert int((certain != 0).sum()) == 2 != len(certain)


# ------------------------------------------------------------------------------------------ SLiC


@pytest.mark.difference(
    method="SLiC-HF",
    point="the likelihood term",
    equation="2305.10425 §2: max(0, δ − lp_w + lp_l) − λ·lp(y_ref)",
    ours="summed log-prob of the chosen answer, one number per pair",
    trl="CPO hinge: no δ but 1/β, mean log-prob pooled over the micro-batch (cpo_alpha)",
    halos="adds (B,) to (B, T): every position gets the pair's hinge",
    original="no code; the SFT target's likelihood",
)
def test_slic_likelihood_term(tmp_path):
    trained = llama(0)
    batch = concatenated([3, 4, 5, 2], [6, 2])
    with torch.no_grad():
        logps = concatenated_logps(trained, batch)
    trainer = cpo_trainer(tmp_path, trained, loss_type="hinge", beta=0.1, cpo_alpha=0.5)
    theirs, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    hinge = F.relu(1 - 0.1 * (logps.chosen - logps.rejected))
    assert hinge > 0
    equal(theirs.detach(), (hinge - 0.5 * logps.chosen / 4).item())
    ours = pairwise.slic(logps, delta=10.0, weight=5.0)
    equal(0.1 * ours, hinge - 0.5 * logps.chosen)
    # HALOs: hinges (2,) against token log-probs (2, 2) broadcast over the wrong axis, then a mean
    hinges, tokens = torch.tensor([1.0, 3.0]), -torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert float((hinges + 0.5 * -tokens).mean()) == 3.25  # mean(hinge) + ½·mean per token
    right = hinges - 0.5 * tokens.sum(1)  # [1 + 1.5, 3 + 3.5]
    assert right.tolist() == [2.5, 6.5]


# ------------------------------------------------------------------------------------------- KTO


def kto_trainer(tmp_path, data, **config):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    return KTOTrainer(
        model=llama(0),
        ref_model=llama(1),
        args=KTOConfig(**options(tmp_path, beta=0.2, **config)),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer(),
    )


def thumbs() -> list[dict]:
    return [{"prompt": p, "completion": c, "label": n != 3} for n, (p, c, _) in enumerate(ROWS)]


def kto_sums(batch, prefix=""):
    parts = [batch[f"{prefix}{k}"] for k in ("input_ids", "attention_mask", "completion_mask")]
    with torch.no_grad():
        policy, reference = (token_logps(model, *parts).sum(1) for model in (llama(0), llama(1)))
    return policy, reference


@pytest.mark.difference(
    method="KTO",
    point="mismatched pairs of the KL point",
    equation="2402.01306 §4.1: y′ of another prompt of the batch",
    ours="the completions of the next prompt of the step",
    trl="the completion of the row before, in the micro-batch as the data set was mapped",
    halos="the completion of the next row of the batch",
    original="HALOs is the original",
)
def test_kto_pairs_with_another_neighbour(tmp_path):
    trainer = kto_trainer(tmp_path, thumbs(), per_device_train_batch_size=4)
    rows = list(trainer.train_dataset)
    own = [row["completion_ids"] for row in rows]
    assert [row["KL_completion_ids"] for row in rows] == [own[-1], *own[:-1]]
    groups = [
        TokenGroup(
            torch.tensor(row["prompt_ids"]).numpy(),
            (torch.tensor(row["completion_ids"]).numpy(),),
            NONE,
            row=n,
            id=str(n),
        )
        for n, row in enumerate(rows)
    ]
    pairs = mismatched(groups, groups)
    assert [pair.completions[0].tolist() for pair in pairs] == [*own[1:], own[0]]
    assert [pair.prompt.tolist() for pair in pairs] == [row["prompt_ids"] for row in rows]


@pytest.mark.difference(
    method="KTO",
    point="over what the KL point is a mean, and where it is clamped",
    equation="2402.01306 §4.1: z₀ = max(0, mean of the mismatched log-ratios)",
    ours="the whole optimizer step, all processes; clamped after the mean",
    trl="one micro-batch; the processes' means averaged, then clamped",
    halos="one micro-batch, sum and count over all processes, then clamped",
    original="HALOs is the original",
)
def test_kto_kl_point_of_a_step(tmp_path):
    trainer = kto_trainer(tmp_path, thumbs(), per_device_train_batch_size=2)
    rows = list(trainer.train_dataset)
    points, ratios, losses, ours = [], [], [], []
    singles = []
    for part in (rows[:2], rows[2:]):
        batch = trainer.data_collator(part)
        losses.append(float(trainer.compute_loss(trainer.model, batch).detach()))
        trainer.log({"loss": losses[-1]})
        points.append(trainer.state.log_history[-1]["eval_kl"])
        one, other = kto_sums(batch, "KL_")
        ratios.append(one - other)
        singles.append((*kto_sums(batch), batch["label"].bool()))
    equal(points, [max(0.0, float(r.mean())) for r in ratios])
    # TRL: 1.31 and (−1.89 clamped) 0; the step's mean is −0.29, so z₀ is 0.
    z = unpaired.kl_point(torch.cat(ratios))
    equal(z, max(0.0, float(torch.cat(ratios).mean())))
    apart(z, points[0])
    apart(z, sum(points) / 2)  # a clamp does not commute with a mean
    for one, other, up in singles:
        length = torch.ones_like(one)
        ours.append(
            unpaired.kto(
                SingleLogps(one, length, up),
                SingleLogps(other, length, up),
                z,
                beta=0.2,
                desirable_weight=1.0,
                undesirable_weight=1.0,
            )
        )
    apart(ours[0].mean(), losses[0])
    apart(torch.cat(ours).mean(), sum(losses) / 2)


@pytest.mark.difference(
    method="KTO",
    point="order of paired data",
    equation="–",
    ours="prompts shuffled, the two completions of a pair in one step",
    trl="all chosen, then all rejected (per 1,000 rows), never shuffled: steps of one label",
    halos="prompts shuffled",
    original="HALOs is the original",
)
def test_kto_on_pairs_trains_in_blocks(tmp_path):
    pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ROWS]
    trainer = kto_trainer(tmp_path, pairs, per_device_train_batch_size=4, max_steps=2)
    assert trainer.train_dataset["label"] == [True] * 4 + [False] * 4
    steps = [batch["label"].tolist() for batch in trainer.get_train_dataloader()]
    assert steps == [[True] * 4, [False] * 4]
    for step in range(8):  # ours: every step of two prompts has two thumbs up and two down
        rows = step_rows(step, 2, len(ROWS), seed=0)
        labels = [up for _ in rows for up in Verdict("ranking", (0, 1)).desirable()]
        assert sorted(labels) == [False, False, True, True]
    assert [step_rows(s, 2, 4, seed=0) for s in (0, 1)] != [[0, 1], [2, 3]]


# ---------------------------------------------------------------------------------- reward models


@pytest.mark.difference(
    method="reward model (K-wise)",
    point="weight of a prompt with K ranked completions",
    equation="2203.02155 eq. 1: 1/C(K, 2) Σ over its pairs, one batch element",
    ours="every prompt weighs the same; each completion is computed once",
    trl="every pair weighs the same; a completion is computed once per pair",
    halos="every pair weighs the same",
    original="InstructGPT: every prompt weighs the same",
)
def test_a_ranking_is_one_element(tmp_path):
    # A prompt with a ranking of three (three pairs) and a prompt with one pair.
    texts = ["w0 w1 w2", "w0 w1 w3 w4", "w0 w1 w5", "w6 w7", "w6 w8 w9 w10"]
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    model = llama(3, "LlamaForSequenceClassification")
    rows = [{"chosen": texts[a], "rejected": texts[b]} for a, b in pairs]
    trainer = reward_trainer(tmp_path, model, rows, center_rewards_coefficient=None)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert len(batch["input_ids"]) == 8  # for five completions
    theirs = trainer.compute_loss(trainer.model, dict(batch)).detach()
    with torch.no_grad():
        scores = [
            model(input_ids=torch.tensor([tokenizer()(text + "<eos>")["input_ids"]])).logits[0, 0]
            for text in texts
        ]
    better, worse = (torch.tensor(side) for side in zip(*pairs, strict=True))
    groups = GroupScores(torch.stack(scores), better, worse, torch.tensor([0, 0, 0, 1]), 2)
    ours = ranking.bradley_terry(groups, centering=0.0)
    losses = [-F.logsigmoid(scores[a] - scores[b]) for a, b in pairs]
    equal(ours, [float(sum(losses[:3])) / 3, float(losses[3])])
    equal(theirs, float(sum(losses)) / 4)
    apart(ours.mean(), theirs)


@pytest.mark.difference(
    method="reward model (K-wise)",
    point="which loss a ranking of K has",
    equation="pairs: mean of −log σ(r_i − r_j); Plackett–Luce: −Σ log softmax; top-one: its first",
    ours="all three: bradley_terry, plackett_luce, top_one",
    trl="pairs only",
    halos="pairs only",
    original="Ziegler 2019: top-one of four; InstructGPT: pairs",
)
def test_three_losses_of_one_ranking():
    reward = torch.tensor([1.0, 0.5, -0.5], dtype=torch.float64)
    better, worse, group = torch.tensor([[0, 0, 1], [1, 2, 2], [0, 0, 0]])
    scores = GroupScores(reward, better, worse, group, 1)
    top = math.log(1 + math.exp(-0.5) + math.exp(-1.5))  # 0.6041
    rest = math.log(1 + math.exp(-1.0))  # 0.3133
    equal(ranking.top_one(scores), [top])
    equal(ranking.plackett_luce(scores), [top + rest])
    pairs = [math.log(1 + math.exp(-d)) for d in (0.5, 1.5, 1.0)]
    equal(ranking.bradley_terry(scores, centering=0.0), [sum(pairs) / 3])


# ------------------------------------------------------------------------------------------ GRPO


def grpo_loss(tmp_path, trained, batch, *, steps=1, **config):
    trainer = group_trainer(tmp_path, trained, name="GRPO", **config)
    trainer.model.train()  # there is no dropout, but TRL divides by the steps in training only
    trainer.current_gradient_accumulation_steps = steps
    trainer.args.steps_per_generation = steps
    return lambda part: trainer.compute_loss(trainer.model, part).detach()


CLIP = {"epsilon": 0.1, "epsilon_high": 0.25, "beta": 0.0}
PLAIN = {"clip_low": 0.1, "clip_high": 0.25}


@pytest.mark.difference(
    method="GRPO",
    point="normaliser",
    equation="2402.03300 eq. 3: 1/G Σ 1/|o| Σ; DAPO: 1/Σ|o|; Dr.GRPO: 1/(G·L_max)",
    ours="normalizer: sequence, token, constant; always over the optimizer step",
    trl="grpo, dapo (default), dr_grpo; and bnpo, a token mean per micro-batch",
    halos="1/G, then the mean over all B·T positions, padding among them",
    original="GRPO: sequence; DAPO: token; Dr.GRPO: constant; verl: token (its norm: padded width)",
)
def test_grpo_normalisers(tmp_path):
    trained = llama(0)
    batch, logps, owner, lengths = rollout(trained)
    loss = policy.clipped_surrogate(logps, GAIN[owner], **PLAIN).detach()
    per = torch.zeros(4).index_add(0, owner, loss)
    by_hand = {
        "grpo": (per / lengths).mean(),
        "dapo": per.sum() / lengths.sum(),
        "bnpo": per.sum() / lengths.sum(),  # of one micro-batch
        "dr_grpo": per.sum() / (4 * 6),
    }
    names = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}
    for name, normalizer in names.items():
        theirs = grpo_loss(tmp_path, trained, batch, loss_type=name, **CLIP)
        equal(theirs(batch | {"advantages": GAIN}), by_hand[name])
        weight, count = advantage.token_weights(lengths, normalizer=normalizer, max_length=6)
        equal((weight[owner] * loss).sum() / count, by_hand[name])
    values = [by_hand[name] for name in ("grpo", "dapo", "dr_grpo")]
    assert all(abs(a - b) > 1e-2 for a, b in itertools.combinations(values, 2))
    padded = per.sum() / (4 * lengths.max())  # verl's seq-mean-token-sum-norm
    apart(padded, by_hand["dr_grpo"])


@pytest.mark.difference(
    method="GRPO",
    point="token mean under gradient accumulation",
    equation="DAPO, 2503.14476 eq. 8: Σ_tokens loss / Σ_tokens 1",
    ours="one quotient of the whole step: packing cannot change it",
    trl="dapo: one quotient; bnpo: mean of the micro-batches' quotients",
    halos="–",
    original="the paper's equation: one quotient per prompt's group",
)
def test_bnpo_averages_micro_batches(tmp_path):
    trained = llama(0)
    batch, logps, owner, lengths = rollout(trained)
    gain = torch.tensor([0.8, -0.2, 0.9, -0.1])
    whole = batch | {"advantages": gain}
    parts = [
        {k: v[rows] if v.ndim else v for k, v in whole.items()}
        for rows in (slice(0, 1), slice(1, 4))  # 4 tokens and 1 + 3 + 2 tokens
    ]
    loss = policy.clipped_surrogate(logps, gain[owner], **PLAIN).detach()
    weight, count = advantage.token_weights(lengths, normalizer="token", max_length=None)
    ours = (weight[owner] * loss).sum() / count
    theirs = {
        name: sum(map(grpo_loss(tmp_path, trained, batch, steps=2, loss_type=name, **CLIP), parts))
        for name in ("dapo", "bnpo")
    }
    equal(theirs["dapo"], ours)
    means = [loss[owner == 0].mean(), loss[owner > 0].mean()]
    equal(theirs["bnpo"], sum(means) / 2)
    apart(theirs["bnpo"], ours)


def trl_advantages(tmp_path, name: str, scores: list[float], **config) -> torch.Tensor:
    """Advantages of TRL's own training step for one prompt's completions with these scores."""
    trained = llama(0)
    seen = {}
    given = {"max_steps": 1, "shuffle_dataset": False, "save_strategy": "no", "disable_tqdm": True}
    given |= {"per_device_train_batch_size": len(scores), "num_generations": len(scores)}
    trainer = group_trainer(tmp_path, trained, name=name, **{"beta": 0.0} | given | config)
    compute = trainer.compute_loss

    def generate(input_ids, **_):
        made = torch.arange(len(scores) * 2).view(-1, 2) % 29 + 3
        return torch.cat([input_ids, made], 1)

    def looking(model, batch, **more):
        seen.update(batch)
        return compute(model, batch, **more)

    trainer.model.generate = generate
    trainer.reward_funcs = [lambda **_: scores]
    trainer.compute_loss = looking
    module = importlib.import_module(f"trl.trainer.{name.lower()}_trainer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "shuffle_sequence_dict", lambda batch: batch)
        trainer.train()
    return seen["advantages"]


@pytest.mark.difference(
    method="GRPO",
    point="standard deviation of a group",
    equation="2402.03300 §4.1.2: (R − mean) / std",
    ours="sample std (n − 1), + 1e-4; exactly 0 for equal rewards",
    trl="sample std, + 1e-4; equal rewards leave their rounding error / 1e-4",
    halos="population std (np.std), no ε: equal rewards give NaN",
    original="Dr.GRPO's code for GRPO: sample std + 1e-8; verl: sample std + 1e-6",
)
def test_grpo_standard_deviation(tmp_path):
    one_of_four = [1.0, 0.0, 0.0, 0.0]
    group = torch.zeros(4, dtype=torch.int64)
    theirs = trl_advantages(tmp_path, "GRPO", one_of_four)
    ours = advantage.group_advantages(
        torch.tensor(one_of_four), group, 1, kind="group_std", epsilon=1e-4
    )
    equal(ours, theirs)
    equal(ours[0], 0.75 / (0.5 + 1e-4))  # var = (0.75² + 3·0.25²)/3 = 0.25
    apart(ours[0], 0.75 / 0.4330127)  # population std: 1.73
    # In float32 (0.9 + 0.9 + 0.9) / 3 is not 0.9: 6e-8 too low, and TRL divides that by 1e-4.
    same = [0.9, 0.9, 0.9]
    noise = trl_advantages(tmp_path, "GRPO", same)
    exact = advantage.group_advantages(
        torch.tensor(same), group[:3], 1, kind="group_std", epsilon=1e-4
    )
    assert exact.tolist() == [0.0, 0.0, 0.0]
    equal(noise, [5.96e-4] * 3)
    assert float(noise.min()) > 1e-4  # every token of the group is pushed up


@pytest.mark.difference(
    method="GRPO",
    point="importance ratio on the KL term",
    equation="2402.03300 eq. 3: ρ-clipped surrogate − β·k3, k3 without a ratio",
    ours="k3 as in the paper; k2 and k3_gradient_k2 for the gradient of the KL",
    trl="k3 · ρ (use_bias_correction_kl=True by default)",
    halos="k3 of π/π_ref without a ratio",
    original="without a ratio",
)
def test_grpo_kl_correction(tmp_path):
    trained = llama(0)
    batch, logps, owner, lengths = rollout(trained)
    batch |= {"advantages": torch.zeros(4)}
    kl = divergence.token_kl(logps.new, logps.reference, estimator="k3").detach()
    ratio = policy.importance_ratio(logps).detach()
    given = {"loss_type": "grpo", "epsilon": 0.2, "beta": 0.5}
    default = grpo_loss(tmp_path, trained, batch, **given)(batch)
    plain = grpo_loss(tmp_path, trained, batch, use_bias_correction_kl=False, **given)(batch)
    weight, count = advantage.token_weights(lengths, normalizer="sequence", max_length=None)
    equal(0.5 * (weight[owner] * kl).sum() / count, plain)
    equal(0.5 * (weight[owner] * kl * ratio).sum() / count, default)
    apart(plain, default, by=1e-3)


@pytest.mark.difference(
    method="GRPO",
    point="k3 for a policy close to its reference, and far from it",
    equation="Schulman 2020: e^d − 1 − d = d²/2 + …, d = log π_ref − log π",
    ours="Taylor series below |d| = 0.05, the tangent of e^d beyond d = 20",
    trl="exp(d) − d − 1 in float32: noise near d = 3e-4, infinite at d = 89 and then NaN",
    halos="exp(d) − d − 1",
    original="–",
)
def test_k3_near_and_far(tmp_path):
    trained = llama(0)
    batch, logps, *_ = rollout(trained)
    new = batch["ref_per_token_logps"].clone()
    new[batch["completion_mask"].bool()] = logps.new.detach()
    near = batch | {"advantages": torch.zeros(4), "ref_per_token_logps": new + 3e-4}
    near["old_per_token_logps"] = new
    given = {"loss_type": "dapo", "epsilon": 0.2, "beta": 1.0}
    theirs = grpo_loss(tmp_path, trained, batch, **given)
    truth = math.expm1(3e-4) - 3e-4  # 4.5e-8
    ours = divergence.k3(torch.tensor([0.0]), torch.tensor([3e-4]))
    assert abs(float(ours) / truth - 1) < 1e-5
    assert abs(float(theirs(near)) / truth - 1) > 0.2
    far = near | {"ref_per_token_logps": new + 89}
    assert torch.isnan(theirs(far))  # ∞ at the tokens, and ∞ · 0 at the padding
    assert torch.isfinite(divergence.k3(torch.tensor([0.0]), torch.tensor([89.0]))).all()


@pytest.mark.difference(
    method="GRPO",
    point="which policies the clipped ratio compares",
    equation="2402.03300 eq. 3: π_θ / π_θ_old",
    ours="π over the policy that sampled",
    trl="the same",
    halos="π over the reference, on given completions (offline), ε = 0.01",
    original="π over the policy that sampled",
)
def test_the_ratio_is_to_the_sampling_policy(tmp_path):
    trained = llama(0)
    batch, logps, owner, _ = rollout(trained)
    theirs = grpo_loss(tmp_path, trained, batch, loss_type="dapo", **CLIP)
    ours = policy.clipped_surrogate(logps, GAIN[owner], **PLAIN).mean().detach()
    equal(theirs(batch | {"advantages": GAIN}), ours)
    halos = policy.clipped_surrogate(
        TokenLogps(logps.new, logps.reference), GAIN[owner], clip_low=0.01, clip_high=0.01
    )
    apart(halos.mean(), ours)


@pytest.mark.difference(
    method="GSPO",
    point="weight of a long completion",
    equation="2507.18071: 1/G Σ min(s·A, clip(s)·A), one term per completion",
    ours="one term per completion",
    trl="its term at every token: a long completion weighs more with dapo (default), not with grpo",
    halos="one term per completion (sequence_level), with the product as its ratio",
    original="one term per completion",
)
def test_gspo_is_not_a_token_mean(tmp_path):
    trained = llama(0)
    batch, logps, owner, lengths = rollout(trained)
    gain = torch.tensor([0.8, -0.2, 0.9, -0.1])
    ours = policy.sequence_surrogate(
        logps, gain, owner, lengths, **PLAIN, ratio="geometric_mean"
    ).detach()
    given = {"importance_sampling_level": "sequence", **CLIP}
    theirs = {
        name: grpo_loss(tmp_path, trained, batch, loss_type=name, **given)(
            batch | {"advantages": gain}
        )
        for name in ("grpo", "dapo")
    }
    equal(theirs["grpo"], ours.mean())
    equal(theirs["dapo"], (lengths * ours).sum() / lengths.sum())
    apart(theirs["dapo"], ours.mean())


# ------------------------------------------------------------------------------------------ RLOO


@pytest.mark.difference(
    method="RLOO",
    point="baseline and place of the KL term",
    equation="2402.14740 eq. 8: R_i − mean of the others, R = r − β·log(π/π_ref)",
    ours="leave_one_out of R with the k1 sum in it (kl_place=reward)",
    trl="the same; its GRPO puts k3 into the loss and divides by the std instead",
    halos="–",
    original="the same",
)
def test_rloo_advantages(tmp_path):
    scores = [1.0, 0.5, -0.25, 0.0]
    group = torch.zeros(4, dtype=torch.int64)
    one = advantage.group_advantages(
        torch.tensor(scores), group, 1, kind="leave_one_out", epsilon=0.0
    )
    equal(one[0], 1.0 - (0.5 - 0.25 + 0.0) / 3)
    equal(trl_advantages(tmp_path, "RLOO", scores), one)
    other = trl_advantages(tmp_path, "GRPO", scores)
    apart(other[0], one[0])
    mean = advantage.group_advantages(torch.tensor(scores), group, 1, kind="group_mean", epsilon=0)
    equal(one, 4 / 3 * mean)
    std = torch.tensor(scores).std()
    equal(other, mean / (std + 1e-4))


@pytest.mark.difference(
    method="RLOO",
    point="off-policy ratio and the scale of the loss",
    equation="2402.14740: REINFORCE, no ratio, no clip",
    ours="clipped product of the token ratios; Σ over completions / (C·L_max), as Dr.GRPO",
    trl="clipped product of the token ratios; mean over completions",
    halos="–",
    original="no ratio: one update per rollout",
)
def test_rloo_off_policy(tmp_path):
    trained = llama(0)
    batch, logps, owner, lengths = rollout(trained)
    trainer = group_trainer(tmp_path, trained, name="RLOO", epsilon=0.1, epsilon_high=0.25)
    old = (batch["old_per_token_logps"] * batch["completion_mask"]).sum(1)
    given = batch | {"advantages": GAIN, "old_logps": old}
    theirs = trainer.compute_loss(trainer.model, given).detach()
    terms = policy.sequence_surrogate(logps, GAIN, owner, lengths, **PLAIN, ratio="product")
    weight, count = advantage.token_weights(lengths, normalizer="constant", max_length=6)
    equal((weight * terms).sum().detach() / count, theirs / 6)
    log_ratio = torch.zeros(4).index_add(0, owner, (logps.new - logps.old).detach())
    equal(
        terms.detach(),
        torch.maximum(-GAIN * log_ratio.exp(), -GAIN * log_ratio.exp().clamp(0.9, 1.25)),
    )
    apart(theirs, -GAIN.mean())  # what REINFORCE's value would be at ρ = 1


# ------------------------------------------------------------------------------------------- KL


@pytest.mark.difference(
    method="KL estimators",
    point="clamping the log-ratio of every token at 0",
    equation="KL(π‖π_ref) = E_π[log π − log π_ref]",
    ours="k1 is never clamped",
    trl="never clamped (RLOO)",
    halos="–",
    original="AlpacaFarm: clamp(log π − log π_ref, min=0), biased upwards",
)
def test_a_clamped_kl_is_not_a_kl():
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ref = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    new, reference = pi.log(), ref.log()
    exact = float((pi * (new - reference)).sum())  # 0.5·log 1.25 + 0.3·log 0.75 = 0.0253
    equal((pi * divergence.k1(new, reference)).sum(), exact)
    equal((pi * divergence.k3(new, reference)).sum(), exact)
    clamped = float((pi * divergence.k1(new, reference).clamp(min=0)).sum())  # 0.1116
    assert clamped > 4 * exact
    apart((pi * divergence.k2(new, reference)).sum(), exact, by=1e-4)  # k2: biased in value


@pytest.mark.difference(
    method="KL estimators",
    point="gradient of the term in the loss, on-policy",
    equation="∇KL = E[(log π − log π_ref)·∇log π]",
    ours="k3 (GRPO's), k2, k3_gradient_k2; k1 in the loss is refused",
    trl="k3 · ρ: the gradient of the KL at ρ = 1",
    halos="k3 of π/π_ref",
    original="GRPO: k3, whose gradient is that of KL(π_ref‖π)",
)
def test_which_gradient_a_kl_estimator_has():
    logits = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    new = logits.log_softmax(0)
    pi = new.detach().exp()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    true = gradient((new.exp() * (new - reference)).sum())
    other = gradient((reference.exp() * (reference - new)).sum())  # of KL(π_ref‖π)
    found = {
        name: gradient((pi * divergence.token_kl(new, reference, estimator=name)).sum())
        for name in ("k1", "k2", "k3", "k3_gradient_k2")
    }
    equal(found["k1"], torch.zeros(3))
    equal(found["k2"], true)
    equal(found["k3_gradient_k2"], true)
    equal(found["k3"], other)
    assert float((true - other).abs().max()) > 0.01
    ratio = policy.importance_ratio(TokenLogps(new, new.detach()))
    equal(gradient((pi * ratio * divergence.k3(new, reference)).sum()), true)  # TRL's


# ------------------------------------------------------------------------------------------- PPO


@pytest.mark.difference(
    method="PPO",
    point="where the KL penalty goes",
    equation="Ziegler 2019: r_t = −β·(log π_old − log π_ref)_t + 1[t = T]·R",
    ours="in the reward of every token, k1, from the rollout",
    trl="no PPO in 1.16 (removed in pull request 7020)",
    halos="in the loss, against the reference, on given completions",
    original="in the reward of every token, k1",
)
def test_ppo_penalty_is_in_the_reward():
    import trl

    assert not hasattr(trl, "PPOTrainer")
    assert importlib.util.find_spec("trl.experimental.ppo") is None
    old, ref = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.8, -0.5])
    rewards = token_rewards(torch.tensor([2.0]), old, ref, 0.1, torch.tensor([3]))
    equal(rewards, [-0.05, 0.02, 2.0])
    # Its effect is an advantage: with γ = λ = 1 and V = 0 every token sees the KL still to come.
    advantages, _ = advantage.gae(
        rewards, torch.zeros(3), torch.zeros(3, dtype=torch.int64), gamma=1.0, lam=1.0
    )
    equal(advantages, [1.97, 2.02, 2.0])
    # In the loss it would be a number per token that no other token hears of.
    in_loss = 2.0 - 0.1 * (old - ref)
    apart(in_loss[0], advantages[0])


@pytest.mark.difference(
    method="PPO",
    point="whitening of advantages",
    equation="(A − mean)/√(var + ε)",
    ours="population variance, over all tokens of the iteration",
    trl="no PPO in 1.16; the removed one: sample variance, per process",
    halos="over the micro-batch of given completions",
    original="Ziegler 2019, N+: population variance, per process",
)
def test_ppo_whitening():
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-3.0, 1.0])
    moments = advantage.moments(a) + advantage.moments(b)
    mean, variance = advantage.mean_variance(moments)
    equal(mean, 1.0)
    equal(variance, (0 + 1 + 9 + 16 + 0) / 5)  # 5.2; Bessel's correction would give 6.5
    ours = advantage.whiten(torch.cat([a, b]), mean, variance, shift_mean=True, epsilon=1e-8)
    equal(ours, (torch.cat([a, b]) - 1) / math.sqrt(5.2))
    bessel = (torch.cat([a, b]) - 1) / math.sqrt(6.5)
    apart(bessel[2], ours[2], by=0.1)
    alone = (a - a.mean()) / a.std(unbiased=False)  # each process by itself: 1.0 turns negative
    assert alone[0] < 0
    equal(ours[0], 0.0)


@pytest.mark.difference(
    method="PPO",
    point="value loss",
    equation="½·max((V − G)², (V_old + clip(V − V_old, ±ε) − G)²), G = A + V_old",
    ours="the same, times value_coef",
    trl="no PPO in 1.16; the removed one: the same",
    halos="½·(V − discounted rewards)², not GAE's returns, not clipped",
    original="Ziegler 2019: the same, coefficient 0.1",
)
def test_ppo_value_loss():
    value, old, returns = (torch.tensor([x]) for x in (1.0, 0.2, 0.9))
    # V_old + clip(0.8, ±0.2) = 0.4: the step is too far, so the larger error counts: ½·0.5²
    equal(policy.clipped_value(value, old, returns, clip=0.2), [0.125])
    unclipped = 0.5 * float((value - returns) ** 2)  # ½·0.1²
    apart(unclipped, 0.125)
    # G with λ < 1 is not the discounted reward that HALOs' critic regresses on.
    rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.4, 0.1])
    owner = torch.zeros(2, dtype=torch.int64)
    _, found = advantage.gae(rewards, values, owner, gamma=1.0, lam=0.5)
    # δ = [0 + 0.1 − 0.4, 1 − 0.1] = [−0.3, 0.9]; A = [−0.3 + 0.45, 0.9]; G = A + V
    equal(found, [0.55, 1.0])
    apart(found[0], 1.0)


# --------------------------------------------------------------------------------------- best of n


@pytest.mark.difference(
    method="best-of-n",
    point="KL to the sampling policy",
    equation="2009.01325 App. G.3: log n − (n − 1)/n",
    ours="the formula, named a bound: exact only when no two completions tie",
    trl="–",
    halos="–",
    original="Stiennon 2020: stated as the KL",
)
def test_the_kl_of_best_of_n_is_a_bound():
    def exact(share: float, cells: int, n: int) -> float:
        """KL of the best of n among ``cells`` equally likely, strictly ordered answers."""
        edges = torch.arange(cells + 1, dtype=torch.float64) * share
        best = edges[1:] ** n - edges[:-1] ** n
        return float((best * (best / share).log()).sum())

    for n in (2, 4, 16):
        bound = divergence.best_of_n_kl(n)
        equal(bound, math.log(n) - (n - 1) / n)
        assert abs(exact(1e-4, 10_000, n) - bound) < 1e-3  # nearly continuous
        assert exact(0.25, 4, n) < bound - 0.01  # four answers: the formula reads too high
    # Two answers, n large: at most log 2, whatever the formula says.
    assert exact(0.5, 2, 64) == pytest.approx(math.log(2), abs=1e-6)
    assert divergence.best_of_n_kl(64) > 3
