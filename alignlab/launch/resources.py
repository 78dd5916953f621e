"""What a stage is given to run on: nodes, processes, GPUs, memory and time, by its kind or name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from alignlab import typed
from alignlab.errors import ConfigError
from alignlab.typed import Range

# What `launch.KIND.FIELD` may name besides the stages of a study; `report` is the job that writes
# the report where no command waits for the study.
STAGE_KINDS = (
    "pretrain", "continued_pretrain", "sft", "annotate", "reward", "preference", "ppo", "grpo",
    "online_preference", "evaluate", "judge",
    "benchmark", "reward_benchmark", "select", "merge", "merge_rewards", "merge_fisher",
    "reward_function",
)  # fmt: skip
SCHEDULER_ONLY = ("memory", "time", "partition", "account", "qos", "constraint", "extra")
_MEMORY = re.compile(r"\d+[KMGT]?")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_OPTION = re.compile(r"--[a-z][a-z-]*([= ].*)?")
_OURS = (  # options that the launcher sets itself
    "--array", "--dependency", "--error", "--export", "--input", "--job-name",
    "--kill-on-invalid-dep",
    "--no-requeue", "--open-mode", "--output", "--parsable", "--requeue", "--signal", "--wait",
    "--wrap",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one stage runs on."""

    nodes: Annotated[int, Range(min=1)] = 1
    processes: Annotated[int, Range(min=1)] | Literal["auto"] = "auto"  # per node
    gpus: Annotated[int, Range(min=0)] = 0  # per node
    cpus: Annotated[int, Range(min=1)] | None = None  # per process; None = not asked for
    memory: str | None = None  # per node, "64G"; None = what the scheduler gives
    time: str | None = None  # limit, "12:00:00" or "2-00:00:00"; None = that of the partition
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: tuple[str, ...] = ()  # more options of sbatch, each "--option=value"

    def __post_init__(self) -> None:
        """Refuse what no scheduler could give."""
        if self.gpus and self.ranks > self.gpus:
            raise ConfigError(
                f"processes={self.processes} on {self.gpus} GPU{'s'[: self.gpus != 1]} of a node: "
                "every process needs a GPU of its own; ask for as many, or for processes=auto."
            )
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise ConfigError(f"memory={self.memory!r}: write a number and K, M, G or T, as 64G.")
        if self.time is not None and self.seconds is None and self.time != "UNLIMITED":
            raise ConfigError(
                f"time={self.time!r}: write hours:minutes:seconds as 12:00:00, or with days as "
                "2-00:00:00."
            )
        for line in self.extra:
            name = re.split("[= ]", line, maxsplit=1)[0]
            if not _OPTION.fullmatch(line) or "\n" in line:
                raise ConfigError(f"extra: {line!r} is no option of sbatch; write --name=value.")
            if name in _OURS:
                raise ConfigError(f"extra: {name} is set by the launcher itself.")

    @property
    def ranks(self) -> int:
        """Processes on each node."""
        return max(1, self.gpus) if self.processes == "auto" else self.processes

    @property
    def world(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.ranks

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds, by Slurm's rules; None without one."""
        match = _TIME.fullmatch(self.time or "")
        if match is None:
            return None
        days, first, *rest = match.groups()
        if days is not None:  # days-hours, days-hours:minutes, days-hours:minutes:seconds
            hours, minutes, seconds = int(first), int(rest[0] or 0), int(rest[1] or 0)
            return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
        if rest[1] is not None:  # hours:minutes:seconds
            return (int(first) * 60 + int(rest[0])) * 60 + int(rest[1])
        return int(first) * 60 + int(rest[0] or 0)  # minutes, minutes:seconds


def overridden(default: Resources, given: Any, path: str) -> Resources:
    """``default`` with the fields of ``given`` that are not null; an empty text takes one away.

    Raises:
        ConfigError: an unknown or unsuitable field, with its ``path``.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: expected a mapping of resources, got {given!r}.")
    stated = {key: None if value == "" else value for key, value in given.items()
              if value is not None}  # fmt: skip
    if isinstance(stated.get("time"), int):
        raise ConfigError(
            f"{path}.time: got the number {stated['time']}. It may be meant as minutes, and YAML "
            "also reads 12:00:00 as a number: write it as text, '12:00:00' in quotes."
        )
    base = {f.name: getattr(default, f.name) for f in fields(default)}
    return typed.build(Resources, {**base, **stated}, path)
