"""Near neighbours among texts: MinHash signatures, banding, and the true Jaccard similarity.

Broder 1997 ("On the resemblance and containment of documents"). Signatures are `datasketch`'s;
bands of equal rows are found by sorting, so memory is 8 bytes per band and text, and a bucket is
kept in a dictionary only where two texts share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from alignlab.data.quality.texts import jaccard, shingles
from alignlab.errors import DataError

_CHUNK = 1024  # texts whose signatures are hashed at once


class Match(NamedTuple):
    """An earlier text that a text is near to, and how near."""

    row: int
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """How texts are compared; see the fields of `NearDuplicates`."""

    threshold: float
    ngram: int
    permutations: int
    seed: int

    def matches(
        self, texts: Sequence[str], references: Sequence[str] = (), *, among: bool
    ) -> list[Match | None]:
        """For each text the nearest candidate whose similarity reaches the threshold.

        Candidates are ``references`` (numbered from 0) and, with ``among``, the earlier texts that
        matched nothing (numbered on from there). Each match is verified on the texts
        themselves, so none is false; a true one is missed with the probability `miss` of its
        similarity. Texts without words match nothing.
        """
        everything = (*references, *texts)
        shared = _shared_buckets(self._bands(everything))
        members: dict[tuple[int, int], list[int]] = {}
        found: list[Match | None] = []
        sets = lru_cache(maxsize=4096)(lambda i: shingles(everything[i], self.ngram))
        for i in range(len(everything)):
            keys = [(band, int(b)) for band, b in enumerate(shared[i]) if b >= 0]
            match = None
            if i >= len(references):
                near = sorted({j for key in keys for j in members.get(key, ())})
                match = self._nearest(i, near, sets)
                found.append(match)
            if i < len(references) or (among and match is None):
                for key in keys:
                    members.setdefault(key, []).append(i)
        return found

    def _nearest(self, i: int, near: Iterable[int], sets: Any) -> Match | None:
        measured = [Match(j, jaccard(sets(i), sets(j))) for j in near]
        best = max(measured, key=lambda match: (match.similarity, -match.row), default=None)
        return best if best is not None and best.similarity >= self.threshold else None

    def miss(self, similarity: float) -> float:
        """Probability (1 − s^r)^b that a pair of this Jaccard similarity is never compared."""
        bands, rows = self._banding
        return float((1 - similarity**rows) ** bands)

    @cached_property
    def _banding(self) -> tuple[int, int]:
        """(bands, rows per band): false positives cost a comparison only, so misses weigh more."""
        index = _datasketch().MinHashLSH(
            threshold=self.threshold, num_perm=self.permutations, weights=(0.02, 0.98)
        )
        return index.b, index.r

    def _bands(self, texts: Sequence[str]) -> np.ndarray:
        """Hash of each band of each text, uint64 (texts, bands); 0 for a text without words."""
        blank = _datasketch().MinHash(self.permutations, self.seed, hashfunc=int)
        bands, rows = self._banding
        out = np.zeros((len(texts), bands), np.uint64)
        for start in range(0, len(texts), _CHUNK):
            part = texts[start : start + _CHUNK]
            values = np.zeros((len(part), bands * rows), np.uint64)
            for i, text in enumerate(part):
                hashed = shingles(text, self.ngram)
                if len(hashed):
                    sketch = blank.copy()
                    sketch.update_batch((hashed >> np.uint64(32)).tolist())
                    values[i] = sketch.hashvalues[: bands * rows]
            mixed = _mixed(values.reshape(-1, rows)).reshape(len(part), bands)
            out[start : start + _CHUNK] = np.where(values.any(axis=1, keepdims=True), mixed, 0)
        return out


def library() -> str:
    """Name the scheme of the signatures: other major versions of datasketch make other ones."""
    try:
        return f"datasketch {metadata.version('datasketch').split('.')[0]}"
    except metadata.PackageNotFoundError:
        raise _missing() from None


def _mixed(values: np.ndarray) -> np.ndarray:
    """Hash the values of each band, uint64 (bands, rows) → (bands,); never 0."""
    out = np.full(len(values), 0x9E3779B97F4A7C15, np.uint64)
    for column in values.T:
        out = (out ^ column) * np.uint64(0xC2B2AE3D27D4EB4F)
        out ^= out >> np.uint64(31)
    return np.maximum(out, np.uint64(1))


def _shared_buckets(bands: np.ndarray) -> np.ndarray:
    """Number of each text's bucket in each band, int32 (texts, bands); −1 for a bucket alone."""
    out = np.full(bands.shape, -1, np.int32)
    for band in range(bands.shape[1]):
        _, bucket, size = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        shared = (size[bucket] > 1) & (bands[:, band] != 0)
        out[shared, band] = bucket[shared]
    return out


def _datasketch() -> Any:
    try:
        import datasketch
    except ModuleNotFoundError as error:
        raise _missing() from error
    return datasketch


def _missing() -> DataError:
    return DataError("Near duplicates need the package datasketch: pip install 'datasketch>=1.6'.")
