"""Where prompt groups come from: `Reviews` (a package), `File` (local), `Hub` (Hugging Face).

A source is a frozen dataclass with `load(split)` and `fingerprint()`; its splits are ``pretrain``
and ``pretrain_validation`` (texts), ``sft``, ``preference``, ``validation`` and ``test``.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from alignlab.data.formats.registry import FORMATS, detect, read
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.rows.files import Row, fingerprint_of, read_rows
from alignlab.data.sources.reviews import SPLITS, Reviews, check_limit, check_split
from alignlab.data.transcript import Style, with_style
from alignlab.errors import DataError, did_you_mean

__all__ = ["SPLITS", "File", "Hub", "Reviews", "Source"]

_TEXTS = {"pretrain": "train", "pretrain_validation": "validation"}  # the same rows, as texts
VERSION = 1  # part of the fingerprint: raise it when formats, splits or order change


class Source(Protocol):
    """What a stage needs of its data."""

    def fingerprint(self) -> str:
        """Hash of everything that decides the groups."""

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split."""


@dataclass(frozen=True, kw_only=True)
class Table(ABC):
    """Rows of any supported format, cut into splits by a stable hash of the prompt.

    All rows with one prompt fall into one split. A held-out split whose share is positive holds at
    least one prompt, however small the table is.
    """

    format: str  # auto, or a name of `formats.FORMATS`
    style: Style  # as_is, or everything as plain text, or everything as messages
    fields: Mapping[str, str]  # field in the data -> field that alignlab knows
    validation: float  # share of the prompts held out for validation
    test: float  # share of the prompts held out for the test
    sft: float  # share of the remaining prompts for sft, unless `share`
    share: bool  # sft and preference both get all remaining prompts
    limit: Mapping[str, int | None]  # split -> most groups, None = all; the first in hash order

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if self.format != "auto" and self.format not in FORMATS:
            hint = did_you_mean(self.format, FORMATS)
            raise DataError(f"No format '{self.format}': auto, {', '.join(FORMATS)}.{hint}")
        shares = {"validation": self.validation, "test": self.test, "sft": self.sft}
        if any(not 0 <= s <= 1 for s in shares.values()) or self.validation + self.test >= 1:
            raise DataError(f"Shares must lie in [0, 1] and leave rows to train on: {shares}.")

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that decides the groups."""

    @abstractmethod
    def _own(self, split: str) -> Sequence[PromptGroup] | None:
        """Groups of a split that has rows of its own, else None; ``train`` always has."""

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split, in hash order.

        Raises:
            DataError: an unknown split, or rows that no format reads; names place and field.
        """
        check_split(split)
        source = _TEXTS.get(split, split)
        own = self._own(source) if source != "train" else None
        groups = self._cut(source) if own is None else own
        if split in _TEXTS:
            groups = [_as_text(group) for group in groups]
        ordered = sorted(groups, key=lambda group: _hash("order", group.id))
        return ordered[: self.limit.get(split)]

    def _cut(self, split: str) -> list[PromptGroup]:
        groups = self._own("train") or ()
        keys = [_key(group) for group in groups]
        wanted = {"test": self.test, "validation": self.validation}
        shares = {name: s for name, s in wanted.items() if self._own(name) is None}
        home = assign(keys, shares)
        if split in wanted:
            return [g for g, key in zip(groups, keys, strict=True) if home[key] == split]
        train = [(g, key) for g, key in zip(groups, keys, strict=True) if home[key] == "train"]
        if split == "train" or self.share:
            return [group for group, _ in train]
        return [g for g, key in train if (_hash("part", key) < self.sft) == (split == "sft")]

    def _groups(self, rows: Iterable[tuple[str, Row]], where: str) -> tuple[PromptGroup, ...]:
        return read_groups(rows, where, self.format, self.style, tuple(self.fields.items()))


@dataclass(frozen=True, kw_only=True)
class File(Table):
    """A local file: JSON lines, JSON, CSV, TSV or Parquet, gzipped or not, told by content."""

    path: str
    validation_path: str | None  # a file of its own; then nothing is cut from `path` for it
    test_path: str | None

    def fingerprint(self) -> str:
        """Hash of the files' bytes and of every field but the paths."""
        fields = replace(self, path="", validation_path=None, test_path=None)
        used = [p for p in (self.path, self.validation_path, self.test_path) if p is not None]
        for path in used:
            if not Path(path).expanduser().is_file():
                read_rows(Path(path).expanduser())  # raises the error that says what is wrong
        names = [self.validation_path is not None, self.test_path is not None]
        content = ("file", VERSION, names, fields)
        return fingerprint_of([Path(path).expanduser() for path in used], content)

    def _own(self, split: str) -> Sequence[PromptGroup] | None:
        paths = {
            "train": self.path,
            "validation": self.validation_path,
            "test": self.test_path,
        }
        if paths.get(split) is None:
            return None
        path = Path(str(paths[split])).expanduser()
        stat = path.stat() if path.is_file() else None
        stamp = (stat.st_mtime_ns, stat.st_size) if stat else None
        fields = tuple(self.fields.items())
        return _parse(path, stamp, self.format, self.style, fields)


