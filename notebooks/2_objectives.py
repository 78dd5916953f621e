# %% [markdown]
# # The objectives as pictures
#
# A method is a pure function over the completions of one prompt. Here each is called, not re-typed: the functions come from
# `alignlab.objectives`, their hyperparameters from `conf/objective`, and the gradients from autograd.

# %%
import math

import matplotlib.pyplot as plt
import torch

from alignlab.compose import compose
from alignlab.objectives.advantage import group_advantages, token_weights
from alignlab.objectives.declaration import declaration
from alignlab.objectives.divergence import k1, k2, k3
from alignlab.objectives.policy import clipped_surrogate
from alignlab.objectives.unpaired import kto
from alignlab.spec import Spec, function
from alignlab.tensors import PairLogps, SingleLogps, TokenLogps

plt.rcParams.update({"figure.dpi": 72, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3})


def objective(name):
    """A preference objective with the hyperparameters of conf/objective."""
    return function(Spec.from_node(compose([f"objective={name}"])["objective"], "objective"))


# %% [markdown]
# ## Preference losses against the margin
#
# The margin is how much more the policy has moved towards the chosen answer than towards the rejected one:
# $m = \log\frac{\pi(y_w)}{\pi_{ref}(y_w)} - \log\frac{\pi(y_l)}{\pi_{ref}(y_l)}$, in nats, summed over 20 tokens; both answers
# start at −40 nats. What matters for training is the slope: how hard a pair still pulls.

# %%
TOKENS, START = torch.tensor(20.0), -40.0


def over_margin(name, margin):
    """Loss and gradients with respect to both log-probabilities, for pairs of a given margin."""
    loss_of = objective(name)
    chosen = (START + margin / 2).requires_grad_()
    rejected = (START - margin / 2).requires_grad_()
    length = TOKENS.expand_as(margin)
    policy = PairLogps(chosen, rejected, length, length)
    start = torch.full_like(margin, START)
    reference = (PairLogps(start, start, length, length),) if declaration(loss_of).needs_reference else ()
    loss = loss_of(policy, *reference)
    return loss.detach(), *torch.autograd.grad(loss.sum(), (chosen, rejected))


names = ["dpo", "cdpo", "rdpo", "ipo", "hinge", "slic", "simpo", "orpo"]
margin = torch.linspace(-40, 120, 401)
figure, axes = plt.subplots(2, 4, figsize=(12, 5), layout="constrained", sharex=True)
for ax, name in zip(axes.flat, names, strict=True):
    loss, chosen, rejected = over_margin(name, margin)
    ax.plot(margin, loss / loss.abs().max(), color="#444", label="loss (of its largest)")
    scale = max(chosen.abs().max(), rejected.abs().max())
    ax.plot(margin, -chosen / scale, color="#2a7", label="pull up the chosen")
    ax.plot(margin, rejected / scale, color="#c43", linestyle="--", label="push down the rejected")
    ax.axvline(0, color="#999", linewidth=0.6)
    ax.set_title(f"{name}, largest slope {scale:.2g}", loc="left", fontweight="bold")
for ax in axes[1]:
    ax.set_xlabel("margin, nats")
