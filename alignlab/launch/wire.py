"""A small store that every process of a job reaches, beside the process group, with signs of life.

The first process hosts it: a ``torch.distributed.TCPStore`` on a free port of its machine. A
connection serves one thread. Nothing here waits: a caller asks again, and can look for trouble
meanwhile.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

TIMEOUT = timedelta(seconds=30)  # for a connection, and for one answer


class Wire:
    """One connection to the store of a job; ``lost`` says why there is none any more."""

    def __init__(self, world: int, *, port: int = 0, host_it: bool = False) -> None:
        from torch.distributed import TCPStore

        self.world = world
        self.lost: str | None = None
        self._beats: dict[int, tuple[str, float]] = {}  # rank → its last sign, and when it was new
        address = os.environ.get("MASTER_ADDR", "localhost")
        self._store = TCPStore(
            address, port, is_master=host_it, wait_for_workers=False, timeout=TIMEOUT
        )
        self.port: int = self._store.port

    def put(self, key: str, content: Mapping[str, Any]) -> None:
        """Write one entry."""
        self._asked(lambda: self._store.set(key, json.dumps(content)))

    def put_first(self, key: str, content: Mapping[str, Any]) -> None:
        """Write one entry, unless there is one already."""
        self._asked(lambda: self._store.compare_set(key, "", json.dumps(content)))

    def get(self, key: str) -> dict[str, Any] | None:
        """Read an entry; None while there is none."""
        there = self._asked(lambda: self._store.check([key]))
        text = self._asked(lambda: self._store.get(key)) if there else None
        return json.loads(text) if text else None

    def get_all(self, prefix: str) -> dict[int, dict[str, Any]]:
        """Entries ``prefix/RANK`` of those processes that have written one."""
        found = ((rank, self.get(f"{prefix}/{rank}")) for rank in range(self.world))
        return {rank: entry for rank, entry in found if entry is not None}

    def beat(self, rank: int, number: int) -> None:
        """Give a sign of life."""
        self._asked(lambda: self._store.set(f"beat/{rank}", str(number)))

    def silences(self, ranks: Iterable[int]) -> dict[int, float]:
        """Seconds that each process has given no sign of life, as far as was looked here."""
        ranks = list(ranks)
        keys = [f"beat/{rank}" for rank in ranks]
        signs = self._asked(lambda: self._store.multi_get(keys))
        now = time.monotonic()
        for rank, sign in zip(ranks, signs or (), strict=bool(signs)):
            text = sign.decode()
            if self._beats.get(rank, ("", 0.0))[0] != text:
                self._beats[rank] = text, now
        return {rank: now - self._beats.get(rank, ("", now))[1] for rank in ranks}

    def _asked(self, request: Callable[[], Any]) -> Any:
        """Answer of the store; None once it is gone, and ``lost`` is set."""
        if self.lost is not None:
            return None
        try:
            return request()
        except RuntimeError as error:  # torch's DistError, and that of a closed socket
            self.lost = str(error).partition("\n")[0]
            return None
