"""The gate: known silent data bugs, looked for in the very tokens that a stage would train on.

`Gate` sees the rows chunk by chunk and remembers counts and hashes of 8 bytes, so that a million
rows pass in bounded memory; how they are cut into chunks changes no finding. Errors stop a stage
before it trains (`require`), warnings go to the run record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignlab.data.gate import (
    content_checks,
    mask_checks,
    repetition_checks,
    role_checks,
    thought_checks,
    token_checks,
    tool_checks,
    truncation_checks,
    verdict_checks,
)
from alignlab.data.gate.character_checks import Characters, Mojibake
from alignlab.data.gate.check import Check
from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.finding import Finding, Need, Severity
from alignlab.data.gate.limits import Limits, Share
from alignlab.data.gate.statistics import Languages, Sizes, Statistics
from alignlab.data.gate.tally import Ledger
from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.errors import DataError

__all__ = [
    "CHECKS",
    "Finding",
    "Gate",
    "Limits",
    "Need",
    "Severity",
    "Share",
    "Statistics",
    "check",
    "require",
]

CHECKS: tuple[type[Check], ...] = (
    content_checks.NoRows,
    token_checks.BosTwice,
    token_checks.BosMissing,
    token_checks.BosInside,
    token_checks.EndOfCompletion,
    token_checks.OutOfVocabulary,
    token_checks.UnknownTokens,
    mask_checks.NoTarget,
    mask_checks.EndMasked,
    mask_checks.MaskSpans,
    truncation_checks.PromptTruncated,
    truncation_checks.CompletionTruncated,
    truncation_checks.TokensTruncated,
    truncation_checks.NoCompletionTokens,
    truncation_checks.LengthOutliers,
    content_checks.Empty,
    content_checks.SameCompletions,
    content_checks.PromptInPair,
    content_checks.PromptRepeated,
    verdict_checks.NeededVerdict,
    verdict_checks.LabelBalance,
    verdict_checks.Contradictions,
    role_checks.RoleOrder,
    content_checks.SpecialText,
    content_checks.Seam,
    thought_checks.ThoughtAlone,
    tool_checks.ToolSchema,
    tool_checks.CallFits,
    Characters,
    Mojibake,
    repetition_checks.Leakage,
    repetition_checks.HeldOutAnswers,
    repetition_checks.Repeated,
)


class Gate:
    """All checks over one split, chunk by chunk.

    Args:
        tokenizer: the tokenizer that made the tokens.
        need: what the method asks of the verdicts: ``prompt`` (nothing), ``demonstration``,
            ``pairs``, ``thumbs`` or ``scores``; empty = do not look.
        held_out: groups of other splits, whose prompts and answers must not occur here.
        limits: from which shares on findings are made; None = those of ``conf/gate/default.yaml``.
        sampled: whether a policy wrote the completions.
        vocabulary: ids that the model knows; None = as many as the tokenizer has.
        languages: whether to tell the languages of some rows, for the statistics.
        checks: which checks; all of them unless there are no true tokens to look at.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        need: Need = "",
        held_out: Mapping[str, Iterable[PromptGroup]] | None = None,
        limits: Limits | None = None,
        sampled: bool = False,
        vocabulary: int | None = None,
        languages: bool = False,
        checks: Sequence[type[Check]] = CHECKS,
    ) -> None:
        size = len(tokenizer) if vocabulary is None else vocabulary
        self.facts = Facts(tokenizer, need, held_out or {}, limits or Limits(), sampled, size)
        self.checks = tuple(kind(self.facts) for kind in checks)
        self.ledger = Ledger()
        self.sizes = Sizes()
        self.languages = Languages() if languages else None

    def see(self, groups: Sequence[PromptGroup], tokens: Sequence[TokenGroup]) -> None:
        """Look at the next rows: as text, and the same ones tokenised."""
        chunk = Chunk(groups, tokens, len(self.ledger))
        if not len(tokens):
            return
        for one in self.checks:
            one.see(chunk)
        self.sizes.see(chunk)
        if self.languages is not None:
            self.languages.see(chunk)
        self.ledger.add(tokens)

    def findings(self) -> list[Finding]:
        """Return what is wrong with the rows so far; errors come first."""
        found = [
            Finding(
                f.severity,
                f.code,
                f.count,
                self.ledger.rows(f.positions),
                f.message,
                f.advice,
                self.ledger.places(f.positions),
            )
            for one in self.checks
            for f in one.findings()
        ]
        return sorted(found, key=lambda finding: finding.severity != "error")

    def statistics(self) -> Statistics:
        """Return the sizes of the rows so far."""
        [characters] = (one for one in self.checks if isinstance(one, Characters))
        languages = {} if self.languages is None else self.languages.shares()
        return self.sizes.statistics(characters.shares(), languages)


def check(
    groups: Sequence[PromptGroup],
    tokens: Sequence[TokenGroup],
    tokenizer: Any,
    *,
    need: Need = "",
    other: Mapping[str, Iterable[PromptGroup]] | None = None,
    sampled: bool = False,
    limits: Limits | None = None,
) -> list[Finding]:
    """Run every check over all rows at once: `Gate` for data that are in memory anyway.

    Args:
        groups: the groups as text.
        tokens: the same groups tokenised.
        tokenizer: the tokenizer they were made with.
        need: as `Gate`.
        other: groups of other splits, whose prompts must not occur here.
        sampled: whether a policy wrote the completions.
        limits: as `Gate`.
    """
    gate = Gate(tokenizer, need=need, held_out=other, limits=limits, sampled=sampled)
    for start in range(0, max(len(groups), len(tokens), 1), CHUNK):
        gate.see(groups[start : start + CHUNK], tokens[start : start + CHUNK])
    return gate.findings()


CHUNK = 4096  # rows that `check` looks at together


def require(findings: Iterable[Finding]) -> None:
    """Refuse to train on data with errors.

    Raises:
        DataError: every finding that is an error, with rows and advice.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = [f"{f.message}{f' ({f.counted()})' if f.count else ''}. {f.advice}" for f in errors]
        raise DataError("The data cannot be trained on.\n  " + "\n  ".join(lines))
