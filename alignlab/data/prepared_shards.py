"""From groups to token shards named by their content, in this process or in several.

The name of a shard is the hash of what decides its tokens: the tokenization and the rows. Where the
rows are cut depends on the rows themselves, so a row that is added, changed or moved costs its own
shard and no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.data.template import Tokenization
from alignlab.data.token_shards import FORMAT, Shard, read_shard, write_shard
from alignlab.errors import DataError
from alignlab.files import now_of

LEAST, MEAN, MOST = 512, 2048, 8192  # rows of a shard; a power of two between the bounds
MOST_CHARACTERS = 2**22  # ends a shard of long rows: about a million tokens
BLOCK = 64  # rows tokenised together: their words fit the processor's cache, 1.5 times as fast
STALE = 86_400.0  # seconds after which a file that was never finished is nobody's


_json = json.JSONEncoder(ensure_ascii=False, default=repr).encode


@dataclass(frozen=True)
class Chunk:
    """The rows of one shard."""

    groups: tuple[PromptGroup, ...]
    content: str  # hash of the rows, places left out

    @property
    def places(self) -> tuple[str | None, ...]:
        """File and line of every row, where known."""
        return tuple(group.meta.get("place") for group in self.groups)


def content(group: PromptGroup) -> bytes:
    """Everything of a row but the place that it was read from, as bytes to be hashed."""
    v = group.verdict
    meta = {name: value for name, value in group.meta.items() if name != "place"}
    verdict = (v.kind, v.ranks, v.scores, v.thumbs)
    fields = (group.prompt, group.completions, verdict, group.id, meta, group.tools)
    return _json(fields).encode("utf-8", "surrogatepass")


def chunks(groups: Iterable[PromptGroup]) -> Iterator[Chunk]:
    """Cut rows into chunks, each ended by a row whose own hash says so (or by its size)."""
    rows: list[PromptGroup] = []
    digest, characters = hashlib.blake2b(digest_size=16), 0
    for group in groups:
        data = content(group)
        one = hashlib.blake2b(data, digest_size=16).digest()
        rows.append(group)
        digest.update(one)
        characters += len(data)
        last = int.from_bytes(one[:4], "little") % MEAN == 0 and len(rows) >= LEAST
        if last or len(rows) == MOST or characters >= MOST_CHARACTERS:
            yield Chunk(tuple(rows), digest.hexdigest())
            rows, characters = [], 0
            digest = hashlib.blake2b(digest_size=16)
    if rows:
        yield Chunk(tuple(rows), digest.hexdigest())


@dataclass(frozen=True)
class Made:
    """One chunk of the rows with its tokens and the shard that keeps them."""

    chunk: Chunk
    tokens: Sequence[TokenGroup]
    shard: Shard
    name: str  # of the shard's file


def make_shard(
    groups: Sequence[PromptGroup], tokenization: Tokenization, path: Path, row: int = 0
) -> list[TokenGroup]:
    """Tokenise the rows of one shard, the first of which is ``row``, and write it."""
    tokens = []
    for start in range(0, len(groups), BLOCK):
        part = groups[start : start + BLOCK]
        first = row + start
        tokens += tokenization.groups(part, range(first, first + len(part)))
    write_shard(path, tokens)
    return tokens


class Maker:
    """Makes the shards of a tokenization in a folder, or finds them there.

    Results are the same for any number of worker processes; 0 is this process alone.
    """

    def __init__(self, tokenization: Tokenization, folder: Path, workers: int) -> None:
        self.tokenization, self.folder, self.workers = tokenization, folder, workers
        self.fingerprint = tokenization.fingerprint()
        self.made = 0  # rows tokenised now, not found
        self._row = 0

    def path(self, chunk: Chunk) -> Path:
        """Where the shard of ``chunk`` is or will be."""
        key = f"{FORMAT}:{self.fingerprint}:{chunk.content}"
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.tokens"

    def shards(self, groups: Iterable[PromptGroup]) -> Iterator[Made]:
        """Every chunk of ``groups`` with its shard, in order; a few chunks are in work at a time.

        Raises:
            DataError: what the tokenization refuses.
        """
        sweep(self.folder)
        with _pool(self.tokenization, self.workers) as pool:
            ahead: deque[tuple[Chunk, Path, Shard | Future[None] | None]] = deque()
            for chunk in chunks(groups):
                path = self.path(chunk)
                found: Shard | Future[None] | None = read_shard(path)
                if found is None:
                    self.made += len(chunk.groups)
                    if pool is not None:
                        found = pool.submit(_make, chunk.groups, path)
                ahead.append((chunk, path, found))
                while len(ahead) > 2 * self.workers:
                    yield self._finished(*ahead.popleft())
            while ahead:
                yield self._finished(*ahead.popleft())

    def _finished(self, chunk: Chunk, path: Path, work: Shard | Future[None] | None) -> Made:
        row = self._row
        self._row += len(chunk.groups)
        tokens: Sequence[TokenGroup] = ()
        if work is None:
            tokens = make_shard(chunk.groups, self.tokenization, path, row)
        elif isinstance(work, Future):
            _wait(work)
        shard = work if isinstance(work, Shard) else read_shard(path)
        if shard is None:
            raise OSError(f"{path} was written and cannot be read back; is the disk full?")
        if work is not None:
            tokens = [shard.group(i, row + i, place) for i, place in enumerate(chunk.places)]
        return Made(chunk, tokens, shard, path.name)


def _wait(work: Future[None]) -> None:
    """Wait for a shard that another process makes."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        work.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A process that tokenises ended without a word, most likely for lack of memory. What "
            "is finished is kept: run the same again, with fewer processes (engine.data_workers)."
        ) from error


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind, old by the clock of the file system."""
    for left in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # its writer is done, or another one sweeps
            if now_of(folder) - left.stat().st_mtime > STALE:
                left.unlink()


@contextmanager
def _pool(tokenization: Tokenization, workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that know the tokenization; none for 0. Unfinished work is dropped on an error."""
    if workers == 0:
        yield None
        return
    import multiprocessing

    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # threads of this process do not matter
        initializer=_begin,
        initargs=(tokenization,),
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_state: dict[str, Any] = {}  # of a worker process


def _begin(tokenization: Tokenization) -> None:
    """Set up a worker: one thread, its tokenization, and an end when its parent ends."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _state["tokenization"] = tokenization
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # a killed parent leaves nobody to tell

    threading.Thread(target=follow, daemon=True).start()


def _make(groups: Sequence[PromptGroup], path: Path) -> None:
    make_shard(groups, _state["tokenization"], path)
