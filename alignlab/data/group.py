"""The prompt group: one prompt, k ≥ 0 completions and a verdict on them, as text and as tokens.

Every alignment data set, batch and rollout is a list of these, so that a comparison changes the
method and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from alignlab.errors import DataError

Message = dict[str, Any]  # role, content; maybe tool_calls, tool_call_id, name, weight (0 or 1)
Text = str | tuple[Message, ...]
Kind = Literal["none", "demonstration", "ranking", "scores", "thumbs"]


@dataclass(frozen=True)
class Verdict:
    """What is known about the completions of one prompt; one kind of knowledge at a time."""

    kind: Kind
    ranks: tuple[int, ...] = ()  # ranking: 0 = best, equal ranks are ties
    scores: tuple[float, ...] = ()  # scores: higher is better
    thumbs: tuple[bool, ...] = ()  # thumbs: True = desirable

    def __post_init__(self) -> None:
        given = {"ranking": self.ranks, "scores": self.scores, "thumbs": self.thumbs}
        for kind, values in given.items():
            if bool(values) != (kind == self.kind):
                have = "has" if values else "needs"
                raise DataError(f"A verdict of kind '{self.kind}' {have} {kind} values: {values}.")
        if any(math.isnan(score) for score in self.scores):
            raise DataError(f"A score is not a number: {self.scores}. Drop the completion.")

    def __len__(self) -> int:
        """Completions that the verdict speaks of one by one; 0 for none and demonstration."""
        return len(self.ranks) or len(self.scores) or len(self.thumbs)

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return self.kind != "none"

    def utilities(self) -> tuple[float, ...]:
        """One number per completion, higher is better; empty for none and demonstration."""
        if self.kind == "ranking":
            return tuple(-float(rank) for rank in self.ranks)
        return self.scores or tuple(float(thumb) for thumb in self.thumbs)

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Every (better, worse) pair of completion indices; ties give none."""
        value = self.utilities()
        return tuple(
            (i, j) for i in range(len(value)) for j in range(len(value)) if value[i] > value[j]
        )

    def best(self) -> int:
        """Index of the best completion, the first of equals; 0 for a demonstration."""
        if self.kind == "none":
            raise DataError("No completion is the best one: the group carries no verdict.")
        value = self.utilities()
        return max(range(len(value)), key=value.__getitem__, default=0)

    def desirable(self) -> tuple[bool | None, ...]:
        """Thumb of each completion; for rankings and scores: wins against losses.

        A completion that wins more pairs than it loses is desirable, one that loses more is not,
        and one with as many of each (the middle of an odd ranking, a tie) gets None.
        Empty for none and demonstration, which judge no completion against another.
        """
        if self.kind == "thumbs":
            return self.thumbs
        value = self.utilities()
        balance = [sum((v > w) - (v < w) for w in value) for v in value]
        return tuple(None if b == 0 else b > 0 for b in balance)

    def keep(self, indices: Sequence[int]) -> Self:
        """Return the same verdict on some of the completions, in the order of ``indices``."""
        if not indices:
            return replace(self, kind="none", ranks=(), scores=(), thumbs=())
        if not len(self):
            return self
        return replace(
            self,
            ranks=tuple(self.ranks[i] for i in indices) if self.ranks else (),
            scores=tuple(self.scores[i] for i in indices) if self.scores else (),
            thumbs=tuple(self.thumbs[i] for i in indices) if self.thumbs else (),
        )


NONE = Verdict("none")
DEMONSTRATION = Verdict("demonstration")
CHOSEN_REJECTED = Verdict("ranking", ranks=(0, 1))


def _check_lengths(verdict: Verdict, completions: int, where: str) -> None:
    if len(verdict) and len(verdict) != completions:
        raise DataError(
            f"Group {where!r}: {completions} completions but {len(verdict)} {verdict.kind} values. "
            "Give one value per completion."
        )


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with its completions and the verdict on them, as text or messages."""

    prompt: Text
    completions: tuple[Text, ...] = ()
    verdict: Verdict = NONE
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()  # JSON schemas that the template may show

    def __post_init__(self) -> None:
        _check_lengths(self.verdict, len(self.completions), self.id)

    @property
    def conversational(self) -> bool:
        """Whether prompt and completions are messages (a chat template applies) or plain text."""
        return not isinstance(self.prompt, str)

    def demonstration(self) -> Self | None:
        """Return the best completion as a demonstration; None where nothing is worth imitating.

        That is a group without completions, or one of which every thumb is down.
        """
        if not self.completions or (self.verdict.thumbs and not any(self.verdict.thumbs)):
            return None
        best = self.completions[self.verdict.best()]
        return replace(self, completions=(best,), verdict=DEMONSTRATION)

    def keep(self, indices: Sequence[int]) -> Self:
        """Return the group with some of its completions, in the order of ``indices``."""
        kept = tuple(self.completions[i] for i in indices)
        return replace(self, completions=kept, verdict=self.verdict.keep(indices))


@dataclass(frozen=True, eq=False)
class TokenGroup:
    """A prompt group as token ids.

    ``prompt`` holds at least one token and BOS exactly once iff the tokenizer's own encoding adds
    one; each completion ends in EOS exactly once unless it was truncated. A completion of several
    turns has a mask: only what the assistant wrote is a target.
    """

    prompt: np.ndarray  # (L,) int32
    completions: tuple[np.ndarray, ...]  # k arrays of int32
    verdict: Verdict
    row: int  # position in the data set: what `step_rows` counts
    id: str
    truncated: tuple[bool, ...] = ()  # one per completion
    meta: Mapping[str, Any] = field(default_factory=dict)
    masks: tuple[np.ndarray | None, ...] = ()  # one bool per token; None or () = all are targets

    def __post_init__(self) -> None:
        _check_lengths(self.verdict, len(self.completions), self.id)
        if self.masks and [len(c) if m is None else len(m) for c, m in self._masked()] != [
            len(c) for c in self.completions
        ]:
            raise DataError(f"Group {self.id!r}: a mask needs one value per completion token.")

    def _masked(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        return zip(self.completions, self.masks, strict=True)

    def targets(self) -> tuple[int, ...]:
        """Tokens of each completion that a loss counts."""
        if not self.masks:
            return tuple(map(len, self.completions))
        return tuple(len(c) if mask is None else int(mask.sum()) for c, mask in self._masked())

    def keep(self, indices: Sequence[int]) -> Self:
        """Return the group with some of its completions, in the order of ``indices``."""
        return replace(
            self,
            completions=tuple(self.completions[i] for i in indices),
            verdict=self.verdict.keep(indices),
            truncated=tuple(self.truncated[i] for i in indices) if self.truncated else (),
            masks=tuple(self.masks[i] for i in indices) if self.masks else (),
        )
