"""Token groups in mapped files, as a sequence: what is not touched is not in memory."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from alignlab.data.group import TokenGroup
from alignlab.data.pack import group_tokens
from alignlab.data.token_shards import Shard, read_arrays, read_shard, write_arrays, write_shard

SHARD = 2048  # groups of one file that `keep` writes


class Places:
    """File and line of every row, as one text and the ends of its parts."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.ends = array("q")

    def add(self, place: str | None) -> None:
        """Append one; None for a row that came from no file."""
        if place is not None:
            self.text += b"@" + place.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.text))

    def __getitem__(self, row: int) -> str | None:
        start = self.ends[row - 1] if row else 0
        found = bytes(self.text[start : self.ends[row]])
        return found[1:].decode("utf-8", "surrogatepass") if found else None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Places:
        """Places that `arrays` gave."""
        made = cls()
        made.text = bytearray(arrays["places"].data)
        made.ends.frombytes(arrays["place_ends"].tobytes())
        return made

    def arrays(self) -> dict[str, np.ndarray]:
        """The same as arrays."""
        ends = np.frombuffer(self.ends, dtype=np.int64) if self.ends else np.zeros(0, np.int64)
        return {"places": np.frombuffer(bytes(self.text), dtype=np.uint8), "place_ends": ends}


class Groups(Sequence[TokenGroup]):
    """What all sequences here have in common: slices are lists, other indices are checked."""

    @overload
    def __getitem__(self, index: int) -> TokenGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenGroup]: ...
    def __getitem__(self, index: int | slice) -> TokenGroup | list[TokenGroup]:
        """One group, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.at(position)

    def __iter__(self) -> Iterator[TokenGroup]:
        return map(self.at, range(len(self)))

    def at(self, position: int) -> TokenGroup:
        """Read the group at a position that exists."""
        raise NotImplementedError

    def sizes(self) -> np.ndarray:
        """Tokens of every group (rows,), prompt once and all completions: what packing needs."""
        return np.fromiter(map(group_tokens, self), np.int64, len(self))

    def counts(self) -> np.ndarray:
        """Completions of every group (rows,)."""
        return np.fromiter((len(group.completions) for group in self), np.int64, len(self))


class Mapped(Groups):
    """Groups of mapped shards, one after the other; ``rows`` numbers them, else they count up."""

    def __init__(
        self, shards: Sequence[Shard], places: Places, rows: np.ndarray | None = None
    ) -> None:
        self.shards, self.places, self.rows = tuple(shards), places, rows
        self._starts = np.cumsum([0, *map(len, self.shards)], dtype=np.int64).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def at(self, position: int) -> TokenGroup:
        """Read the group at a position that exists."""
        shard = bisect.bisect_right(self._starts, position) - 1
        row = position if self.rows is None else int(self.rows[position])
        place = self.places[position]
        return self.shards[shard].group(position - self._starts[shard], row, place)

    def sizes(self) -> np.ndarray:
        """Tokens of every group (rows,); none is read."""
        return joined([shard.sizes for shard in self.shards])

    def counts(self) -> np.ndarray:
        """Completions of every group (rows,); none is read."""
        return joined([np.diff(shard.arrays["first"]) - 1 for shard in self.shards])


@dataclass(frozen=True, eq=False)
class Selection(Groups):
    """Some groups of a sequence, each read when it is asked for, and changed if ``change``."""

    groups: Sequence[TokenGroup]
    positions: np.ndarray  # (rows,) in `groups`
    change: Callable[[TokenGroup], TokenGroup] | None = None

    @classmethod
    def of(
        cls,
        groups: Sequence[TokenGroup],
        wanted: Callable[[TokenGroup], bool],
        change: Callable[[TokenGroup], TokenGroup] | None = None,
    ) -> Selection:
        """The groups for which ``wanted`` holds."""
        chosen = (i for i, group in enumerate(groups) if wanted(group))
        return cls(groups, np.fromiter(chosen, dtype=np.int64), change)

    def __len__(self) -> int:
        return len(self.positions)

    def at(self, position: int) -> TokenGroup:
        """Read the group at a position that exists."""
        group = self.groups[int(self.positions[position])]
        return group if self.change is None else self.change(group)

    def sizes(self) -> np.ndarray:
        """Tokens of every group (rows,); none is read, unless they are changed."""
        known = self.change is None
        return sizes_of(self.groups)[self.positions] if known else super().sizes()

    def counts(self) -> np.ndarray:
        """Completions of every group (rows,); none is read, unless they are changed."""
        known = self.change is None
        return completion_counts(self.groups)[self.positions] if known else super().counts()


class Joined(Groups):
    """Several sequences of groups, one after the other."""

    def __init__(self, *parts: Sequence[TokenGroup]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def at(self, position: int) -> TokenGroup:
        """Read the group at a position that exists."""
        part = bisect.bisect_right(self._ends, position)
        return self.parts[part][position - (self._ends[part - 1] if part else 0)]


def keep(folder: Path, key: str, groups: Iterable[TokenGroup], notes: Mapping[str, Any]) -> None:
    """Write groups with their row numbers and places, to be found by `kept` under ``key``.

    Only a shard of them is in memory. ``notes`` may be filled while ``groups`` are gone through.
    """
    stream, rows, places = iter(groups), array("q"), Places()
    names: list[str] = []
    while part := list(islice(stream, SHARD)):
        names.append(f"{key}-{len(names)}.tokens")
        write_shard(folder / names[-1], part)
        for group in part:
            rows.append(group.row)
            places.add(group.meta.get("place"))
    arrays = {**places.arrays(), "rows": np.array(rows, dtype=np.int64)}
    write_arrays(folder / f"{key}.set", arrays, {**notes, "shards": names})


def kept(folder: Path, key: str) -> tuple[Mapped, Mapping[str, Any]] | None:
    """What `keep` wrote under ``key``, mapped; None where it is not there or not whole."""
    found = read_arrays(folder / f"{key}.set")
    if found is None:
        return None
    shards = [read_shard(folder / name) for name in found.notes["shards"]]
    whole = [shard for shard in shards if shard is not None]
    if len(whole) < len(shards):
        return None
    return Mapped(whole, Places.of(found.arrays), found.arrays["rows"]), found.notes


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays end to end, int64 if there are none."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def sizes_of(groups: Sequence[TokenGroup]) -> np.ndarray:
    """Tokens of every group (rows,), prompt once and all completions; mapped ones are not read."""
    if isinstance(groups, Groups):
        return groups.sizes()
    return np.fromiter(map(group_tokens, groups), np.int64, len(groups))


def completion_counts(groups: Sequence[TokenGroup]) -> np.ndarray:
    """Completions of every group (rows,); mapped ones are not read."""
    if isinstance(groups, Groups):
        return groups.counts()
    return np.fromiter((len(group.completions) for group in groups), np.int64, len(groups))
