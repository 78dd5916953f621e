"""Repetition in a text and likeness among several: pure functions of words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from alignlab.data.quality.measures import ngrams


def repetition(text: str, n: int = 3) -> float:
    """Share of the text's n-grams that are a repeat of an earlier one; 0 when it has none."""
    grams = ngrams(text.lower().split(), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(samples: Sequence[Sequence[str]], order: int = 4) -> float:
    """Mean over samples of BLEU-``order`` against the others; 0 where nobody shares a word.

    Counts of the higher orders are raised by one (Lin & Och 2004), so that short texts have a
    value; an order that no sample is long enough for is left out.
    """
    scores = []
    for i, hypothesis in enumerate(samples):
        references = [other for j, other in enumerate(samples) if j != i]
        scores.append(bleu(hypothesis, references, order))
    return sum(scores) / len(scores) if scores else 0.0


def bleu(hypothesis: Sequence[str], references: Sequence[Sequence[str]], order: int = 4) -> float:
    """BLEU = brevity · exp(mean log p_n), p_n clipped n-gram precision, smoothed for n > 1."""
    if not hypothesis or not any(references):
        return 0.0
    logs = []
    for n in range(1, min(order, len(hypothesis)) + 1):
        mine = Counter(ngrams(hypothesis, n))
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(ngrams(reference, n))
        matched, total = sum((mine & most).values()), sum(mine.values())
        if n == 1 and not matched:
            return 0.0
        logs.append(math.log((matched + (n > 1)) / (total + (n > 1))))
    closest = min((abs(len(r) - len(hypothesis)), len(r)) for r in references)[1]
    brevity = min(1.0, math.exp(1 - closest / len(hypothesis)))
    return brevity * math.exp(sum(logs) / len(logs))
