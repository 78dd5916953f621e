"""Sampled completions as demonstrations: best of n, rejection sampling, expert iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from alignlab.data.group import DEMONSTRATION, TokenGroup
from alignlab.errors import DataError
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class Imitate:
    """Which completions of an annotated prompt are imitated, as the tokens that were sampled.

    The ``best`` ones of each prompt, in the order of the verdict, that pass the filters. ``best=1``
    of n samples is best-of-n distillation (RAFT, Dong et al. 2023, arXiv:2304.06767); all that
    score ``least`` or more, each answer once, beside the demonstrations of the data, is
    rejection-sampling fine-tuning (RFT, Yuan et al. 2023, arXiv:2308.01825); the same in
    rounds is expert iteration (ReST-EM, Singh et al. 2023, arXiv:2312.06585).
    """

    best: Annotated[int, Range(min=1)]  # most completions of a prompt
    least: float | None  # score that a completion needs; null = none
    distinct: bool  # equal completions of a prompt count once
    truncated: Literal["keep", "drop"]  # completions that were cut at the length limit
    demonstrations: bool  # those of the data too

    def places(self, group: TokenGroup) -> list[int]:
        """Completions of a group that are imitated, best first.

        Raises:
            DataError: a score is asked for, and the annotations hold only ranks or thumbs.
        """
        utilities = group.verdict.utilities()
        found: list[int] = []
        seen: set[bytes] = set()
        for i in sorted(range(len(utilities)), key=lambda i: -utilities[i]):
            content = group.completions[i].tobytes()
            cut = self.truncated == "drop" and bool(group.truncated) and group.truncated[i]
            low = self.least is not None and self._scores(group)[i] < self.least
            if not (cut or low or (self.distinct and content in seen)):
                found.append(i)
            seen.add(content)
        return found[: self.best]

    def _scores(self, group: TokenGroup) -> Sequence[float]:
        scores: Sequence[float] = group.verdict.scores or group.meta.get("gold") or ()
        if len(scores) != len(group.completions):
            raise DataError(
                f"imitate.least={self.least}: prompt {group.id!r} has ranks or thumbs and no score"
                " for each completion; set least=null, or annotate with a reward."
            )
        return scores

    def of(self, groups: Sequence[TokenGroup]) -> Sequence[TokenGroup]:
        """The groups with something to imitate, and of each of them that alone."""
        from alignlab.data.mapped import Selection

        return Selection.of(groups, lambda group: bool(self.places(group)), partial(kept, self))

    def added(
        self,
        annotations: Run,
        given: Sequence[TokenGroup],
        held_out: Sequence[TokenGroup],
        most: int,
    ) -> tuple[Sequence[TokenGroup], Sequence[TokenGroup]]:
        """Groups to train on and at most ``most`` held-out ones, with what is imitated.

        The held-out ones are of the same kind; where none of them passes, they are ``held_out``.
        """
        from alignlab.data.mapped import Joined
        from alignlab.stages.annotations import read

        sampled = self.of(read(annotations, "train"))
        validation = self.of(read(annotations, "validation"))[:most] or held_out
        require_some(sampled, annotations, self)
        require_some(validation, annotations, self)
        return Joined(given, sampled), validation


def kept(how: Imitate, group: TokenGroup) -> TokenGroup:
    """The group with what is imitated of it, as demonstrations."""
    return replace(group.keep(how.places(group)), verdict=DEMONSTRATION)


def require_some(groups: Sequence[TokenGroup], annotations: Run, how: Imitate) -> None:
    """Refuse to imitate nothing.

    Raises:
        DataError: says what to change.
    """
    if not groups:
        raise DataError(
            f"{annotations.name}: no completion passes imitate (least={how.least}, truncated="
            f"{how.truncated}). Sample more of each prompt, allow longer ones, or lower the bound."
        )
