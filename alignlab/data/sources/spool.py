"""Groups of one table on disk, with the hashes by which they are ordered and cut into splits."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from alignlab.data.formats.grouping import common_key, together
from alignlab.data.group import PromptGroup
from alignlab.data.rows.bad_rows import BadRows, Losses
from alignlab.data.sources.splits import hashed, key_of


class Spool:
    """Groups in the order they were read: 48 bytes of each in memory, the rest in a file.

    So a table of any size is read and parsed once, and its splits come out in hash order. Where
    rows of one prompt belong together, they are one group, at the place of the first.
    """

    def __init__(
        self,
        groups: Iterable[PromptGroup],
        split_by: str | None,
        merge: bool = False,
        bad: BadRows | None = None,
    ) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the spool)
        numbers = {name: array("d") for name in ("order", "split", "part", "unlabeled")}
        ends = array("q", [0])
        firsts: dict[bytes, int] = {}  # hash of what is common -> position of the first row
        self._others: dict[int, list[int]] = {}  # first row -> rows that belong to it
        for row, group in enumerate(groups):
            key = key_of(group, split_by)
            for name, values in numbers.items():
                values.append(hashed(name, group.id if name == "order" else key))
            if merge and (common := common_key(group)):
                first = firsts.setdefault(hashlib.sha256(common.encode()).digest()[:16], row)
                if first != row:
                    self._others.setdefault(first, []).append(row)
            data = pickle.dumps(group, protocol=pickle.HIGHEST_PROTOCOL)
            self._file.write(data)
            ends.append(ends[-1] + len(data))
        self._file.flush()
        self._ends = np.asarray(ends)
        kept = np.ones(len(ends) - 1, dtype=bool)
        kept[[row for others in self._others.values() for row in others]] = False
        self.order, self.split, self.part, self.unlabeled = (
            np.asarray(values)[kept] for values in numbers.values()
        )  # each (groups,) in [0, 1)
        self._rows = np.flatnonzero(kept)
        self.losses = bad.losses() if bad is not None else Losses(len(ends) - 1, 0, {})

    def __len__(self) -> int:
        return len(self.order)

    def read(self, positions: Iterable[int]) -> Iterator[PromptGroup]:
        """Yield the groups at these positions."""
        for position in positions:
            row = int(self._rows[position])
            rows = [row, *self._others.get(row, ())]
            yield self._at(row) if len(rows) == 1 else together([self._at(r) for r in rows])[0]

    def _at(self, row: int) -> PromptGroup:
        start, end = int(self._ends[row]), int(self._ends[row + 1])
        # By position and not by seeking: forked processes share the file's pointer.
        group: PromptGroup = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return group
