"""Closed forms on bandits through the objectives that the stages train with. See README.md.

``python experiments/01_bandit_theory/run.py`` writes results.json and the figures beside it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "tests"), str(ROOT)]

import figures  # noqa: E402 (after the path)
import proxies  # noqa: E402
import torch  # noqa: E402
from closed_forms import distance, minimise, one_pair, reversed_tilt, tilted  # noqa: E402
from torch import Tensor  # noqa: E402

from alignlab.objectives import divergence, pairwise, policy  # noqa: E402
from alignlab.tensors import TokenLogps  # noqa: E402

SEEDS = range(10)
ARMS, BETAS = 10, (0.25, 0.5, 1.0)


def bandit(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and reference of a random bandit, (ARMS,) each."""
    source = np.random.default_rng(seed)
    return source.normal(size=ARMS), source.dirichlet(np.full(ARMS, 2.0))


def online(reward: np.ndarray, reference: np.ndarray, beta: float, term: str) -> np.ndarray:
    """Policy at the end of exact policy gradients through the clipped surrogate.

    ``term`` is ``reward`` (PPO, RLOO: −β·k1 in the reward) or an estimator of the KL in the loss.
    Every arm is one token, weighted with the probability that the sampling policy gives it.
    """
    r = torch.from_numpy(reward)
    ref = torch.from_numpy(reference).log()
    logits = ref.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 3000)
    for _ in range(3000):
        old = logits.detach().log_softmax(0)
        shaped = r - beta * divergence.k1(old, ref) if term == "reward" else r
        gain = shaped - (old.exp() * shaped).sum()
        new = logits.log_softmax(0)
        token = TokenLogps(new=new, old=old, reference=ref)
        loss = policy.clipped_surrogate(token, gain, clip_low=0.2, clip_high=0.2)
        if term != "reward":
            loss = loss + beta * divergence.token_kl(new, ref, estimator=term)  # type: ignore[arg-type]
        optimizer.zero_grad()
        (old.exp() * loss).sum().backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(0).numpy()


def offline(reward: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """Where DPO ends on every ordered pair, weighted with its Bradley–Terry probability."""
    ref = torch.from_numpy(reference).log()
    pairs = [(a, b) for a in range(ARMS) for b in range(ARMS) if a != b]
    chosen, rejected = (torch.tensor(side) for side in zip(*pairs, strict=True))
    gaps = torch.from_numpy(reward)
    weight = torch.sigmoid(gaps[chosen] - gaps[rejected])

    def loss(logps: Tensor) -> Tensor:
        def side(values: Tensor) -> Any:
            ones = torch.ones(len(pairs))
            return type(one_pair(values))(values[chosen], values[rejected], ones, ones)

        losses = pairwise.dpo(side(logps), side(ref), beta=beta, label_smoothing=0.0)
        return (weight * losses).sum()

    return minimise(loss, ref).exp().numpy()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q) in nats."""
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())


def optima() -> list[dict[str, Any]]:
    """Part 1: where four objectives end, against both closed forms."""
    rows = []
    for seed in SEEDS:
        reward, reference = bandit(seed)
        for beta in BETAS:
            forward, reverse = (f(reference, reward, beta) for f in (tilted, reversed_tilt))
            found = {
                "PPO (KL in the reward)": online(reward, reference, beta, "reward"),
                "GRPO, k3_gradient_k2": online(reward, reference, beta, "k3_gradient_k2"),
                "GRPO, k3": online(reward, reference, beta, "k3"),
                "DPO": offline(reward, reference, beta),
            }
            for method, end in found.items():
                rows.append(
                    {
                        "seed": seed,
                        "beta": beta,
                        "method": method,
                        "from_tilted": distance(end, forward),
                        "from_reversed": distance(end, reverse),
                        "reward": float(end @ reward),
                        "kl": kl(end, reference),
                        "reward_at_equal_kl": at_kl(reward, reference, kl(end, reference)),
                    }
                )
    return rows


def at_kl(reward: np.ndarray, reference: np.ndarray, budget: float) -> float:
    """Highest expected reward of any policy at that KL: a tilted reference, β by bisection."""
    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = (low * high) ** 0.5
        if kl(tilted(reference, reward, middle), reference) > budget:
            low = middle
        else:
            high = middle
    return float(tilted(reference, reward, high) @ reward)


def certain() -> list[dict[str, Any]]:
    """Part 2: two arms, one always preferred; the probability of that one over gradient steps."""
    uniform = torch.full((2,), 0.5, dtype=torch.float64).log()
    rows = []
    for method in ("DPO", "IPO"):
        for strength in (0.1, 0.5, 1.0):
            logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)

            def loss(logps: Tensor, method: str = method, strength: float = strength) -> Tensor:
                pair, reference = one_pair(logps), one_pair(uniform)
                if method == "DPO":
                    return pairwise.dpo(pair, reference, beta=strength, label_smoothing=0.0).sum()
                return pairwise.ipo(pair, reference, tau=strength, normalize="sum").sum()

            optimizer = torch.optim.SGD([logits], lr=0.1)
            curve, shown = [], {round(x) for x in np.geomspace(1, 20_000, 60)}
            for step in range(20_001):
                value = loss(logits.log_softmax(0))
                if step in shown:
                    curve.append([step, round(float(logits.detach().softmax(0)[0]), 6)])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            rows.append(
                {
                    "method": method,
                    "strength": strength,
                    "limit": 1 / (1 + np.exp(-1 / (2 * strength))) if method == "IPO" else 1.0,
                    "minimum": float(minimise(loss, torch.zeros(2))[0].exp()),
                    "curve": curve,
                }
            )
    return rows


def best_of_n() -> list[dict[str, Any]]:
    """Part 3: exact KL of best of n over equally likely arms with distinct rewards."""
    rows = []
    for arms in (10, 100, 1000, 10_000, 100_000):
        below = np.arange(arms + 1) / arms
        for n in (1, 2, 4, 8, 16, 32, 64, 128):
            # the best of n is arm i when all lie at or below it and not all below it
            chosen = np.diff(below**n)
            exact = kl(chosen, np.full(arms, 1 / arms))
            rows.append({"arms": arms, "n": n, "kl": exact, "formula": divergence.best_of_n_kl(n)})
    return rows


def main() -> None:
    """Run all parts and write the numbers and figures."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    parts = {"optima": optima(), "certain": certain(), "best_of_n": best_of_n()}
    seconds = {"closed forms": round(time.perf_counter() - began, 1)}
    began = time.perf_counter()
    parts["overoptimisation"] = proxies.curves(SEEDS)
    seconds["over-optimisation"] = round(time.perf_counter() - began, 1)
    summary = {"seconds": seconds, **figures.summary(parts)}
    text = json.dumps({"summary": summary, **parts}, separators=(",", ":"))
    (HERE / "results.json").write_text(text + "\n", encoding="utf-8")
    figures.draw(parts, HERE)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
