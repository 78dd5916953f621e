"""``launch=slurm``: every stage that is not done becomes a job, and edges become dependencies."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from alignlab.errors import ConfigError, Interrupted, did_you_mean
from alignlab.launch.board import Board, parents_of
from alignlab.launch.launcher import Launch
from alignlab.launch.resources import Resources, overridden
from alignlab.launch.slurm.arrays import Item
from alignlab.launch.slurm.client import Client, require
from alignlab.launch.slurm.script import Setting, last_script, stage_script
from alignlab.launch.slurm.submission import Submitter
from alignlab.launch.slurm.waiting import Waiter
from alignlab.launch.task import Outcome, Place, Task
from alignlab.run import Store
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.plan import Node, Plan


@dataclass(frozen=True, kw_only=True)
class Slurm(Launch):
    """Stages as jobs of a Slurm cluster."""

    kind: Literal["slurm"]
    wait: bool  # stay until the study has ended; otherwise a last job writes the report
    setup: tuple[str, ...]  # lines of shell before every stage
    python: str | None  # interpreter of the jobs; None = the one that runs this command
    signal_seconds: Annotated[int, Range(min=1)]  # before the time limit, to save a checkpoint
    max_requeues: Annotated[int, Range(min=0)]  # of one stage
    max_array: Annotated[int, Range(min=1)] | None  # tasks of an array; None = MaxArraySize
    max_queued: Annotated[int, Range(min=1)] | None  # stages in the queue at one time
    poll_seconds: Annotated[float, Range(min=0, min_open=True)]  # between two looks at the queue

    def check(self, plan: Plan) -> None:
        """Refuse resources of stages that do not exist, and limits that leave a stage no time.

        Raises:
            ConfigError: as said.
        """
        super().check(plan)
        for name, kind in {(node.name, node.kind) for node in plan.nodes.values()}:
            limit = self.resources(name, kind).seconds
            if limit is not None and limit <= 2 * self.signal_seconds:
                raise ConfigError(
                    f"launch: {kind} stages have a time limit of {limit} s and are told to stop "
                    f"signal_seconds={self.signal_seconds} before it, so most of it is lost; raise"
                    " time, or lower signal_seconds."
                )

    def of_report(self) -> Resources:
        """What the last job runs on: no more than it needs, in the partition of the others."""
        same = {name: getattr(self.default, name) for name in ("partition", "account", "qos")}
        base = Resources(**same)
        return overridden(base, self.overrides.get("report", {}), "launch.report")

    @property
    def stays(self) -> bool:
        """As configured."""
        return self.wait

    def width(self, plan: Plan) -> int:
        """One: what the cluster has free nobody knows, and whoever reckons counts what runs."""
        return 1

    def execute(
        self,
        plan: Plan,
        place: Place,
        *,
        note: Callable[[str], None],
        settled: Callable[[Outcome], None],
    ) -> list[Outcome]:
        """Submit what is not done; wait for it if so configured.

        Raises:
            Interrupted: a signal came while waiting; the jobs go on.
        """
        pending = plan.pending()
        if not pending:
            return Board(plan).results()
        require()
        client = Client()
        store = Store(Path(place.store))
        folder = store.studies / place.study
        self._check_partitions(pending, client)
        for part in ("logs", "tasks", "jobs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        items = self._items(pending, place, folder)
        last = None if self.wait else self._last(folder, store)
        submitter = Submitter(
            store, place.study, client, note, last, self.max_queued, self.max_array
        )
        count = submitter.submit(items)
        if not self.wait:
            queued = [Outcome(node.run, node.name, "queued") for node in pending]
            return [*Board(plan).results(), *queued]
        rest = list(count.rest)

        def more() -> bool:
            if rest:
                rest[:] = submitter.submit(submitter.rest()).rest
            return bool(rest)

        waiter = Waiter(plan, place, folder, client, more, self.poll_seconds)
        try:
            return waiter.wait(settled)
        except Interrupted as error:
            text = f"{error} The jobs go on: alignlab status {place.study}"
            raise Interrupted(text, error.signal_number) from None

    def _items(self, pending: list[Node], place: Place, folder: Path) -> list[Item]:
        """Write the task of every stage and the scripts; return what there is to submit."""
        names = {node.run for node in pending}
        scripts: dict[tuple[str, str], str] = {}
        items = []
        for node in pending:
            task = json.dumps(Task.of(node, place).to_json())
            _write(folder / "tasks" / f"{node.run}.json", task)
            alike = (node.name, node.kind)
            if alike not in scripts:
                resources = self.resources_of(node)
                text = stage_script(self._setting(folder), resources, place.engine.get("threads"))
                digest = hashlib.sha256(text.encode()).hexdigest()[:10]
                scripts[alike] = str(folder / "jobs" / f"stage-{digest}.sh")
                _write(Path(scripts[alike]), text)
            strict, tolerant = parents_of(node)
            behind = {run for runs in tolerant.values() for run in runs}
            items.append(
                Item(
                    node.run,
                    node.kind,
                    tuple(run for run in dict.fromkeys(strict) if run in names),
                    tuple(sorted(behind & names)),
                    scripts[alike],
                )
            )
        return items

    def _setting(self, folder: Path) -> Setting:
        return Setting(
            study=str(folder),
            directory=str(Path.cwd()),
            python=self.python or sys.executable,
            setup=self.setup,
            signal_seconds=self.signal_seconds,
            max_requeues=self.max_requeues,
        )

    def _last(self, folder: Path, store: Store) -> str:
        resources = self.of_report()
        file = folder / "jobs" / "last.sh"
        command = ["-m", "alignlab.commands.conclude", str(store.root), folder.name, str(file)]
        for name, value in (("max-queued", self.max_queued), ("max-array", self.max_array)):
            command += [f"--{name}={value}"] if value else []
        _write(file, last_script(self._setting(folder), resources, command))
        return str(file)

    def _check_partitions(self, pending: list[Node], client: Client) -> None:
        alike = {(node.name, node.kind): node for node in pending}.values()
        asked = [(self.resources_of(node).partition, node.kind) for node in alike]
        asked.append((self.of_report().partition, "report"))
        known = client.partitions() if any(partition for partition, _ in asked) else []
        for partition, kind in asked:
            for part in (partition or "").split(","):
                if part and part not in known:
                    raise ConfigError(
                        f"launch.{kind}.partition: the cluster has no partition '{part}' (it has "
                        f"{', '.join(known)}).{did_you_mean(part, known)}"
                    )


def _write(file: Path, text: str) -> None:
    """Write a file in one step unless it is there; not synced, for there may be ten thousand."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
