"""How a stage ended on each of the processes of a job, and which of them ended it for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alignlab.errors import AlignlabError
from alignlab.launch.outcomes import as_error, told
from alignlab.launch.wire import Wire

BEAT_SECONDS = 2.0  # between two signs of life
MISSED_SECONDS = 3 * BEAT_SECONDS  # without one, once a connection has broken: the process is gone


class Ends:
    """What one process knows of the ends of a stage on the others, and tells of its own."""

    def __init__(
        self, wire: Wire, rank: int, hosts: Sequence[str], heard: dict[int, dict[str, Any]]
    ) -> None:
        self.wire, self.rank, self.hosts = wire, rank, hosts
        self.stage = 0  # number of the stage that was begun last
        # By stage what ended it, of all threads: who said it may have left, and the store with him.
        self._heard = heard

    def report(self, error: BaseException, rank: int | None = None) -> None:
        """Say what ended the stage for all, unless another process was faster."""
        by = self.rank if rank is None else rank
        self.wire.put_first(self._event, {**told(error), "rank": by})

    def reported(self) -> AlignlabError | None:
        """The error that another process said has ended the stage."""
        event = self._heard.get(self.stage) or self.wire.get(self._event)
        if event is None:
            return None
        self._heard[self.stage] = event
        return None if event["rank"] == self.rank else self._theirs(event)

    def signal(self, number: int) -> int:
        """Number of the signal that came to this process or to another; 0 = none came.

        A scheduler may send it to one alone, which notes it in the middle of what all do together.
        """
        key = f"stage/{self.stage}/signal"
        if number:
            self.wire.put_first(key, {"number": number})
        return number or int((self.wire.get(key) or {"number": 0})["number"])

    def put(self, facts: Mapping[str, Any]) -> None:
        """Say how the stage ended here."""
        self.wire.put(f"stage/{self.stage}/end/{self.rank}", facts)

    def all(self) -> dict[int, dict[str, Any]]:
        """What every process that is through with the stage has said."""
        return self.wire.get_all(f"stage/{self.stage}/end")

    def unreachable(self) -> AlignlabError | None:
        """The error of a main process that cannot be reached any more."""
        return None if self.wire.lost is None else self._gone(0, f"unreachable ({self.wire.lost})")

    def missing(self) -> AlignlabError | None:
        """The error of a process that is gone, now that a connection has broken."""
        ended = self.all()
        others = (rank for rank in range(len(self.hosts)) if rank not in ended)
        return self.unreachable() or self.silent(others, MISSED_SECONDS)

    def silent(self, ranks: Iterable[int], seconds: float) -> AlignlabError | None:
        """The error of the process among ``ranks`` that has given no sign of life for so long."""
        since = self.wire.silences(ranks)
        rank = max(since, key=since.__getitem__, default=self.rank)
        if rank == self.rank or since[rank] < seconds:
            return None
        return self._gone(rank, f"no sign of life for {since[rank]:.0f} s")

    @property
    def _event(self) -> str:
        return f"stage/{self.stage}/event"

    def _gone(self, rank: int, how: str) -> AlignlabError:
        reason = (
            f"{how}: it was killed, or its machine is gone. The same command continues from the "
            "last checkpoint."
        )
        return self._theirs({"rank": rank, "kind": "failed", "reason": reason})

    def _theirs(self, event: Mapping[str, Any]) -> AlignlabError:
        rank = event["rank"]
        error = as_error(event, f"process {rank} of {len(self.hosts)} ({self.hosts[rank]})")
        error.rank = rank  # type: ignore[attr-defined]
        return error


def rank_of(error: BaseException) -> int | None:
    """Which other process an error comes from; None of this one's own."""
    return getattr(error, "rank", None)
