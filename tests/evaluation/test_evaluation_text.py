"""Repetition and self-BLEU by hand."""

from __future__ import annotations

import math

import pytest

from alignlab.evaluation.generation import health
from alignlab.evaluation.text import bleu, repetition, self_bleu


def test_repetition_by_hand() -> None:
    # trigrams abc bca cab abc: one of four came before
    assert repetition("a b c a b c") == 0.25
    assert repetition("two words") == 0.0


def test_bleu_of_equal_texts_is_one_and_of_strangers_zero() -> None:
    text = ["the", "cat", "sat", "on", "the", "mat"]
    assert bleu(text, [text]) == pytest.approx(1.0)
    assert bleu(text, [["dogs", "bark"]]) == 0.0
    assert bleu([], [text]) == 0.0


def test_bleu_by_hand() -> None:
    # the cat sat / the cat ran: unigrams 2 of 3; bigrams (1 + 1) / (2 + 1), trigrams (0 + 1) / 2
    found = bleu(["the", "cat", "sat"], [["the", "cat", "ran"]])
    assert found == pytest.approx((2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3))


def test_clipping_and_brevity() -> None:
    # the the the: one of three counts, since the reference has one; bigrams and trigrams smoothed
    clipped = bleu(["the", "the", "the"], [["the", "cat"]])
    assert clipped == pytest.approx((1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3))
    # a hypothesis of 2 words against 4: exp(1 − 4 / 2); bigram 1 of 1, smoothed 2 / 2
    assert bleu(["a", "b"], [["a", "b", "c", "d"]]) == pytest.approx(math.exp(-1))


def test_self_bleu_is_the_mean_over_samples() -> None:
    same, other = ["a", "b", "c"], ["x", "y", "z"]
    assert self_bleu([same, same]) == pytest.approx(1.0)
    assert self_bleu([same, other]) == 0.0
    # two of three have a twin
    assert self_bleu([same, same, other]) == pytest.approx(2 / 3)
    assert self_bleu([same]) == 0.0


def test_health_by_hand() -> None:
    found = health(["A b", "a c", ""])
    # unigrams a b a c: 3 of 4 differ; bigrams ab ac: both; one of three samples is empty
    assert found["distinct_1"] == 0.75
    assert found["distinct_2"] == 1.0
    assert found["empty"] == pytest.approx(1 / 3)
    assert found["repetition"] == 0.0
    assert health(["a b c"] * 2)["self_bleu"] == pytest.approx(1.0)
