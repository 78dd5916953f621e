"""Removal of duplicates: rows with the same text, and rows whose texts are nearly the same.

Lee et al. 2022 (arXiv:2107.06499) show what duplicates do: models repeat them verbatim, and
held-out numbers flatter. The first of equal rows is kept. Sources give rows in an order by hash, so
which rows remain does not depend on their order in a file; for rows in another order the number of
exact duplicates is the same, but another copy may stay, and a chain of near duplicates (a ~ b ~ c,
yet not a ~ c) can keep one row or two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from alignlab.data.group import PromptGroup
from alignlab.data.quality.minhash import Sketch, library
from alignlab.data.quality.step import CrossStep, Reason, StepEffect, effect, sieve
from alignlab.data.quality.texts import Ignored, Scope, normalised, scoped
from alignlab.run import content_key
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class ExactDuplicates(CrossStep):
    """Drops rows whose text, up to what ``ignore`` names, is that of an earlier or held-out row."""

    scope: Scope
    ignore: tuple[Ignored, ...]  # differences that do not count

    def apply_against(
        self, groups: Iterable[PromptGroup], held_out: Mapping[str, Sequence[PromptGroup]]
    ) -> tuple[list[PromptGroup], StepEffect]:
        """Return the first row of every text that no held-out row has."""
        there = {
            key: split
            for split, rows in held_out.items()
            for row in rows
            if (key := self._key(row)) is not None
        }
        first: dict[bytes, PromptGroup] = {}

        def complaint(group: PromptGroup) -> Reason | None:
            key = self._key(group)
            if key is None:
                return None
            if key in there:
                return Reason(f"in the split {there[key]}")
            earlier = first.setdefault(key, group)
            if earlier is group:
                return None
            same = earlier.verdict == group.verdict
            return Reason("duplicate" if same else "duplicate with another verdict", _of(earlier))

        return sieve(self.name, groups, complaint)

    def _key(self, group: PromptGroup) -> bytes | None:
        """Hash of the text; None for a text that is empty, which is no copy of anything."""
        text = normalised(scoped(group, self.scope), self.ignore)
        return hashlib.blake2b(text.encode(), digest_size=16).digest() if text.strip() else None


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(CrossStep):
    """Drops rows whose word n-grams overlap with those of an earlier kept or held-out row.

    Similarity is the Jaccard index of the sets of word n-grams, |A ∩ B| / |A ∪ B|. MinHash and LSH
    only propose pairs; every one is verified, so no row below the threshold is dropped.
    """

    scope: Scope
    threshold: Annotated[float, Range(min=0, min_open=True, max=1)]  # similarity of a duplicate
    ngram: Annotated[int, Range(min=1)]  # words of a shingle
    permutations: Annotated[int, Range(min=16)]  # hash functions: more of them miss fewer pairs
    seed: int  # of the hash functions

    def fingerprint(self) -> str:
        """Hash of the fields and of the library's scheme, which decides what is compared."""
        return content_key([super().fingerprint(), library()])

    def apply_against(
        self, groups: Iterable[PromptGroup], held_out: Mapping[str, Sequence[PromptGroup]]
    ) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows that are near to no earlier kept row and to no held-out row."""
        rows = list(groups)
        others = [(split, row) for split, there in held_out.items() for row in there]
        texts = [scoped(row, self.scope) for row in rows]
        references = [scoped(row, self.scope) for _, row in others]
        sketch = Sketch(
            threshold=self.threshold,
            ngram=self.ngram,
            permutations=self.permutations,
            seed=self.seed,
        )
        kept, dropped = [], []
        for row, match in zip(rows, sketch.matches(texts, references, among=True), strict=True):
            if match is None:
                kept.append(row)
                continue
            inside = match.row >= len(others)
            split, twin = ("", rows[match.row - len(others)]) if inside else others[match.row]
            why = "near duplicate" if inside else f"near a row of the split {split}"
            dropped.append((row, Reason(why, f"{match.similarity:.2f} to {_of(twin)}")))
        numbers = {"missed_at_threshold": sketch.miss(self.threshold)}
        return kept, effect(self.name, len(rows), len(kept), dropped, numbers)


def _of(group: PromptGroup) -> str:
    return str(group.meta.get("place") or group.id or "an earlier row")
