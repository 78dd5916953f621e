"""Checks of the verdicts: of use to the method, balanced, free of contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from alignlab.data.gate.check import Check, Found, found
from alignlab.data.gate.chunk import Chunk, Facts, mixed
from alignlab.data.gate.tally import Column, Tally
from alignlab.data.group import TokenGroup, Verdict


def tells_apart(verdict: Verdict) -> bool:
    """Whether some completion is better than another."""
    return len(set(verdict.ranks or verdict.scores or verdict.thumbs)) > 1


class NeededVerdict(Check):
    """The verdicts must be of use to the method."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.rows = Tally(), 0
        self.kinds: set[str] = set()

    def see(self, chunk: Chunk) -> None:
        """Count rows whose verdict the method cannot use."""
        if self.facts.need in ("", "prompt"):
            return
        self.rows += len(chunk.tokens)
        self.kinds.update(t.verdict.kind for t in chunk.tokens)
        useless = [row for row, t in enumerate(chunk.tokens) if not self._of_use(t)]
        self.tally.add(chunk.start, useless)

    def _of_use(self, tokens: TokenGroup) -> bool:
        if self.facts.need == "demonstration":
            return bool(tokens.completions) and bool(tokens.verdict)
        if self.facts.need == "thumbs" and tokens.verdict.thumbs:
            return True
        if self.facts.need == "scores" and (tokens.verdict.scores or tokens.verdict.thumbs):
            return True
        return tells_apart(tokens.verdict)

    def findings(self) -> Iterator[Found]:
        """One finding if their share is above the limit."""
        limit = self.facts.limits.verdict_missing
        severity = limit.severity(self.tally.count, self.rows)
        if severity is not None:
            yield from found(
                severity,
                "verdict_missing",
                self.tally,
                f"The method needs {self.facts.need}; verdicts here are: "
                f"{', '.join(sorted(self.kinds))}",
                "Use data with such a verdict, or annotate samples first."
                if severity == "error"
                else "These rows are left out (ties and single completions give no pair).",
            )


