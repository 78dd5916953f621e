"""Replies on disk: what a judge once said of two texts in one order is not asked again.

A folder per judge (its fingerprint), and in it one JSON-lines file per process that wrote: no two
processes write one file, and a line torn by a kill is no reply. All of them are read.
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from dataclasses import asdict
from pathlib import Path

from alignlab import files
from alignlab.rewards.judge.judge import Question, Reply


def question_key(question: Question) -> str:
    """Hash of the texts in their order; what the data know besides is not part of a question."""
    parts = [question.prompt, question.first, question.second, question.reference or ""]
    shown = [str(question.repeat), str(question.reference is not None), *parts]
    digest = hashlib.sha256()
    for part in shown:
        text = part.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:32]


class Memory:
    """The replies of one judge, shared by all processes and studies of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mine = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file = folder / mine
        self._known: dict[str, Reply] = {}
        self._sizes: dict[Path, int] = {}

    def find(self, key: str) -> Reply | None:
        """Return a reply that is known since the last `refresh`."""
        return self._known.get(key)

    def refresh(self) -> None:
        """Read what this and other processes have written since the last time."""
        for file in sorted(self.folder.glob("*.jsonl")):
            size = file.stat().st_size
            if self._sizes.get(file) == size:
                continue
            for row in files.rows(file):
                key = row.pop("key")
                self._known[key] = Reply(**row)
            self._sizes[file] = size

    def keep(self, key: str, reply: Reply) -> None:
        """Write a reply; it has left this process when the call returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.append(self._file, {"key": key, **asdict(reply)})
        self._known[key] = reply
