"""Prompt groups from a data set of the Hugging Face hub, downloaded whole or as a stream."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from alignlab.data.group import PromptGroup
from alignlab.data.rows.bad_rows import WAY_OUT, BadRows, InFile, Losses
from alignlab.data.rows.files import Row
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.data.rows.tables import plain_rows
from alignlab.data.sources.groups import Reading, groups_of
from alignlab.data.sources.source import check_split
from alignlab.data.sources.splits import hashed, is_official_test, key_of
from alignlab.data.sources.spool import Spool
from alignlab.data.sources.table import TEXTS, VERSION, Table, as_split
from alignlab.errors import DataError

DataSet = tuple[str, str | None, str | None, str]  # id, configuration, revision, split


@dataclass(frozen=True, kw_only=True)
class Hub(Table):
    """A data set of the Hugging Face hub, read with `datasets`.

    ``splits`` maps our split names (and ``train``) to the data set's; a split that is not named is
    cut from ``train``. With ``streaming`` nothing is kept: groups come in the order of the data
    set, ``limit`` takes the first of them, and a split cut from ``train`` may turn out empty.
    """

    id: str
    config: str | None
    revision: str | None  # commit, tag or branch; a full commit hash needs no network to plan
    splits: Mapping[str, str]
    streaming: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for split in self.splits:
            if split != "train":
                check_split(split)

    def fingerprint(self) -> str:
        """Hash of the data set's commit and of every field."""
        return fingerprint_of([], ("hub", VERSION, self._commit(), self._deciding()))

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split; of a stream only as many as ``limit`` says.

        Raises:
            DataError: as :meth:`stream`; or all of a stream is asked for at once.
        """
        if self.streaming and self.limit.get(split) is None:
            raise DataError(
                f"'{self.id}' is read as a stream and '{split}' is wanted whole: say how many "
                f"groups with data.limit.{split}=NUMBER, or set data.streaming=false."
            )
        return super().load(split)

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split: in hash order, or with ``streaming`` as they come.

        Raises:
            DataError: an unknown split, a test set as training data, no network, or rows that no
                format reads.
        """
        if not self.streaming:
            return super().stream(split)
        self._refuse(split)
        if self._keeps_none(split):
            return iter(())
        bad = self._streams[split] = BadRows(self.bad_rows, WAY_OUT)
        passing = self._passing(TEXTS.get(split, split), bad)
        groups = itertools.islice(passing, self.limit.get(split))
        return (as_split(one, split) for group in groups for one in self._shown(group))

    def left_out(self, split: str) -> Losses | None:
        """As of a table; of a stream what was left out until now."""
        if self.bad_rows == "leave_out" and split in self._streams:
            self._losses[split] = self._streams[split].losses()
        return super().left_out(split)

    @cached_property
    def _streams(self) -> dict[str, BadRows]:
        return {}

    def _passing(self, split: str, bad: BadRows) -> Iterator[PromptGroup]:
        own = split if split == "train" or self._has_own(split) else "train"
        merge, groups = _groups(self._data_set(own), self._reading(), bad, streaming=True)
        if merge:
            raise DataError(
                f"'{self.id}' has rows that belong together by their prompt, which a stream cannot "
                "wait for. Set data.streaming=false."
            )
        if own == split and split != "train":
            yield from groups
            return
        yield from (g for g in groups if self._is_in(split, key_of(g, self.split_by)))

    def _is_in(self, split: str, key: str) -> bool:
        """Whether a key of the train rows falls into a split: the rule of `Table`, row by row."""
        wanted = {"test": self.test, "validation": self.validation}
        at, bound = hashed("split", key), 0.0
        for name, share in wanted.items():
            bound += 0.0 if self._has_own(name) else share
            if at < bound:
                return name == split
        if split in wanted:
            return False
        unlabeled = hashed("unlabeled", key) < self.unlabeled
        if split == "unlabeled" or unlabeled:
            return unlabeled and split == "unlabeled"
        return (
            split == "train" or self.share or (hashed("part", key) < self.sft) == (split == "sft")
        )

    def _data_set(self, split: str) -> DataSet:
        return self.id, self.config, self.revision, self.splits.get(split, "train")

    def _has_own(self, split: str) -> bool:
        return split in self.splits

    def _own(self, split: str) -> Spool | None:
        if split != "train" and not self._has_own(split):
            return None
        return _spool(self._data_set(split), self._reading())

    def _official_test(self, split: str) -> str | None:
        source = TEXTS.get(split, split)
        theirs = self.splits.get(source if source in self.splits else "train", "train")
        parts = (part.split("[")[0].strip() for part in theirs.split("+"))
        return next((part for part in parts if is_official_test(part)), None)

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


def _rows(
    data_set: DataSet, short: str, bad: BadRows, streaming: bool
) -> Iterator[tuple[str, Row]]:
    import datasets

    name, config, revision, theirs = data_set
    where = f"Hub data set '{name}', split '{theirs}'"
    more = {"streaming": True} if streaming else {}
    try:
        table = datasets.load_dataset(name, config, revision=revision, split=theirs, **more)
        yield from plain_rows(map(dict, _undecoded(table)), InFile(where, bad, short))
    except DataError:
        raise
    except Exception as error:  # network, gating, unknown split: `datasets` says which
        raise DataError(f"{where}: {error}") from error


def _undecoded(table: Any) -> Any:
    """The table with its images as the bytes that they are stored in."""
    from datasets import Image, List

    for name, feature in (table.features or {}).items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            table = table.cast_column(name, List(Image(decode=False)))
    return table


def _groups(
    data_set: DataSet, reading: Reading, bad: BadRows, streaming: bool
) -> tuple[bool, Iterator[PromptGroup]]:
    where = f"{data_set[0]} ({data_set[3]})"
    return groups_of(_rows(data_set, where, bad, streaming), where, where, reading, bad)


@lru_cache(maxsize=6)
def _spool(data_set: DataSet, reading: Reading) -> Spool:
    """Groups of one split of a data set, read once per process."""
    bad = BadRows(reading.bad_rows, WAY_OUT)
    merge, groups = _groups(data_set, reading, bad, streaming=False)
    return Spool(groups, reading.split_by, merge, bad)
