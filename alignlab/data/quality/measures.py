"""Measures of a text's words and lines: diversity, repetition, shares. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence


def type_token(tokens: Sequence[str], window: int) -> float:
    """Return the mean over all windows of different words / words; 0 without words.

    A text that is shorter than the window is one window.
    """
    if not tokens:
        return 0.0
    size = min(window, len(tokens))
    counts = Counter(tokens[:size])
    total = len(counts)
    for entering, leaving in zip(tokens[size:], tokens, strict=False):
        counts[entering] += 1
        counts[leaving] -= 1
        if not counts[leaving]:
            del counts[leaving]
        total += len(counts)
    return total / size / (len(tokens) - size + 1)


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Return different n-grams / n-grams over all texts (distinct-n); 0 without n-grams."""
    grams = [gram for tokens in texts for gram in ngrams(tokens, n)]
    return len(set(grams)) / max(1, len(grams))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return every run of n neighbouring words, in order."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def matched_share(pattern: re.Pattern[str], text: str) -> float:
    """Return the share of a text's characters inside matches of a pattern; 0 for an empty text."""
    return sum(len(match[0]) for match in pattern.finditer(text)) / max(1, len(text))


def duplicate_share(pieces: Sequence[str]) -> tuple[float, float]:
    """Return the shares (of pieces, of characters) that repeat an earlier piece of the list."""
    seen: set[str] = set()
    again = [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]
    characters = sum(map(len, pieces))
    return len(again) / max(1, len(pieces)), sum(map(len, again)) / max(1, characters)


def top_ngram_share(tokens: Sequence[str], n: int) -> float:
    """Return the share of the words' characters in the n-gram that covers most of them.

    Only n-grams that occur at least twice count, or every text of n words would consist of one.
    """
    counts = Counter(ngrams(tokens, n))
    characters = sum(map(len, tokens))
    repeated = (k * sum(map(len, gram)) for gram, k in counts.items() if k > 1)
    return min(1.0, max(repeated, default=0) / max(1, characters))


def duplicate_ngram_share(tokens: Sequence[str], n: int) -> float:
    """Return the share of the words' characters inside n-grams that occurred before.

    A character in several such n-grams counts once.
    """
    seen: set[tuple[str, ...]] = set()
    inside = [False] * len(tokens)
    for start, gram in enumerate(ngrams(tokens, n)):
        if gram in seen:
            inside[start : start + n] = [True] * n
        seen.add(gram)
    again = sum(len(token) for token, repeated in zip(tokens, inside, strict=True) if repeated)
    return again / max(1, sum(map(len, tokens)))
