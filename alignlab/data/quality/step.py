"""What a quality step is: groups in, groups out, and a record of its effect."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from alignlab.data.group import PromptGroup
from alignlab.data.quality.texts import excerpt, plain
from alignlab.data.sources.source import TRAINING
from alignlab.run import content_key

# A row that occurs in several splits stays in the one that comes first here.
HELD_OUT = ("test", "validation", "pretrain_validation")
EXAMPLES = 3  # of every reason


class Reason(NamedTuple):
    """Why a group was left out or changed: a few words to count by, and the particulars."""

    why: str
    detail: str = ""


@dataclass(frozen=True)
class StepEffect:
    """What a step did, for the data card of a run."""

    name: str
    rows_in: int
    rows_out: int
    why: Mapping[str, int]  # reason -> rows
    examples: tuple[Mapping[str, str], ...] = ()  # the first rows of every reason
    numbers: Mapping[str, float] = field(default_factory=dict)  # statistics that the step measured


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """Base of all steps. ``splits`` are the ones that the step changes; the others pass as is.

    Held-out splits are not named by default: what a model is measured on must not depend on how
    its training data were cleaned.
    """

    version: ClassVar[int] = 1  # raise it when the same fields keep other rows

    splits: tuple[str, ...] = TRAINING

    @property
    def name(self) -> str:
        """Name in messages: the class name in small letters."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def fingerprint(self) -> str:
        """Hash of all that decides the step's effect on given groups."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return content_key([kind, self.version, self])

    @abstractmethod
    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the groups that are kept, in order, and what happened to the others."""


@dataclass(frozen=True, kw_only=True)
class CrossStep(Step):
    """Base of the steps that compare a split with held-out ones, whose rows win."""

    held_out: tuple[str, ...]  # splits whose rows must not occur in the split that is changed

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Apply the step to groups alone, without held-out ones."""
        return self.apply_against(groups, {})

    @abstractmethod
    def apply_against(
        self, groups: Iterable[PromptGroup], held_out: Mapping[str, Sequence[PromptGroup]]
    ) -> tuple[list[PromptGroup], StepEffect]:
        """Return the groups that are kept beside the groups of held-out splits, by split name."""


def sieve(
    name: str,
    groups: Iterable[PromptGroup],
    complaint: Callable[[PromptGroup], Reason | None],
    numbers: Mapping[str, float] | None = None,
) -> tuple[list[PromptGroup], StepEffect]:
    """Keep the groups without a complaint, and count and show the others by reason."""
    judged = [(group, complaint(group)) for group in groups]
    dropped = [(group, reason) for group, reason in judged if reason is not None]
    kept = [group for group, reason in judged if reason is None]
    return kept, effect(name, len(judged), len(kept), dropped, numbers)


def effect(
    name: str,
    rows_in: int,
    rows_out: int,
    noted: Sequence[tuple[PromptGroup, Reason]],
    numbers: Mapping[str, float] | None = None,
) -> StepEffect:
    """Return the effect of a step that dropped or changed the groups in ``noted``."""
    why: Counter[str] = Counter()
    examples = []
    for group, reason in noted:
        why[reason.why] += 1
        if why[reason.why] <= EXAMPLES:
            examples.append(_example(group, reason))
    return StepEffect(name, rows_in, rows_out, dict(why), tuple(examples), numbers or {})


def _example(group: PromptGroup, reason: Reason) -> dict[str, str]:
    texts = [plain(text) for text in (group.prompt, *group.completions[:2])]
    shown: dict[str, Any] = {
        "why": reason.why,
        "detail": reason.detail,
        "place": str(group.meta.get("place", "")),
        "id": group.id,
        "text": " | ".join(excerpt(text) for text in texts if text),
    }
    return {name: value for name, value in shown.items() if value}
