"""The gate: known silent data bugs, looked for in the very tokens that a stage would train on.

Each check is one small function from `Batch` to findings; `CHECKS` is the list. Errors stop a
stage before it trains (`require`), warnings go to the run record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignlab.data.gate import content_checks, token_checks
from alignlab.data.gate.finding import Batch, Finding, Need, Severity
from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.errors import DataError

__all__ = ["CHECKS", "Batch", "Finding", "Need", "Severity", "check", "require"]

CHECKS: tuple[Callable[[Batch], Iterator[Finding]], ...] = (
    content_checks.no_rows,
    token_checks.bos,
    token_checks.bos_inside,
    token_checks.end_of_completion,
    token_checks.truncated,
    content_checks.empty,
    content_checks.same_completions,
    content_checks.needed_verdict,
    content_checks.one_sided,
    content_checks.special_text,
    content_checks.seam,
    content_checks.leakage,
    content_checks.repeated,
)


def check(
    groups: Sequence[PromptGroup],
    tokens: Sequence[TokenGroup],
    tokenizer: Any,
    *,
    need: Need = "",
    other: Mapping[str, Sequence[PromptGroup]] | None = None,
    sampled: bool = False,
) -> list[Finding]:
    """Run every check; errors come first.

    Args:
        groups: the groups as text.
        tokens: the same groups tokenised.
        tokenizer: the tokenizer they were made with.
        need: what the method asks of the verdicts: ``prompt`` (nothing), ``demonstration``,
            ``pairs`` or ``thumbs``; empty = do not look.
        other: groups of other splits, whose prompts must not occur here.
        sampled: whether a policy wrote the completions.
    """
    if len(groups) != len(tokens):
        raise ValueError(f"{len(groups)} groups but {len(tokens)} token groups.")
    batch = Batch(groups, tokens, tokenizer, need, other or {}, sampled)
    found = [finding for one in CHECKS for finding in one(batch)]
    return sorted(found, key=lambda finding: finding.severity != "error")


def require(findings: Iterable[Finding]) -> None:
    """Refuse to train on data with errors.

    Raises:
        DataError: every finding that is an error, with rows and advice.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        lines = [f"{f.message}{_where(f)}. {f.advice}" for f in errors]
        raise DataError("The data cannot be trained on.\n  " + "\n  ".join(lines))


def _where(finding: Finding) -> str:
    if not finding.count:
        return ""
    more = ", …" if finding.count > len(finding.rows) else ""
    return f" ({finding.count} rows: {', '.join(map(str, finding.rows))}{more})"
