"""Sizes of a split: rows, tokens, lengths and what truncation takes, in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignlab.data.gate.chunk import Chunk
from alignlab.data.gate.tally import Histogram
from alignlab.data.languages import language_of

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Statistics:
    """What a split holds, in tokens after truncation unless it says otherwise."""

    rows: int
    completions: int
    tokens: int
    targets: int  # tokens that a loss counts
    lost_tokens: int  # cut off
    truncated_rows: int
    verdicts: Mapping[str, int]  # kind -> rows
    scripts: Mapping[str, float]  # most frequent script of a row -> share of the rows
    languages: Mapping[str, float]  # code, "" = undecided -> share of the rows looked at; maybe {}
    prompt: tuple[int, ...]  # quantiles of the tokens of a prompt: 0, 50, 90, 99, 100 %
    completion: tuple[int, ...]  # the same of a completion
    row: tuple[int, ...]  # the same of a whole row, before truncation


class Languages:
    """Languages of some rows, chosen by their position: the first ones, then every fiftieth."""

    FIRST, EVERY, MOST = 500, 50, 2000

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()

    def see(self, chunk: Chunk) -> None:
        """Tell the language of an answer, or of the prompt where there is none."""
        for row, (prompt, answers) in enumerate(
            zip(chunk.prompt_texts, chunk.answer_texts, strict=True), chunk.start
        ):
            if row < self.FIRST or row % self.EVERY == 0:
                if self.told.total() == self.MOST:
                    return
                said = next((answer for answer in answers if answer.strip()), prompt)
                self.told[language_of(said).language] += 1

    def shares(self) -> dict[str, float]:
        """Share of the rows that were looked at by language, most frequent first."""
        return {code: count / self.told.total() for code, count in self.told.most_common()}


class Sizes:
    """Accumulates `Statistics`."""

    def __init__(self) -> None:
        self.rows = self.completions = self.targets = self.lost = self.truncated = 0
        self.verdicts: Counter[str] = Counter()
        self.prompt, self.completion, self.row = Histogram(), Histogram(), Histogram()

    def see(self, chunk: Chunk) -> None:
        """Count the next rows."""
        lost = chunk.cut_tokens
        cut = lost > 0
        cut[chunk.completions.owner[chunk.truncated]] = True
        self.rows += len(chunk.tokens)
        self.completions += len(chunk.completions.lengths)
        self.targets += sum(
            sum(map(len, t.completions)) if not t.masks else sum(t.targets()) for t in chunk.tokens
        )
        self.lost += int(lost.sum())
        self.truncated += int(np.count_nonzero(cut))
        self.verdicts.update(t.verdict.kind for t in chunk.tokens)
        self.prompt.add(chunk.prompts.lengths)
        self.completion.add(chunk.completions.lengths)
        self.row.add(chunk.kept_tokens + lost)

    def statistics(
        self, scripts: Mapping[str, float], languages: Mapping[str, float]
    ) -> Statistics:
        """Return the numbers so far."""
        quantiles = [
            tuple(found.quantile(share) for share in QUANTILES)
            for found in (self.prompt, self.completion, self.row)
        ]
        return Statistics(
            rows=self.rows,
            completions=self.completions,
            tokens=self.prompt.total() + self.completion.total(),
            targets=self.targets,
            lost_tokens=self.lost,
            truncated_rows=self.truncated,
            verdicts=dict(self.verdicts),
            scripts=dict(scripts),
            languages=dict(languages),
            prompt=quantiles[0],
            completion=quantiles[1],
            row=quantiles[2],
        )
