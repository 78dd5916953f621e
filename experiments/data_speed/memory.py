"""Peak memory of a process and all its children, looked at every second."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

EVERY = 1.0  # seconds; looking itself costs time


class Watch:
    """Sums over the process tree, from now until `stop`; also what was there when it got ready.

    ``anonymous`` is memory of the processes' own (what a machine must have); ``proportional`` adds
    pages of mapped files that happen to be in memory, shared ones once.
    """

    def __init__(self, pid: int, ready: Path) -> None:
        self.root, self.ready = psutil.Process(pid), ready
        self.peak = {"anonymous": 0, "proportional": 0}
        self.before = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        """Peaks in MiB, and the own memory before the first row (imports and the tokenizer)."""
        self._end.set()
        self._thread.join()
        return {**{k: v // 1024 for k, v in self.peak.items()}, "before_rows": self.before // 1024}

    def _watch(self) -> None:
        while not self._end.wait(EVERY):
            try:
                tree = [self.root, *self.root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            found = [usage(process.pid) for process in tree]
            own = sum(values[0] for values in found)
            if not self.ready.exists():
                self.before = max(self.before, own)
            self.peak["anonymous"] = max(self.peak["anonymous"], own)
            shared = sum(values[1] for values in found)
            self.peak["proportional"] = max(self.peak["proportional"], shared)


def usage(pid: int) -> tuple[int, int]:
    """Anonymous and proportional memory of a process in KiB; nothing of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return sizes.get("Anonymous", 0), sizes.get("Pss", 0)
