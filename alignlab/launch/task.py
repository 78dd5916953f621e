"""One planned stage as it travels to the process that executes it: plain data, no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from alignlab import typed

if TYPE_CHECKING:
    from alignlab.plan import Node

Status = Literal["cached", "done", "failed", "blocked", "counted", "interrupted", "queued"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """What all stages of one command share: where they write and how they execute."""

    store: str  # folder of the runs
    study: str
    engine: Mapping[str, Any]
    tracking: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One stage to execute: its configuration, its run folder, and the runs it reads."""

    name: str
    kind: str
    key: str
    config: Mapping[str, Any]  # `_target_` and every field
    parents: Mapping[str, str]  # role -> run name
    place: Place

    @property
    def run(self) -> str:
        """Name of the run folder."""
        return f"{self.kind}-{self.key}"

    @classmethod
    def of(cls, node: Node, place: Place) -> Self:
        """Make the task of a plan's node."""
        return cls(
            name=node.name,
            kind=node.kind,
            key=node.key,
            config=node.config,
            parents=node.parents,
            place=place,
        )

    def to_json(self) -> dict[str, Any]:
        """Write what :meth:`from_json` reads."""
        return {**vars(self), "place": dict(vars(self.place))}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> Self:
        """Read a task written by :meth:`to_json`."""
        return typed.build(cls, mapping, "task")


@dataclass(frozen=True)
class Outcome:
    """What became of one node of a plan."""

    run: str
    name: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    exit_code: int = field(default=0)
    error_kind: str = ""  # of a failed stage: diverged, refused or failed


def usable_cores() -> int:
    """Count the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
