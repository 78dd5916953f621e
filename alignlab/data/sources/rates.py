"""Rates of a mixture: how much of it each part gives, by the parts' sizes or by stated weights."""

from __future__ import annotations

import math
from collections.abc import Mapping


def proportional(
    sizes: Mapping[str, int], cap: int | None = None, temperature: float | None = None
) -> dict[str, float]:
    """Examples-proportional rates with a maximum, scaled by a temperature; they add up to 1.

    r_m = min(e_m, K)^(1/T) / Σ_n min(e_n, K)^(1/T), with e_m examples in part m: T5 (Raffel et al.
    2020, arXiv:1910.10683, section 3.5.2); K = 3,000 and T = 1 in FLAN (Wei et al. 2021,
    arXiv:2109.01652). T = 1 is proportional to the sizes, T → ∞ gives every part the same.

    Args:
        sizes: e_m, examples of each part.
        cap: K; examples beyond it raise no rate. None = no maximum.
        temperature: T; None = 1.
    """
    counted = {name: size if cap is None else min(size, cap) for name, size in sizes.items()}
    scaled = {name: counted[name] ** (1 / (temperature or 1.0)) for name in counted}
    total = sum(scaled.values())
    return {name: value / total for name, value in scaled.items()} if total else {}


def weighted(weights: Mapping[str, float]) -> dict[str, float]:
    """Rates in proportion to stated weights; they add up to 1."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def unrepeated(have: Mapping[str, int], rates: Mapping[str, float]) -> int:
    """How large a mixture of these rates can be without showing anything twice."""
    return math.floor(min(have[name] / rate for name, rate in rates.items() if rate) + 1e-9)


def divided(size: int, rates: Mapping[str, float]) -> dict[str, int]:
    """Divide ``size`` by the rates, so that it adds up: largest remainders, names break ties."""
    exact = {name: rate * size for name, rate in rates.items()}
    parts = {name: math.floor(exact[name] + 1e-9) for name in rates}
    by_rest = sorted(rates, key=lambda name: (parts[name] - exact[name], name))
    for name in by_rest[: size - sum(parts.values())]:
        parts[name] += 1
    return parts
