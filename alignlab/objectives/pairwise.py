"""Preference objectives over pairs (better, worse): one loss per pair.

Notation: ``lr(y) = log π(y|x) − log π_ref(y|x)`` summed over the completion's tokens (EOS
included), ``h = lr(y_w) − lr(y_l)``, ``|y|`` the number of completion tokens. At π = π_ref, h = 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from alignlab import lazy
from alignlab.objectives.bounds import FlipRate, NonNegative, Positive
from alignlab.objectives.declaration import called
from alignlab.objectives.stable import log1mexp
from alignlab.tensors import PairLogps

if TYPE_CHECKING:
    import torch.nn.functional as F
    from torch import Tensor
else:
    F = lazy.module("torch.nn.functional")


def log_ratios(policy: PairLogps, reference: PairLogps) -> tuple[Tensor, Tensor]:
    """``lr(y_w), lr(y_l)``: summed log-ratios to the reference, nats, (B,) each."""
    return policy.chosen - reference.chosen, policy.rejected - reference.rejected


def mean_logps(policy: PairLogps) -> tuple[Tensor, Tensor]:
    """``lp(y_w)/|y_w|, lp(y_l)/|y_l|``: mean log-probs of the tokens, nats, (B,) each."""
    return policy.chosen / policy.chosen_length, policy.rejected / policy.rejected_length


@called("DPO")
def dpo(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, label_smoothing: FlipRate
) -> Tensor:
    """Logistic loss on the difference of implicit rewards (DPO; conservative DPO when smoothed).

    ``loss = −(1 − ε)·log σ(βh) − ε·log σ(−βh)``

    DPO, 2305.18290 eq. 7 (ε = 0); cDPO: Mitchell 2023, "A note on DPO with noisy preferences".
    Log-probs are *sums*. TRL 1.16's ``sigmoid`` agrees at ε = 0 and silently ignores
    ``label_smoothing``; the authors' code and open-instruct agree for every ε.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, 1/nats; the optimum tilts by exp(r/β), so
            a small β lets the policy move far.
        label_smoothing: ε in [0, ½), believed share of flipped labels; above 0 the loss has
            its minimum at the finite ``βh = log((1 − ε)/ε)``.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    logits = beta * (chosen - rejected)
    keep = 1 - label_smoothing
    return -keep * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


@called("rDPO")
def robust_dpo(
    policy: PairLogps, reference: PairLogps, *, beta: Positive, label_smoothing: FlipRate
) -> Tensor:
    """DPO whose expectation under flipped labels equals the loss on clean labels (rDPO).

    ``loss = [ −(1 − ε)·log σ(βh) + ε·log σ(−βh) ] / (1 − 2ε)``

    Ray Chowdhury et al., "Provably Robust DPO", 2403.00409 §3.1. Unbiased for a true flip rate ε,
    but unbounded below for single pairs that look flipped, hence noisier than cDPO. TRL's
    ``robust`` is the same.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, as in `dpo`.
        label_smoothing: ε in [0, ½), the rate at which the annotator flips a label.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    logits = beta * (chosen - rejected)
    clean = -(1 - label_smoothing) * F.logsigmoid(logits)
    flipped = -label_smoothing * F.logsigmoid(-logits)
    return (clean - flipped) / (1 - 2 * label_smoothing)


@called("DPO-norm")
def dpo_norm(policy: PairLogps, reference: PairLogps, *, beta: Positive) -> Tensor:
    """DPO on log-ratios per token, so that long answers do not weigh more.

    ``loss = −log σ(β·[lr(y_w)/|y_w| − lr(y_l)/|y_l|])``

    Tülu 3, 2411.15124 (length-normalised DPO). β acts on a *mean*, so its useful range
    (2–10) cannot be compared with `dpo`'s. TRL's ``sigmoid_norm`` is the same.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference per token.

    Returns:
        (B,) loss per pair; log 2 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    gap = chosen / policy.chosen_length - rejected / policy.rejected_length
    return -F.logsigmoid(beta * gap)


