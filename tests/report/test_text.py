from __future__ import annotations

import pytest

from alignlab.report.text import distinct, mean_distinct, ngrams, repetition


def test_ngrams_and_repetition_by_hand():
    assert ngrams("A b a", 2) == [("a", "b"), ("b", "a")]
    # trigrams: abc bca cab abc → 3 distinct of 4
    assert repetition("a b c a b c") == 0.25
    assert repetition("two words") == 0.0


def test_distinct_by_hand():
    # bigrams: a-b, b-a | a-b → 2 distinct of 3
    assert distinct([("p", "a b a"), ("q", "a b")], 2).value == pytest.approx(2 / 3)
    assert distinct([("p", "")], 1).value == 0.0


def test_jackknife_variance_by_hand():
    # without p: {a, b} of 2 → 1; without q: {a} of 2 → 1/2. (2 − 1)/2 · 2 · (1/4)² = 1/16
    found = distinct([("p", "a a"), ("q", "a b")], 1)
    assert found.value == 0.5
    assert found.variance == pytest.approx(1 / 16)


def test_mean_distinct_adds_the_spread_between_seeds():
    one = distinct([("p", "a a"), ("q", "a b")], 1)
    other = distinct([("p", "a b"), ("q", "c d")], 1)
    value, error = mean_distinct([one, other])
    assert value == 0.75  # (0.5 + 1) / 2
    # within (1/16 + 0) / 2 = 1/32, between (0.5² / 2) = 1/8; their sum over 2 seeds
    assert error == pytest.approx(((1 / 32 + 1 / 8) / 2) ** 0.5)
