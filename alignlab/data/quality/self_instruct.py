"""Self-instruct: a model continues a list of instructions, and what is new is kept.

Wang et al. 2022 (arXiv:2212.10560): show the model eight tasks, let it write more, keep those whose
ROUGE-L with every known one is below 0.7. Here the lists are the prompts of the source `FewShot`,
an annotate stage samples from them, `FromRun` with ``read: instructions`` collects what was written
and the step `Novel` compares. The answers come from a second annotate stage over those prompts.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

from alignlab.data.group import PromptGroup
from alignlab.data.quality.step import Reason, Step, StepEffect, sieve
from alignlab.data.quality.texts import excerpt, plain, words
from alignlab.data.rows.bad_rows import Losses
from alignlab.data.sources.source import left_out_of
from alignlab.errors import DataError, did_you_mean
from alignlab.run import content_key
from alignlab.spec import Spec, build
from alignlab.typed import Range

VERSION = 1  # part of the fingerprint: raise it when the same fields give other prompts
SPLITS = ("sft", "preference", "unlabeled", "validation", "test")
_NUMBERED = re.compile(r"^\s*(?:Task\s+)?\d+\s*[.):]\s*", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Prompts that show ``shots`` numbered instructions and ask for the next ones.

    ``preference`` and ``unlabeled`` are ``count`` prompts; the instructions of each are drawn by a
    hash of the seed and its number from the prompts of the source's ``sft`` split. The other splits
    are the source's own.
    """

    source: Spec  # the seed tasks
    shots: Annotated[int, Range(min=1)]
    count: Annotated[int, Range(min=1)]
    seed: int
    header: str  # first line of every prompt

    def fingerprint(self) -> str:
        """Hash of the source's fingerprint and of the fields."""
        return content_key(["few_shot", VERSION, self._source.fingerprint(), self])

    def load(self, split: str) -> list[PromptGroup]:
        """Return the prompts; DataError when the source has fewer seed tasks than shots."""
        if split not in SPLITS:
            known = ", ".join(SPLITS)
            raise DataError(f"No split '{split}': {known}.{did_you_mean(split, SPLITS)}")
        if split not in ("preference", "unlabeled"):
            return list(self._source.load(split))
        tasks = dict.fromkeys(excerpt(plain(g.prompt), 400) for g in self._source.load("sft"))
        pool = [task for task in tasks if task]
        if len(pool) < self.shots:
            raise DataError(f"{len(pool)} seed tasks are too few for shots={self.shots}.")
        return [self._prompt(number, pool) for number in range(self.count)]

    def left_out(self, split: str) -> Losses | None:
        """Return what the source left out of the seed tasks, or of a held-out split."""
        return left_out_of(self._source, "sft" if split in ("preference", "unlabeled") else split)

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Give the prompts of `load` one by one."""
        yield from self.load(split)

    def _prompt(self, number: int, pool: Sequence[str]) -> PromptGroup:
        name = f"{self.seed}:{number}"

        def order(task: str) -> bytes:
            return hashlib.sha256(f"few-shot:{name}:{task}".encode()).digest()

        shown = sorted(pool, key=order)[: self.shots]
        listed = "".join(f"{place}. {task}\n" for place, task in enumerate(shown, 1))
        digest = hashlib.sha256(f"{name}:{listed}".encode()).hexdigest()[:16]
        return PromptGroup(f"{self.header}\n{listed}{len(shown) + 1}.", id=digest)

    @cached_property
    def _source(self) -> Any:
        return build(self.source)


@dataclass(frozen=True, kw_only=True)
class Novel(Step):
    """Drops prompts whose ROUGE-L with an earlier kept or known prompt reaches ``threshold``.

    ROUGE-L is the F-measure of the longest common subsequence of words: 2 · LCS / (|a| + |b|).
    Rows are compared in order with all before them, which takes time that grows with their square.
    """

    threshold: Annotated[float, Range(min=0, min_open=True, max=1)]
    known: Spec | None  # a source whose sft prompts count as known; null = none

    def fingerprint(self) -> str:
        """Hash of the fields and of the known source."""
        known = build(self.known).fingerprint() if self.known is not None else ""
        return content_key([super().fingerprint(), known])

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows with new prompts."""
        before = build(self.known).load("sft") if self.known is not None else []
        pool = [_Words.of(plain(group.prompt)) for group in before]

        def complaint(group: PromptGroup) -> Reason | None:
            mine = _Words.of(plain(group.prompt))
            for other in pool:
                likely = mine.bound(other) >= self.threshold
                if likely and (value := rouge_l(mine.tokens, other.tokens)) >= self.threshold:
                    return Reason("not new", f"{value:.2f} to: {excerpt(other.text)}")
            pool.append(mine)
            return None

        return sieve(self.name, groups, complaint)


@dataclass(frozen=True)
class _Words:
    text: str
    tokens: list[str]
    counts: Counter[str]

    @classmethod
    def of(cls, text: str) -> _Words:
        tokens = words(text)
        return cls(text, tokens, Counter(tokens))

    def bound(self, other: _Words) -> float:
        """At least ROUGE-L, from the common words in any order; cheap."""
        both, total = self.counts & other.counts, len(self.tokens) + len(other.tokens)
        return 2 * both.total() / total if total else 0.0


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return 2 · LCS / (|a| + |b|), 0 for two empty texts.

    The longest common subsequence is counted with one whole-number operation per word of
    ``second`` (Hyyrö 2004): bit i of ``row`` is 0 where the length grows at word i of ``first``.
    """
    if not first and not second:
        return 0.0
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & full
    common = len(first) - row.bit_count()
    return 2 * common / (len(first) + len(second))


def instructions(completion: str) -> list[str]:
    """Return the instructions in what a model wrote after the number of a list's next entry.

    The last one is left out where others come before it: it was most likely cut by the length
    limit.
    """
    found = [" ".join(part.split()) for part in _NUMBERED.split(completion)]
    whole = found[:-1] if len(found) > 1 else found
    return [text for text in whole if text]
