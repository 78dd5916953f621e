"""Rows of any supported format, cut into splits: what `File` and `Hub` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, get_args

import numpy as np

from alignlab.data.formats.registry import FORMATS, Calls, Turns
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.rows.bad_rows import Losses, Policy
from alignlab.data.sources.groups import Reading
from alignlab.data.sources.source import TRAINING, check_limit, check_split
from alignlab.data.sources.splits import assign, refuse_official_test
from alignlab.data.sources.spool import Spool
from alignlab.data.thinking import Thinking
from alignlab.data.transcript import Style, each_turn
from alignlab.errors import DataError, did_you_mean

TEXTS = {"pretrain": "train", "pretrain_validation": "validation"}  # the same rows, as texts
VERSION = 3  # part of the fingerprint: raise it when formats, splits or order change


@dataclass(frozen=True, kw_only=True)
class Table(ABC):
    """Rows of any supported format, cut into splits by a stable hash of the prompt.

    All rows with one prompt (or with one value of ``split_by``) fall into one split. A held-out
    split whose share is positive holds at least one prompt, however small the table is.
    ``unlabeled`` is the share of the training prompts kept for methods that sample from a policy;
    no other training split has them. ``pretrain`` reads prompt and best completion as one text.
    """

    # Fields that came later; while they are null they are in no key.
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset(
        {"calls", "thinking", "mask_thinking", "images"}
    )

    format: str  # auto, or a name of `formats.FORMATS`
    style: Style  # as_is, everything as plain text or as messages, or under Alpaca's headings
    turns: Turns  # of a conversation with several answers: all in one row, the last, each in a row
    fields: Mapping[str, str]  # field in the data -> field that alignlab knows
    weights: Mapping[str, float]  # attribute of a rated answer -> its weight in the score
    split_by: str | None  # field whose rows stay together: user, source, conversation
    validation: float  # share of the prompts held out for validation
    test: float  # share of the prompts held out for the test
    unlabeled: float  # share of the remaining prompts for policies to sample from
    sft: float  # share of the others for sft, unless `share`
    share: bool  # sft and preference both get all the others
    allow_test: bool  # train on what is named a test set
    limit: Mapping[str, int | None]  # split -> most groups, None = all; the first in hash order
    bad_rows: Policy = "refuse"  # rows that cannot be read: an error, or left out and counted
    calls: Calls | None = None  # tools and calls that stand as text: None = kept, or parsed
    thinking: Thinking | None = None  # thoughts: None = as they are
    mask_thinking: bool | None = None  # True: the thoughts of completions are only read
    images: str | None = None  # folder of the images that rows show; None = rows show none

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if self.format != "auto" and self.format not in FORMATS:
            hint = did_you_mean(self.format, FORMATS)
            raise DataError(f"No format '{self.format}': auto, {', '.join(FORMATS)}.{hint}")
        names = ("validation", "test", "unlabeled", "sft")
        shares = {name: getattr(self, name) for name in names}
        if self.bad_rows not in get_args(Policy):
            hint = did_you_mean(self.bad_rows, get_args(Policy))
            raise DataError(f"data.bad_rows={self.bad_rows}: refuse or leave_out.{hint}")
        if self.turns == "each" and self.style == "text":
            raise DataError(
                "data.turns=each makes a row of every answer to messages, and data.style=text makes"
                " them text. Leave one of them out."
            )
        if any(not 0 <= s <= 1 for s in shares.values()) or self.validation + self.test >= 1:
            raise DataError(f"Shares must lie in [0, 1] and leave rows to train on: {shares}.")

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that decides the groups."""

    @abstractmethod
    def _own(self, split: str) -> Spool | None:
        """Groups of a split that has rows of its own, else None; ``train`` always has."""

    @abstractmethod
    def _official_test(self, split: str) -> str | None:
        """Name of the test set that the groups of ``split`` would come from, else None."""

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split, in hash order; see :meth:`stream`."""
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split, in hash order, in bounded memory.

        Rows are read once into a temporary file; 48 bytes of each stay in memory.

        Raises:
            DataError: an unknown split, a test set as training data, or rows that no format reads;
                names place and field.
        """
        self._refuse(split)
        if self._keeps_none(split):
            return iter(())
        source = TEXTS.get(split, split)
        spool = self._own(source) if source != "train" else None
        if spool is None:
            spool, rows = self._cut(source)
        else:
            rows = np.arange(len(spool))
        self._losses[split] = spool.losses
        ordered = rows[np.argsort(spool.order[rows], kind="stable")]
        groups = spool.read(ordered[: self.limit.get(split)].tolist())
        return (as_split(one, split) for group in groups for one in self._shown(group))

    def _shown(self, group: PromptGroup) -> tuple[PromptGroup, ...]:
        """The groups that one of a split stands for: it was cut whole, so no turn leaks."""
        return each_turn(group) if self.turns == "each" else (group,)

    def left_out(self, split: str) -> Losses | None:
        """Return what was left out of the rows that ``split`` is cut from; None before it is read.

        Of a stream, what was left out so far.
        """
        return self._losses.get(split) if self.bad_rows == "leave_out" else None

    def card(self) -> dict[str, Any]:
        """Return what was left out for the splits loaded so far: ``{"left_out": {split: …}}``."""
        lost = {split: found for split in self._losses if (found := self.left_out(split))}
        return {"left_out": {split: one.entry() for split, one in lost.items()}} if lost else {}

    @cached_property
    def _losses(self) -> dict[str, Losses]:
        return {}

    def _deciding(self) -> dict[str, Any]:
        """Fields for the fingerprint; what came later counts where it is set, so old keys stay."""
        later = {"bad_rows": "refuse", "encoding": "utf-8", **dict.fromkeys(self.unkeyed_if_null)}
        return {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}

    def _refuse(self, split: str) -> None:
        check_split(split)
        name = self._official_test(split) if split in TRAINING else None
        if name is not None and not self.allow_test:
            refuse_official_test(name, split)

    def _keeps_none(self, split: str) -> bool:
        """Whether no prompt is kept apart for policies: known without reading a row."""
        return split == "unlabeled" and not self.unlabeled and not self._has_own(split)

    def _cut(self, split: str) -> tuple[Spool, np.ndarray]:
        """The table of all rows and the positions of those that are in a split."""
        spool = self._own("train")
        assert spool is not None
        wanted = {"test": self.test, "validation": self.validation}
        shares = {name: s for name, s in wanted.items() if not self._has_own(name)}
        home = assign(spool.split, shares)
        unlabeled = (home == "train") & (spool.unlabeled < self.unlabeled)
        labeled = (home == "train") & ~unlabeled
        if split in wanted:
            chosen = home == split
        elif split == "unlabeled":
            chosen = unlabeled
        elif split == "train" or self.share:
            chosen = labeled
        else:
            chosen = labeled & ((spool.part < self.sft) == (split == "sft"))
        return spool, np.flatnonzero(chosen)

    @abstractmethod
    def _has_own(self, split: str) -> bool:
        """Whether a split has rows of its own."""

    def _image_folder(self) -> str:
        """Folder that paths of images are relative to; empty where only bytes can be had."""
        return ""

    def _reading(self) -> Reading:
        fields, weights = tuple(self.fields.items()), tuple(self.weights.items())
        return Reading(
            self.format,
            self.style,
            self.turns,
            fields,
            weights,
            self.split_by,
            self.bad_rows,
            self.calls,
            self.thinking,
            bool(self.mask_thinking),
            None if self.images is None else self._image_folder(),
        )


def as_split(group: PromptGroup, split: str) -> PromptGroup:
    """Return the group as a split shows it: texts for pretraining, bare prompts for policies."""
    if split in TEXTS:
        return _as_text(group)
    return group.keep(()) if split == "unlabeled" else group


def _as_text(group: PromptGroup) -> PromptGroup:
    if not isinstance(group.prompt, str):
        raise DataError("Pretraining takes plain text and the data are messages: data.style=text.")
    best = group.completions[group.verdict.best()] if group.completions else ""
    return replace(group, prompt="", completions=(group.prompt + str(best),), verdict=DEMONSTRATION)
