"""Lengths and lexical diversity of a data set, for its card; drops nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from alignlab.data.group import PromptGroup
from alignlab.data.quality.measures import type_token
from alignlab.data.quality.step import Step, StepEffect
from alignlab.data.quality.texts import ngram_hashes, plain, words
from alignlab.typed import Range

_MERGE = 1 << 20  # n-grams that wait before they are merged into the known ones


@dataclass(frozen=True, kw_only=True)
class Statistics(Step):
    """Measures prompts and completions, and how much longer preferred completions are.

    Lengths are in words and characters (mean, median, 5th and 95th percentile, longest). Diversity
    is the mean type-token ratio of a text over windows, and distinct-n over all texts, the share of
    n-grams that are new. ``better_longer`` is the share of pairs whose better completion has more
    words, ties left out: near 0.5 the verdict does not follow length.
    """

    window: Annotated[int, Range(min=2)]  # words of the type-token ratio's window

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return all rows as they are; the numbers are in the effect."""
        rows = list(groups)
        numbers: dict[str, float] = {}
        prompts = (plain(row.prompt) for row in rows if row.prompt)
        completions = (plain(c) for row in rows for c in row.completions)
        for name, texts in (("prompt", prompts), ("completion", completions)):
            measured = self._measure(texts)
            numbers |= {f"{name}_{key}": value for key, value in measured.items()}
        numbers |= _length_preference(rows)
        kinds: dict[str, int] = {}
        for row in rows:
            kinds[f"verdict: {row.verdict.kind}"] = kinds.get(f"verdict: {row.verdict.kind}", 0) + 1
        return rows, StepEffect(self.name, len(rows), len(rows), kinds, (), numbers)

    def _measure(self, texts: Iterable[str]) -> dict[str, float]:
        """Measure texts one by one; memory grows with the different n-grams, 8 bytes each."""
        lengths, characters, ratios = [], [], []
        single, pairs = _Different(1), _Different(2)
        for text in texts:
            tokens = words(text)
            lengths.append(len(tokens))
            characters.append(len(text))
            if tokens:
                ratios.append(type_token(tokens, self.window))
                single.add(tokens)
                pairs.add(tokens)
        if not lengths:
            return {}
        return {
            "count": float(len(lengths)),
            **_spread("words", lengths),
            **_spread("characters", characters),
            "vocabulary": float(single.count()),
            "type_token": _rounded(float(np.mean(ratios)) if ratios else 0.0),
            "distinct_1": _rounded(single.count() / max(1, single.total)),
            "distinct_2": _rounded(pairs.count() / max(1, pairs.total)),
        }


class _Different:
    """Counts the different n-grams of many texts by their 64-bit hashes."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._known = np.zeros(0, np.uint64)
        self._new: list[np.ndarray] = []
        self._waiting = 0
        self.total = 0

    def add(self, tokens: Sequence[str]) -> None:
        """Count the n-grams of one text."""
        hashes = ngram_hashes(tokens, self._n)
        self._new.append(hashes)
        self._waiting += len(hashes)
        self.total += len(hashes)
        if self._waiting > max(_MERGE, len(self._known)):
            self._merge()

    def count(self) -> int:
        """Return how many different ones there were."""
        self._merge()
        return len(self._known)

    def _merge(self) -> None:
        self._known = np.unique(np.concatenate([self._known, *self._new]))
        self._new, self._waiting = [], 0


def _spread(unit: str, sizes: Sequence[int]) -> dict[str, float]:
    low, median, high = (float(q) for q in np.percentile(sizes, (5, 50, 95)))
    return {
        f"{unit}_mean": _rounded(float(np.mean(sizes))),
        f"{unit}_p5": low,
        f"{unit}_median": median,
        f"{unit}_p95": high,
        f"{unit}_max": float(max(sizes)),
    }


def _length_preference(rows: Sequence[PromptGroup]) -> dict[str, float]:
    differences = []
    for row in rows:
        sizes = [len(words(plain(c))) for c in row.completions]
        differences += [sizes[i] - sizes[j] for i, j in row.verdict.pairs()]
    decided = [d for d in differences if d]
    if not decided:
        return {}
    longer = sum(d > 0 for d in decided) / len(decided)
    mean = float(np.mean(differences))
    return {"pairs": float(len(differences)), "better_longer": _rounded(longer)} | {
        "better_minus_worse_words": _rounded(mean)
    }


def _rounded(value: float) -> float:
    return round(value, 4)
