"""Checks of length: what truncation took, completions without a target, rows far longer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.gate.check import Check, Found, RowCheck, found
from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.finding import SHOWN
from alignlab.data.gate.tally import Histogram, Tally


class PromptTruncated(Check):
    """Prompts that lost their beginning."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.rows = Tally(), 0

    def see(self, chunk: Chunk) -> None:
        """Count prompts that were cut."""
        self.rows += len(chunk.tokens)
        cut = [row for row, t in enumerate(chunk.tokens) if t.meta.get("prompt_cut")]
        self.tally.add(chunk.start, cut)

    def findings(self) -> Iterator[Found]:
        """One finding if their share is above the limit."""
        count = self.tally.count
        severity = self.facts.limits.prompt_truncated.severity(count, self.rows)
        if severity is not None:
            yield from found(
                severity,
                "prompt_truncated",
                self.tally,
                f"{count / self.rows:.1%} of the prompts are cut on the left",
                "Raise max_prompt if the beginning matters (a system message stands there).",
            )


class CompletionTruncated(Check):
    """Completions that lost their end, EOS included; a policy's own are cut by its budget."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.cut, self.completions = Tally(), 0, 0

    def see(self, chunk: Chunk) -> None:
        """Count completions that were cut."""
        if not self.facts.sampled:
            self.cut += int(chunk.truncated.sum())
            self.completions += len(chunk.truncated)
            self.tally.add(chunk.start, chunk.completions.rows(chunk.truncated))

    def findings(self) -> Iterator[Found]:
        """One finding if their share is above the limit."""
        limit = self.facts.limits.completion_truncated
        severity = limit.severity(self.cut, self.completions)
        if severity is not None:
            yield from found(
                severity,
                "completion_truncated",
                self.tally,
                f"{self.cut / self.completions:.1%} of the completions are cut on the right, "
                "without EOS",
                "Raise max_completion: the policy learns to stop only from completions that end.",
            )


class TokensTruncated(Check):
    """How much of the text is lost in all."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.lost, self.kept = Tally(), 0, 0

    def see(self, chunk: Chunk) -> None:
        """Count the tokens that were cut and those that were kept."""
        lost = chunk.cut_tokens
        self.lost += int(lost.sum())
        self.kept += int(chunk.kept_tokens.sum())
        self.tally.add(chunk.start, np.flatnonzero(lost))

    def findings(self) -> Iterator[Found]:
        """One finding if their share is above the limit."""
        total = self.lost + self.kept
        severity = self.facts.limits.tokens_truncated.severity(self.lost, total)
        if severity is not None:
            yield from found(
                severity,
                "tokens_truncated",
                self.tally,
                f"{self.lost / total:.1%} of all tokens are cut off",
                "Raise max_prompt and max_completion (tokens=dialogue), or take shorter rows.",
            )


class NoCompletionTokens(RowCheck):
    """Completions of which truncation left nothing."""

    code = "no_completion_tokens"
    message = "A completion has no token left, so its loss would be 0/0"
    advice = "Raise max_completion or drop the rows."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with a completion of length 0."""
        return chunk.completions.rows(chunk.completions.lengths == 0)


class LengthOutliers(Check):
    """Rows many times longer than the median row, before truncation: often not what was meant."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.lengths = Histogram()
        self.longest: list[tuple[int, int]] = []  # (-tokens, position) of the longest rows

    def see(self, chunk: Chunk) -> None:
        """Count lengths and keep the longest rows."""
        lengths = chunk.kept_tokens + chunk.cut_tokens
        self.lengths.add(lengths)
        top = np.argsort(-lengths, kind="stable")[:SHOWN]
        here = [(-int(lengths[row]), chunk.start + int(row)) for row in top]
        self.longest = sorted(self.longest + here)[:SHOWN]

    def findings(self) -> Iterator[Found]:
        """One warning, with the longest rows."""
        factor = self.facts.limits.length_outlier
        median = self.lengths.quantile(0.5)
        if factor is None or not self.longest:
            return
        bound = factor * max(median, 1)
        count = self.lengths.above(bound)
        if count:
            yield Found(
                "warning",
                "length_outlier",
                count,
                [position for tokens, position in self.longest if -tokens > bound],
                f"Rows are more than {factor:g} times as long as the median row of {median} tokens"
                f" (the longest has {-self.longest[0][0]})",
                "Look at them: several rows may have run together. Drop or split them.",
            )