@dataclass(frozen=True, kw_only=True)
class Hub(Table):
    """A data set of the Hugging Face hub, read with `datasets`.

    ``splits`` maps our split names (and ``train``) to the data set's; a split that is not named is
    cut from ``train``.
    """

    id: str
    config: str | None
    revision: str | None  # commit, tag or branch; a full commit hash needs no network to plan
    splits: Mapping[str, str]

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in self.splits:
            if split != "train":
                check_split(split)

    def fingerprint(self) -> str:
        """Hash of the data set's commit and of every field."""
        return fingerprint_of([], ("hub", VERSION, self._commit(), self))

    def _commit(self) -> str:
        if self.revision and re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.id, revision=self.revision).sha)
        except Exception as error:  # no network, no such data set, gated: one advice for all
            raise DataError(
                f"Cannot look up data set '{self.id}' on the hub ({type(error).__name__}). State "
                "a full commit hash as data.revision to plan offline, or use data=file "
                "data.path=FILE."
            ) from error

    def _own(self, split: str) -> Sequence[PromptGroup] | None:
        if split not in self.splits and split != "train":
            return None
        import datasets

        theirs = self.splits.get(split, "train")
        try:
            table = datasets.load_dataset(
                self.id, self.config, revision=self.revision, split=theirs
            )
        except Exception as error:  # network, gating, unknown split: `datasets` says which
            raise DataError(f"Hub data set '{self.id}', split '{theirs}': {error}") from error
        rows = ((f"row {number}", dict(row)) for number, row in enumerate(table, 1))
        return self._groups(rows, f"{self.id} ({theirs})")


def assign(keys: Iterable[str], shares: Mapping[str, float]) -> dict[str, str]:
    """Return the split of each distinct prompt key: a held-out one by share, else ``train``.

    The split is a pure hash of the key, so growing data move no prompt. Only where a split with a
    positive share would be empty does it get the nearest train prompt.

    Raises:
        DataError: too few distinct prompts to hold any out.
    """
    place = sorted((_hash("split", key), key) for key in set(keys))
    home = {}
    for value, key in place:
        bound = 0.0
        home[key] = "train"
        for name, share in shares.items():
            bound += share
            if value < bound:
                home[key] = name
                break
    for name, share in shares.items():
        if share > 0 and name not in home.values():
            train = [key for _, key in place if home[key] == "train"]
            if len(train) < 2:
                raise DataError(
                    f"{len(place)} distinct prompts cannot be cut into train and "
                    f"{', '.join(shares)}. Add rows, or set data.validation=0 data.test=0."
                )
            home[train[0]] = name
    return home


def read_groups(
    rows: Iterable[tuple[str, Row]],
    where: str,
    format: str,
    style: Style,
    fields: tuple[tuple[str, str], ...],
) -> tuple[PromptGroup, ...]:
    """Read rows of a format (or of the one their fields make) into groups with ids.

    Raises:
        DataError: names ``where``, the place of the first bad row, the field and the reason.
    """
    table = list(rows)
    names = dict(fields)
    for name in names:
        if table and not any(name in row for _, row in table):
            known = ", ".join(table[0][1])
            hint = did_you_mean(name, table[0][1])
            raise DataError(f"{where}: data.fields names '{name}'; the fields are {known}.{hint}")
    renamed = [(place, {names.get(k, k): v for k, v in row.items()}) for place, row in table]
    try:
        chosen = detect([row for _, row in renamed]) if format == "auto" else format
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    groups = []
    for place, row in renamed:
        try:
            group = with_style(read(chosen, row), style)
        except DataError as error:
            raise DataError(f"{where}, {place} (format {chosen}): {error}") from error
        identity = json.dumps([group.prompt, group.completions])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        groups.append(replace(group, id=digest, meta={**group.meta, "place": place}))
    return tuple(groups)


@lru_cache(maxsize=4)
def _parse(
    path: Path,
    stamp: tuple[int, int] | None,
    format: str,
    style: Style,
    fields: tuple[tuple[str, str], ...],
) -> tuple[PromptGroup, ...]:
    """Groups of a file; ``stamp`` (time, size) is only the key of the cache."""
    return read_groups(read_rows(path), str(path), format, style, fields)


def _key(group: PromptGroup) -> str:
    """What makes two prompts the same one: for texts to model, the text itself."""
    return json.dumps(group.prompt or group.completions)


def _hash(purpose: str, key: str) -> float:
    """A number in [0, 1) from a key; each purpose has its own independent numbers."""
    return int(hashlib.sha256(f"{purpose}:{key}".encode()).hexdigest()[:12], 16) / 16**12


def _as_text(group: PromptGroup) -> PromptGroup:
    if not isinstance(group.prompt, str):
        raise DataError("Pretraining takes plain text and the data are messages: data.style=text.")
    best = group.completions[group.verdict.best()] if group.completions else ""
    return replace(group, prompt="", completions=(group.prompt + str(best),), verdict=DEMONSTRATION)
