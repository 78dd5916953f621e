"""What a check of the data gate sees and says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignlab.data.group import PromptGroup, TokenGroup

Severity = Literal["error", "warning"]
Need = Literal["", "prompt", "demonstration", "pairs", "thumbs"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with some rows."""

    severity: Severity
    code: str
    count: int
    rows: tuple[int, ...]  # the first few
    message: str
    advice: str


@dataclass(frozen=True)
class Batch:
    """Everything a check may look at: groups as text and as tokens, in the same order."""

    groups: Sequence[PromptGroup]
    tokens: Sequence[TokenGroup]
    tokenizer: Any
    need: Need = ""
    other: Mapping[str, Sequence[PromptGroup]] = field(default_factory=dict)  # split -> groups
    sampled: bool = False  # completions come from a policy: short or cut ones are its doing

    def finding(
        self, severity: Severity, code: str, rows: Sequence[int], message: str, advice: str
    ) -> Iterator[Finding]:
        """Yield one finding, or none if no row shows it."""
        if rows:
            yield Finding(severity, code, len(rows), tuple(rows[:8]), message, advice)
