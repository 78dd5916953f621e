"""Learned proxies of a known reward, and exact policies against them: over-optimisation alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from closed_forms import tilted
from torch import Tensor, nn

from alignlab.objectives import ranking
from alignlab.rewards.ensemble import Ensemble
from alignlab.tensors import GroupScores

ARMS, FEATURES, MEMBERS = 4000, 8, 5
COMPARISONS = (100, 400, 1600, 6400)
BETAS = np.geomspace(10.0, 0.03, 30)
ROOTS = np.linspace(0.1, 2.6, 26)  # of the KL, where the curves of all seeds are read
WORLDS = {"seen": 1.0, "rarely seen": 1.6}  # spread of the arms, that of the reference being 1
COMBINE = {
    "single": None,
    "mean of 5": Ensemble(combine="mean", penalty=0.0),
    "min of 5": Ensemble(combine="min", penalty=0.0),
    "mean − λ·variance of 5": Ensemble(combine="uwo", penalty=0.5),
}


def curves(seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Gold and proxy along √KL: every world, seed, number of comparisons and way to combine."""
    rows = []
    for seed, (arms, spread) in itertools.product(seeds, WORLDS.items()):
        features, gold, reference = world(seed, spread)
        for count in COMPARISONS:
            better, worse = comparisons(gold, reference, count, seed)
            members = torch.stack(
                [
                    trained(features, reference, better, worse, seed * 100 + m)
                    for m in range(MEMBERS)
                ]
            )
            for name, combine in COMBINE.items():
                proxy = (members[0] if combine is None else combine(members)).double().numpy()
                what = {"arms": arms, "seed": seed, "comparisons": count, "reward": name}
                rows.append({**what, **along(gold, proxy, reference)})
    return rows


def world(seed: int, spread: float) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Features (ARMS, FEATURES), gold rewards (ARMS,) of a random network, and the reference.

    Arms are drawn from N(0, spread²) per feature, and the reference weighs them so that it is
    N(0, 1): with a spread above 1 most arms are answers that it hardly ever gives.
    """
    torch.manual_seed(seed)
    features = spread * torch.randn(ARMS, FEATURES)
    squares = features.double().square().sum(dim=1).numpy()
    reference = np.exp(-squares * (1 - 1 / spread**2) / 2)
    reference /= reference.sum()
    network = nn.Sequential(nn.Linear(FEATURES, 64), nn.Tanh(), nn.Linear(64, 1))
    with torch.no_grad():
        network[0].weight.normal_(0.0, 1.0)
        gold = network(features)[:, 0].double().numpy()
    return features, standardised(gold, reference), reference


def standardised(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The same with mean 0 and deviation 1 under the reference."""
    mean = reference @ values
    return (values - mean) / np.sqrt(reference @ (values - mean) ** 2)


def comparisons(
    gold: np.ndarray, reference: np.ndarray, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Pairs of arms drawn from the reference; P(i over j) = σ(gold_i − gold_j)."""
    source = np.random.default_rng([seed, count])
    pairs = source.choice(ARMS, (count, 2), p=reference)
    gap = gold[pairs[:, 0]] - gold[pairs[:, 1]]
    flip = source.random(count) > 1 / (1 + np.exp(-gap))
    pairs[flip] = pairs[flip][:, ::-1]
    return torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1])


def trained(
    features: Tensor, reference: np.ndarray, better: Tensor, worse: Tensor, seed: int
) -> Tensor:
    """Scores (ARMS,) of a small network after Bradley–Terry training, standardised."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    each = torch.arange(min(len(better), 256))
    order = torch.Generator().manual_seed(seed)
    for _ in range(400):
        rows = torch.randperm(len(better), generator=order)[: len(each)]
        arms = torch.cat([better[rows], worse[rows]])
        scores = network(features[arms])[:, 0]
        groups = GroupScores(scores, each, each + len(each), each, len(each))
        loss = ranking.bradley_terry(groups, centering=0.01).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = network(features)[:, 0].double().numpy()
    return torch.from_numpy(standardised(scores, reference))


def along(gold: np.ndarray, proxy: np.ndarray, reference: np.ndarray) -> dict[str, list[float]]:
    """Expected gold and proxy of the optimal policies π_ref e^{proxy/β}/Z at common √KL."""
    roots, golds, scores = [0.0], [float(reference @ gold)], [float(reference @ proxy)]
    for beta in BETAS:
        best = tilted(reference, proxy, float(beta))
        held = best > 0
        roots.append(float((best[held] * np.log(best[held] / reference[held])).sum() ** 0.5))
        golds.append(float(best @ gold))
        scores.append(float(best @ proxy))
    return {
        "gold": np.interp(ROOTS, roots, golds).round(3).tolist(),
        "proxy": np.interp(ROOTS, roots, scores).round(3).tolist(),
    }
