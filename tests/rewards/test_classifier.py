from __future__ import annotations

import json
import threading
import zlib

import numpy as np
import pytest

from alignlab.rewards import classifier, ngrams
from alignlab.rewards.classifier import SentimentClassifier


def names(text):
    found = ngrams.features([text])
    return found.columns[found.starts[0] : found.starts[1]].tolist()


def test_features_are_distinct_words_and_neighbouring_pairs():
    # good, film, (good film), (film good): four, however often they occur
    assert len(names("Good film, good film")) == 4
    assert set(names("good")) < set(names("a good film"))
    assert len(names("a b")) == 3
    assert names("a b") != names("b a")  # the pair has an order
    assert names("") == []


def test_pairs_do_not_cross_texts():
    together = ngrams.features(["good", "film"])
    assert np.diff(together.starts).tolist() == [1, 1]


def test_chunks_change_nothing(monkeypatch):
    texts = ["a good film", "", "bad bad film !", "a b c d e", "film"]
    whole = ngrams.features(texts)
    monkeypatch.setattr(ngrams, "_CHUNK", 2)
    parts = ngrams.features(texts)
    np.testing.assert_array_equal(whole.columns, parts.columns)
    np.testing.assert_array_equal(whole.starts, parts.starts)


def test_columns_are_the_same_in_every_process():
    # crc32 of the word times the golden ratio, the top 18 of 64 bits; Python's hash is salted.
    want = ((zlib.crc32(b"good") * 0x9E3779B97F4A7C15) % 2**64) >> 46
    assert names("good") == [want]


def test_logits_by_hand():
    found = ngrams.features(["good film", ""])
    coefficients = np.zeros(1 << ngrams.BITS, np.float32)
    coefficients[names("good")] = 2.0
    coefficients[names("film")] = -0.5
    # three features (good, film, good film): (2 − 0.5 + 0) / √3 + 0.25; an empty text: 0.25
    want = [1.5 / np.sqrt(3) + 0.25, 0.25]
    np.testing.assert_allclose(ngrams.logits(found, coefficients, 0.25), want, rtol=1e-6)


def test_fit_reaches_the_minimum():
    texts = ["good film", "bad film", "good plot", "bad plot", "good", "bad bad film"] * 3
    labels = np.array([1, 0, 1, 0, 1, 0] * 3)
    found = ngrams.features(texts)
    weights, bias = ngrams.fit(found, labels, l2=0.01, iterations=200)
    logits = ngrams.logits(found, weights, bias)
    assert ((logits > 0) == labels).all()
    # Stationary: mean residual of each feature's texts = l2 × its weight, and Σ residual = 0.
    residual = (labels - 1 / (1 + np.exp(-logits))) / len(labels)
    assert abs(residual.sum()) < 1e-5
    owner = np.repeat(np.arange(len(texts)), np.diff(found.starts))
    pull = np.bincount(found.columns, (residual * found.weight)[owner], 1 << ngrams.BITS)
    np.testing.assert_allclose(pull, 0.01 * weights, atol=2e-5)


@pytest.mark.slow
def test_trained_once_for_all_who_want_it_and_right_on_held_out_reviews(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(classifier, "_load", classifier._load.__wrapped__)
    trained = []
    train = classifier._train
    monkeypatch.setattr(classifier, "_train", lambda folder: (trained.append(1), train(folder)))
    reward = SentimentClassifier(part="completion")
    texts = ["a wonderful, touching film", "a boring waste of time", ""]
    got: list[np.ndarray] = []
    wanting = [
        threading.Thread(target=lambda: got.append(reward.score([""] * 3, texts, [{}] * 3)))
        for _ in range(2)
    ]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert len(trained) == 1
    np.testing.assert_array_equal(got[0], got[1])
    assert got[0][0] > 0.9
    assert got[0][1] < 0.1
    assert 0.3 < got[0][2] < 0.7
    record = json.loads(next(tmp_path.glob("cache/*/record.json")).read_text())
    assert record["accuracy_imdb"] > 0.88
    assert record["accuracy_imdb_first_40_words"] > 0.74
    assert record["accuracy_rotten_tomatoes"] > 0.75
    assert record["test_imdb"] > 1000
