"""Properties of completions as text: distinct-n, repetition. Words are whitespace-separated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from alignlab.data.quality import measures
from alignlab.evaluation.text import repetition

__all__ = ["Distinct", "distinct", "mean_distinct", "ngrams", "repetition"]


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All n-grams of the lower-cased words of ``text``."""
    return measures.ngrams(text.lower().split(), n)


@dataclass(frozen=True)
class Distinct:
    """Corpus distinct-n of one run and the variance of that estimate over prompts."""

    value: float
    variance: float


def distinct(texts: Sequence[tuple[str, str]], n: int, groups: int = 20) -> Distinct:
    """Distinct n-grams over all n-grams (Li et al. 2016) of ``(prompt id, text)`` pairs.

    It is a property of the whole corpus: it falls as the corpus grows, and a bootstrap, which
    repeats prompts, would pull it down. So its variance is the delete-a-group jackknife over
    prompts, ``(G − 1) / G · Σ_g (θ_(g) − mean θ)²``.
    """
    prompts = sorted({prompt for prompt, _ in texts})
    groups = min(groups, len(prompts))
    group_of = {prompt: i % groups for i, prompt in enumerate(prompts)} if groups else {}
    owner: dict[tuple[str, ...], int] = {}
    totals = np.zeros(max(groups, 1))
    for prompt, text in texts:
        group = group_of[prompt]
        for gram in ngrams(text, n):
            totals[group] += 1
            owner[gram] = group if owner.get(gram, group) == group else -1
    if not owner:
        return Distinct(0.0, 0.0)
    alone = np.bincount([g for g in owner.values() if g >= 0], minlength=max(groups, 1))
    rest = totals.sum() - totals
    if groups < 2 or np.any(rest == 0):
        return Distinct(len(owner) / totals.sum(), 0.0)
    without = (len(owner) - alone) / rest
    variance = (groups - 1) / groups * float(np.sum((without - without.mean()) ** 2))
    return Distinct(len(owner) / totals.sum(), variance)


def mean_distinct(runs: Iterable[Distinct]) -> tuple[float, float]:
    """Mean over seeds and its standard error: jackknife variance plus the spread between seeds."""
    found = list(runs)
    values = np.array([d.value for d in found])
    between = float(values.var(ddof=1)) if len(found) > 1 else 0.0
    within = float(np.mean([d.variance for d in found]))
    return float(values.mean()), float(np.sqrt((within + between) / len(found)))