axes[0, 0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# DPO's pull fades once a pair is ordered but never ends. cDPO and IPO have a margin at which they are content, and pull back
# beyond it: IPO at $1/(2\tau)$, here 5 nats per token. Hinge and SLiC stop at a fixed margin, and SLiC then only imitates. rDPO's
# loss is unbounded below: it never lets go. SimPO and ORPO need no reference; ORPO raises the chosen answer far more than it lowers
# the rejected one, because it is a likelihood loss first.

# %% [markdown]
# ## KTO: a value function around a reference point
#
# KTO sees one completion and a thumb. Its value saturates on both sides, as people's does, and where it is steepest is set by
# $z_0$, the batch's estimate of the KL divergence, not by the pair's other answer.

# %%
ratio = torch.linspace(-60, 60, 241)
settings = objective("kto").keywords
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for point, style in ((0.0, "-"), (20.0, "--")):
    for thumb, colour in ((True, "#2a7"), (False, "#c43")):
        x = ratio.clone().requires_grad_()
        policy = SingleLogps(START + x, TOKENS.expand_as(x), torch.full_like(x, thumb, dtype=torch.bool))
        reference = SingleLogps(torch.full_like(x, START), policy.length, policy.desirable)
        loss = kto(policy, reference, torch.tensor(point), **settings)
        [slope] = torch.autograd.grad(loss.sum(), x)
        name = f"thumb {'up' if thumb else 'down'}, $z_0$ = {point:.0f}"
        left.plot(ratio, loss.detach(), color=colour, linestyle=style, label=name)
        right.plot(ratio, -slope, color=colour, linestyle=style)
left.set(title="KTO's loss", xlabel="log-ratio of the completion, nats")
right.set(title="and its pull (above 0: make it likelier)", xlabel="log-ratio of the completion, nats")
left.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## PPO: where the clip takes the gradient away
#
# The importance ratio $\rho = \pi_{new}/\pi_{old}$ is 1 when the minibatch is fresh. A good token (advantage +1) stops teaching above
# $1+\varepsilon$, a bad one below $1-\varepsilon$; in the other direction nothing is clipped, so a mistake can always be undone. DAPO's
# *clip-higher* moves only the upper bound.

# %%
rho = torch.linspace(0.4, 1.8, 281)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for ax, advantage in zip(axes, (1.0, -1.0), strict=True):
    for (low, high), name, colour in (((0.2, 0.2), "PPO, ε = 0.2", "#36c"), ((0.2, 0.28), "DAPO, ε = 0.2 and 0.28", "#e80"), ((0.2, math.inf), "no upper clip", "#999")):
        new = rho.log().requires_grad_()
        loss = clipped_surrogate(TokenLogps(new, torch.zeros_like(new)), torch.full_like(rho, advantage), clip_low=low, clip_high=high)
        [slope] = torch.autograd.grad(loss.sum(), new)
        ax.plot(rho, -slope, color=colour, label=name, linewidth=2.5 if name.startswith("PPO") else 1.2)
    ax.set(title=f"advantage {advantage:+.0f}", xlabel="ρ")
axes[0].set_ylabel("gradient on log π (above 0: likelier)")
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## GRPO: against whom, and divided by what
#
# Left: the advantage of a success when a share of the group's eight completions succeeds. Dividing by the group's standard
# deviation (GRPO) makes the rare outcome count most: the one success at a hopeless prompt and, by symmetry, the one failure at
# an almost solved one. Dr.GRPO and RLOO do not divide. A group that all fails or all succeeds teaches nothing.
#
# Right: the weight of a whole completion in the loss of a step, by its length. With `sequence` every completion counts the same, so each
# token of a long wrong answer is punished less, and answers grow; with `token` and `constant` every token counts the same.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
successes = torch.arange(1, 8)
for kind, name in (("group_std", "GRPO"), ("group_mean", "Dr.GRPO"), ("leave_one_out", "RLOO")):
    rewards = (torch.arange(8) < successes[:, None]).float()
    group = torch.arange(7).repeat_interleave(8)
    advantages = group_advantages(rewards.flatten(), group, 7, kind=kind, epsilon=1e-4)
    left.plot(successes / 8, advantages.view(7, 8)[:, 0], "o-", markersize=4, label=f"{name} ({kind})")
left.set(title="Advantage of a success", xlabel="share of the group that succeeds")
left.legend(frameon=False, fontsize=8)

lengths = torch.arange(1, 129)
for normalizer in ("sequence", "token", "constant"):
    weight, count = token_weights(lengths, normalizer=normalizer, max_length=128)
    right.plot(lengths, weight * lengths / count * len(lengths), label=normalizer)
right.set(title="Weight of a completion in the step", xlabel="its tokens")
right.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## Three estimators of one divergence
#
# Per token, from a sample of the policy. k1 is unbiased and may be negative; k2 is never negative but biased; k3 is both unbiased
# and never negative. Their gradients, when used as a loss, are something else again: only k2's points where the true KL's does.

# %%
ratio = torch.linspace(-2, 2, 201)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for estimator, name in ((k1, "k1"), (k2, "k2"), (k3, "k3")):
    new = ratio.clone().requires_grad_()
    value = estimator(new, torch.zeros_like(new))
    [slope] = torch.autograd.grad(value.sum(), new)
    left.plot(ratio, value.detach(), label=name)
    right.plot(ratio, slope, label=name)
left.set(title="Estimate", xlabel="log π − log π_ref of the token")
right.set(title="Gradient on log π", xlabel="log π − log π_ref of the token")
left.legend(frameon=False)
plt.show()