class LabelBalance(Check):
    """Thumbs that nearly all point the same way leave little to tell apart."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tallies = {True: Tally(), False: Tally()}  # rows with such a thumb
        self.thumbs = {True: 0, False: 0}

    def see(self, chunk: Chunk) -> None:
        """Count thumbs."""
        rows: dict[bool, list[int]] = {True: [], False: []}
        for row, t in enumerate(chunk.tokens):
            for thumb in t.verdict.thumbs:
                self.thumbs[thumb] += 1
            for thumb in set(t.verdict.thumbs):
                rows[thumb].append(row)
        for thumb, shown in rows.items():
            self.tallies[thumb].add(chunk.start, shown)

    def findings(self) -> Iterator[Found]:
        """One finding: all alike, or the share of the more frequent one above the limit."""
        total = sum(self.thumbs.values())
        most = max(self.thumbs, key=self.thumbs.__getitem__)
        severity = self.facts.limits.majority_label.severity(self.thumbs[most], total)
        if severity is None or not total:
            return
        if self.facts.need not in ("pairs", "thumbs"):
            severity = "warning"
        if self.thumbs[most] == total:
            yield from found(
                severity,
                "labels_all_same",
                self.tallies[most],
                f"Every label is {most}",
                "Check that the label field was read as meant (true = desirable).",
            )
            return
        yield from found(
            severity,
            "label_imbalance",
            self.tallies[not most],
            f"{self.thumbs[most] / total:.1%} of the {total} labels are {most}",
            "The rows named are the few others. Weigh them in the objective, or take more of them.",
        )


class Contradictions(Check):
    """The same completions of the same prompt, ordered one way here and the other way there.

    Completions are compared as tokens, after truncation. Between the levels of a ranking only
    neighbours are kept, so what contradicts it from further apart shows as a cycle.
    """

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.prompt, self.better, self.worse = Column("Q"), Column("Q"), Column("Q")
        self.position = Column("q")
        self.thumb_key, self.thumb_position = Column("Q"), Column("q")
        self.rows = 0

    def see(self, chunk: Chunk) -> None:
        """Remember who is better than whom, as hashes."""
        self.rows += len(chunk.tokens)
        rows: list[int] = []
        better: list[int] = []
        worse: list[int] = []
        thumbs: list[tuple[int, int, bool]] = []
        for row, (t, first) in enumerate(zip(chunk.tokens, chunk.first.tolist(), strict=False)):
            if t.verdict.thumbs:
                thumbs.extend((row, first + i, up) for i, up in enumerate(t.verdict.thumbs))
            else:
                for i, j in _neighbours(t.verdict):
                    rows.append(row)
                    better.append(first + i)
                    worse.append(first + j)
        prompts, keys = chunk.prompt_keys, chunk.completion_keys
        apart = keys[better] != keys[worse]  # equal ones are SameCompletions' finding
        judged = np.array(rows, dtype=np.int64)[apart]
        self.prompt.add(prompts[judged])
        self.better.add(keys[better][apart])
        self.worse.add(keys[worse][apart])
        self.position.add(chunk.start + judged)
        if thumbs:
            thumbed, index, up = (np.array(column) for column in zip(*thumbs, strict=True))
            key = mixed(prompts[thumbed], keys[index])
            self.thumb_key.add(key & ~np.uint64(1) | up.astype(np.uint64))
            self.thumb_position.add(chunk.start + thumbed)

    def findings(self) -> Iterator[Found]:
        """Verdicts that are reversed elsewhere, and circles of three or more."""
        prompt, better, worse = (c.values() for c in (self.prompt, self.better, self.worse))
        forward, backward = mixed(prompt, better, worse), mixed(prompt, worse, better)
        reversed_ = np.isin(forward, backward)
        position = self.position.values()
        rows = np.union1d(position[reversed_], self._thumbs_both_ways())
        yield from self._found(
            "contradiction",
            rows,
            "Verdicts contradict each other: the same completions of the same prompt are judged "
            "one way and the other",
            "Keep one of them, or the majority; opposite labels cancel out.",
        )
        keep = ~reversed_
        circles = in_circles(mixed(prompt, better)[keep], mixed(prompt, worse)[keep])
        yield from self._found(
            "preference_cycle",
            np.unique(position[keep][circles]),
            "Verdicts go in a circle: A over B, B over C, C over A",
            "No order of these completions agrees with all of them. Drop one verdict of each.",
        )

    def _thumbs_both_ways(self) -> np.ndarray:
        keys, position = self.thumb_key.values(), self.thumb_position.values()
        thumbs = np.unique(keys)
        pairs = thumbs >> np.uint64(1)
        both = pairs[:-1][pairs[:-1] == pairs[1:]] if len(pairs) else pairs
        return position[np.isin(keys >> np.uint64(1), both)]

    def _found(self, code: str, rows: np.ndarray, message: str, advice: str) -> Iterator[Found]:
        tally = Tally()
        tally.add(0, rows)
        severity = self.facts.limits.contradiction.severity(len(rows), self.rows)
        if severity is not None:
            yield from found(severity, code, tally, message, advice)


def in_circles(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Whether each edge source → target lies on or between circles of a directed graph (E,).

    Edges that lead from a node without a way in, or to one without a way out, are taken away until
    none is left.
    """
    alive = np.arange(len(source))
    while len(alive):
        entered = np.isin(source[alive], target[alive])
        left = np.isin(target[alive], source[alive])
        if (entered & left).all():
            break
        alive = alive[entered & left]
    result = np.zeros(len(source), dtype=bool)
    result[alive] = True
    return result


def _neighbours(verdict: Verdict) -> Iterator[tuple[int, int]]:
    """(better, worse) of completions whose levels follow each other."""
    if verdict.ranks == (0, 1):
        yield 0, 1
        return
    values = verdict.utilities()
    levels = sorted(set(values), reverse=True)
    for high, low in pairwise(levels):
        for i, above in enumerate(values):
            if above == high:
                yield from ((i, j) for j, below in enumerate(values) if below == low)