@called("IPO")
def ipo(
    policy: PairLogps, reference: PairLogps, *, tau: Positive, normalize: Literal["sum", "mean"]
) -> Tensor:
    """Squared distance of the log-ratio gap to the fixed target 1/(2τ).

    ``loss = (h − 1/(2τ))²``, h of sums or of means per token

    IPO (ΨPO), 2310.12036 eq. 17. The gap has a finite target, so deterministic preferences do not
    drive the policy to a point mass as they do in DPO. **Two conventions are in use**: the paper
    writes sequence probabilities and the DPO authors' code, OpenRLHF and N+ *sum*; TRL
    (``loss_type="ipo"``) and HALOs take the *mean* per token, on the authors' word that the paper's
    results used it. They have different optima: name the one in use in every table.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        reference: the same under the frozen reference.
        tau: regularisation, 1/nats; the gap is pulled to 1/(2τ) nats (per token when ``mean``).
        normalize: ``sum`` over tokens, or ``mean`` over each completion's tokens.

    Returns:
        (B,) loss per pair; 1/(4τ²) at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    if normalize == "mean":
        chosen, rejected = chosen / policy.chosen_length, rejected / policy.rejected_length
    elif normalize != "sum":
        raise ValueError(f"normalize must be 'sum' or 'mean', not {normalize!r}")
    return (chosen - rejected - 1 / (2 * tau)).square()


@called("ORPO")
def orpo(policy: PairLogps, *, weight: NonNegative) -> Tensor:
    """Likelihood of the chosen answer plus a log-odds-ratio penalty; no reference model.

    ``loss = −p_w + λ·[ −log σ(log odds_w − log odds_l) ]``, ``p = log π(y|x)/|y|``,
    ``log odds = p − log(1 − eᵖ)``

    ORPO, 2403.07691 eq. 7 (odds ratio: eq. 4). P(y|x) is the *geometric mean* of the token
    probabilities. The likelihood term is the mean over this pair's chosen *completion* tokens; TRL
    (which calls λ ``beta``) takes it over prompt and completion tokens pooled over the micro-batch.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        weight: λ ≥ 0, weight of the odds-ratio term against the likelihood.

    Returns:
        (B,) loss per pair.
    """
    chosen, rejected = mean_logps(policy)
    log_odds = (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))
    return -chosen - weight * F.logsigmoid(log_odds)


@called("SimPO")
def simpo(policy: PairLogps, *, beta: Positive, gamma_beta_ratio: NonNegative) -> Tensor:
    """Logistic loss on mean log-probs with a target margin; no reference model.

    ``loss = −log σ(β·[lp(y_w)/|y_w| − lp(y_l)/|y_l| − γ/β])``

    SimPO, 2405.14734 eq. 6 (γ = β · ``gamma_beta_ratio``, as in the authors' code and HALOs). TRL's
    CPO trainer takes γ itself (``simpo_gamma``) and adds an NLL term unless ``cpo_alpha=0``.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        beta: scale of the mean log-probs; 2–10, larger than DPO's because means are small.
        gamma_beta_ratio: target margin in nats per token between chosen and rejected.

    Returns:
        (B,) loss per pair.
    """
    chosen, rejected = mean_logps(policy)
    return -F.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))


@called("DPO-hinge")
def hinge(policy: PairLogps, reference: PairLogps, *, beta: Positive) -> Tensor:
    """Hinge loss on the difference of implicit rewards (the support-vector form of DPO).

    ``loss = max(0, 1 − βh)``

    RSO, 2309.06657 (hinge-norm; their γ is our β). A pair stops teaching once βh ≥ 1. TRL's
    ``hinge`` is the same; RSO's rejection sampling of the pairs is data, not loss.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        reference: the same under the frozen reference.
        beta: scale; the gap stops mattering at 1/β nats.

    Returns:
        (B,) loss per pair; 1 at policy = reference.
    """
    chosen, rejected = log_ratios(policy, reference)
    return F.relu(1 - beta * (chosen - rejected))


@called("SLiC")
def slic(policy: PairLogps, *, delta: NonNegative, weight: NonNegative) -> Tensor:
    """Sequence-likelihood calibration: a margin on log-probs, plus likelihood; no reference model.

    ``loss = max(0, δ − lp(y_w) + lp(y_l)) − λ·lp(y_w)``

    SLiC-HF, 2305.10425 §2, whose regulariser is the likelihood of the SFT target; a preference pair
    has none, so the chosen answer stands in for it, as in HALOs (whose trainer adds (B,) to (B,T)
    by mistake). Log-probs are sums. TRL only has the reference-normalised `hinge`.

    Args:
        policy: (B,) summed log-probs of the trained policy.
        delta: margin in nats that the chosen log-prob shall have over the rejected one.
        weight: λ ≥ 0, weight of the likelihood of the chosen answer.

    Returns:
        (B,) loss per pair.
    """
    calibration = F.relu(delta - (policy.chosen - policy.rejected))
    return calibration - weight * policy.chosen


def accuracy(better: Tensor, worse: Tensor) -> Tensor:
    """1 where better > worse, ½ where equal, 0 where below; (B,).

    The half makes an untrained policy read ½; TRL counts ties as wrong, and so starts at 0.
    """
    return ((better - worse).sign() + 1) / 2


def pair_metrics(policy: PairLogps, reference: PairLogps | None) -> dict[str, Tensor]:
    """Collect what every pairwise method reports, in nats and tokens whatever its loss.

    ``margin`` and ``accuracy`` compare log-ratios when there is a reference, else summed log-probs.
    Chosen and rejected log-probs stand apart because both may fall while the margin grows. No
    gradient flows.

    Args:
        policy: (B,) summed log-probs and lengths of the trained policy.
        reference: the same under the frozen reference, or None for reference-free objectives.

    Returns:
        metric name to (B,), unreduced.
    """
    chosen, rejected = policy.chosen.detach(), policy.rejected.detach()
    metrics = {
        "chosen_logp": chosen,
        "rejected_logp": rejected,
        "chosen_length": policy.chosen_length.to(chosen.dtype),
        "rejected_length": policy.rejected_length.to(chosen.dtype),
    }
    if reference is not None:
        chosen, rejected = chosen - reference.chosen, rejected - reference.rejected
        metrics |= {"chosen_log_ratio": chosen, "rejected_log_ratio": rejected}
    return metrics | {"margin": chosen - rejected, "accuracy": accuracy(chosen, rejected)}
