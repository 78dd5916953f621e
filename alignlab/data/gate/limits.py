"""From which share of the data a finding warns, and from which it stops; `conf/gate` says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from alignlab.annotations import Range
from alignlab.data.gate.finding import Severity

Portion = Annotated[float, Range(min=0, max=1)]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Shares in [0, 1] that count as reached when there is at least one case; None = never."""

    warn: Portion | None
    error: Portion | None

    def severity(self, count: int, of: int) -> Severity | None:
        """Say how bad it is that ``count`` of ``of`` cases show something."""
        if not count:
            return None
        share = count / max(of, count)
        if self.error is not None and share >= self.error:
            return "error"
        return "warning" if self.warn is not None and share >= self.warn else None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of every check that asks "how many"; the other checks stop at the first row."""

    left_out: Share = Share(warn=0.0, error=0.05)  # of the rows, with data.bad_rows=leave_out
    prompt_truncated: Share = Share(warn=0.0, error=None)  # of the prompts
    completion_truncated: Share = Share(warn=0.0, error=None)  # of the completions
    tokens_truncated: Share = Share(warn=0.25, error=None)  # of all tokens
    empty_completion: Share = Share(warn=0.0, error=1.0)  # of the completions, before truncation
    chosen_is_rejected: Share = Share(warn=0.0, error=1.0)  # of the rows
    prompt_mismatch: Share = Share(warn=0.0, error=0.05)  # of the rows
    verdict_missing: Share = Share(warn=0.0, error=1.0)  # of the rows
    majority_label: Share = Share(warn=0.95, error=1.0)  # of the thumbs
    contradiction: Share = Share(warn=0.0, error=None)  # of the rows
    repeated_row: Share = Share(warn=0.0, error=None)  # of the rows
    unknown_tokens: Share = Share(warn=0.001, error=0.2)  # of all tokens
    unreadable_text: Share = Share(warn=0.0, error=None)  # of the rows, for each kind of damage
    length_outlier: Annotated[float, Range(min=1)] | None = 20.0  # times the median tokens of a row
    script_outlier: Portion | None = 0.02  # a script in at most this share of the rows stands out
