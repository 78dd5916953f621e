"""What a stage needs of its data: a source, its splits, the prompts that policies sample from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from alignlab.data.group import PromptGroup
from alignlab.data.rows.bad_rows import Losses
from alignlab.errors import DataError, did_you_mean

SPLITS = (
    "pretrain",
    "pretrain_validation",
    "sft",
    "preference",
    "unlabeled",
    "validation",
    "test",
)
TRAINING = ("pretrain", "sft", "preference", "unlabeled")  # what a model learns from


@runtime_checkable
class Source(Protocol):
    """Where prompt groups come from: a frozen dataclass that a configuration states."""

    def fingerprint(self) -> str:
        """Hash of everything that decides the groups."""
        ...

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split."""
        ...

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split, in bounded memory; same groups and order as `load`."""
        ...


@runtime_checkable
class Carded(Protocol):
    """A source that keeps account of what it did to its rows."""

    def card(self) -> dict[str, Any]:
        """Return what was done to the splits loaded so far, as plain data for a run record."""
        ...


@runtime_checkable
class Lossy(Protocol):
    """A source that can leave out rows that it cannot read."""

    def left_out(self, split: str) -> Losses | None:
        """Return what was left out of the rows of a split that was loaded; None = nothing is."""
        ...


def left_out_of(source: Any, split: str) -> Losses | None:
    """Return what a source left out of a split; None where it leaves nothing out."""
    return source.left_out(split) if isinstance(source, Lossy) else None


def policy_prompts(source: Source, most: int) -> list[PromptGroup]:
    """Return the groups whose prompts an online method samples from, at most ``most``.

    They are those of ``unlabeled``; a source that keeps none apart lends the prompts of
    ``preference``, so that online and offline methods see the same ones.
    """
    for split in ("unlabeled", "preference"):
        groups = [group for group, _ in zip(source.stream(split), range(most), strict=False)]
        if groups:
            return groups
    return []


def check_limit(limit: Mapping[str, int | None]) -> None:
    """Refuse limits of unknown splits and limits below one row."""
    for split, most in limit.items():
        check_split(split)
        if most is not None and most < 1:
            raise DataError(f"data.limit.{split} must be null or at least 1, not {most}.")


def check_split(split: str) -> None:
    """Refuse an unknown split."""
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        raise DataError(f"No split '{split}': {known}.{did_you_mean(split, SPLITS)}")
