"""Arrays in one file that is mapped into memory, and token groups kept that way: a shard.

A file is a line of JSON (names, types and lengths of the arrays, a hash of their bytes) and then
the arrays. It is written beside its place and renamed, so it is whole or not there; a file that was
damaged later does not fit its hash and counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import mmap
import os
import pickle
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.data.group import TokenGroup, Verdict
from alignlab.errors import DataError

FORMAT = "alignlab arrays 1"
_ALIGN = 64  # bytes
_PLAIN = {  # beside numbers, texts, tuples, lists and mappings: what a row's meta may hold
    *(("builtins", name) for name in ("set", "frozenset", "bytearray", "complex")),
    *(("datetime", name) for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(("decimal", "Decimal"), ("uuid", "UUID")),
}


@dataclass(frozen=True)
class Arrays:
    """Named arrays of a file, read when they are touched, with what was noted beside them."""

    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, Any]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
    """Write a file of arrays in one step: another process sees all of it or nothing."""
    digest = hashlib.blake2b(digest_size=16)
    table, size = {}, 0
    for name, array in arrays.items():
        table[name] = [array.dtype.str, len(array), size]
        digest.update(np.ascontiguousarray(array).data)
        size += -(-array.nbytes // _ALIGN) * _ALIGN
    about = {"format": FORMAT, "arrays": table, "bytes": size, "digest": digest.hexdigest()}
    head = json.dumps({**about, "notes": notes}, ensure_ascii=False).encode()
    head += b" " * (-(len(head) + 1) % _ALIGN) + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.part")
    try:
        with beside.open("wb") as file:
            file.write(head)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(b"\x00" * (-array.nbytes % _ALIGN))
            file.flush()
            os.fsync(file.fileno())
        _put(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _put(beside: Path, path: Path) -> None:
    """Give a written file its name, unless a whole one has it already.

    Another machine may have that one mapped, and would lose what it has not read yet.
    """
    try:
        os.link(beside, path)
    except OSError:  # it is there, or there are no links here
        if read_arrays(path) is None:
            beside.replace(path)


def read_arrays(path: Path) -> Arrays | None:
    """Map a file of arrays; None where there is none, or one that is cut short or changed."""
    try:
        with path.open("rb") as file:
            head = file.readline()
            about = json.loads(head)
            whole = os.fstat(file.fileno()).st_size == len(head) + about["bytes"]
            if about["format"] != FORMAT or not whole:
                return None
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not such a file
        return None
    arrays, digest = {}, hashlib.blake2b(digest_size=16)
    for name, (kind, length, start) in about["arrays"].items():
        array = np.frombuffer(memory, np.dtype(kind), length, len(head) + start)
        digest.update(array.data)
        arrays[name] = array
    if digest.hexdigest() != about["digest"]:
        return None
    return Arrays(arrays, about["notes"])


def write_shard(path: Path, groups: Sequence[TokenGroup]) -> None:
    """Write token groups, without their row numbers and places, which depend on the data set."""
    segments = [part for g in groups for part in (g.prompt, *g.completions)]
    records = [_record(group) for group in groups]
    masks = [m for g in groups for m in g.masks if m is not None]
    cut = [flag for g in groups for flag in (bool(g.meta.get("prompt_cut")), *_cuts(g))]
    arrays = {
        "ids": _joined(segments, np.int32),
        "ends": np.cumsum([0, *map(len, segments)], dtype=np.int64),
        "first": np.cumsum([0, *(1 + len(g.completions) for g in groups)], dtype=np.int64),
        "cut": np.array(cut, dtype=bool),
        "masks": _joined(masks, bool),
        "mask_first": np.cumsum(
            [0, *(sum(len(m) for m in g.masks if m is not None) for g in groups)], dtype=np.int64
        ),
        "records": np.frombuffer(b"".join(records), dtype=np.uint8),
        "record_ends": np.cumsum([0, *map(len, records)], dtype=np.int64),
    }
    write_arrays(path, arrays, {"groups": len(groups)})


def read_shard(path: Path) -> Shard | None:
    """Map a shard; None where there is none that is whole."""
    found = read_arrays(path)
    return None if found is None else Shard(found.arrays)


@dataclass(frozen=True)
class Shard:
    """Token groups of one file; a group's arrays are views of it."""

    arrays: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["first"]) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every prompt and completion, in order (segments,)."""
        return np.diff(self.arrays["ends"])

    @cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of every group: its prompt once, and its completions (groups,)."""
        return np.diff(self.arrays["ends"][self.arrays["first"]])

    @property
    def is_prompt(self) -> np.ndarray:
        """Which of the segments are prompts (segments,)."""
        found = np.zeros(len(self.lengths), dtype=bool)
        found[self.arrays["first"][:-1]] = True
        return found

    def group(self, index: int, row: int, place: str | None) -> TokenGroup:
        """Group at ``index`` of the shard, as row ``row`` of its data set."""
        a = self.arrays
        ids, bounds = a["ids"], a["ends"][a["first"][index] : a["first"][index + 1] + 1].tolist()
        parts = [ids[i:j] for i, j in pairwise(bounds)]
        blob = a["records"][a["record_ends"][index] : a["record_ends"][index + 1]]
        name, verdict, truncated, meta, masked = load_plain(blob.data)
        if place is not None:
            meta["place"] = place
        return TokenGroup(
            prompt=parts[0],
            completions=tuple(parts[1:]),
            verdict=_verdict(verdict),
            row=row,
            id=name,
            truncated=truncated,
            meta=meta,
            masks=self._masks(index, parts[1:], masked) if masked else (),
        )

    def _masks(
        self, index: int, completions: Sequence[np.ndarray], masked: Sequence[bool]
    ) -> tuple[np.ndarray | None, ...]:
        start = int(self.arrays["mask_first"][index])
        out: list[np.ndarray | None] = []
        for completion, has in zip(completions, masked, strict=True):
            out.append(self.arrays["masks"][start : start + len(completion)] if has else None)
            start += len(completion) if has else 0
        return tuple(out)


@lru_cache(maxsize=1024)
def _verdict(fields: tuple[Any, ...]) -> Verdict:
    """The verdict of these fields; most rows have the same one."""
    return Verdict(*fields)


class _Plain(pickle.Unpickler):
    """Reads plain values, and nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        """Classes of plain values only."""
        if (module, name) not in _PLAIN:
            raise DataError(
                f"A row's meta holds a {module}.{name}, and tokens are kept with plain values "
                "(numbers, texts, dates, tuples, lists, mappings). Convert it where rows are read."
            )
        return super().find_class(module, name)


def load_plain(data: memoryview) -> Any:
    """Read a value that `dump_plain` wrote; nothing but plain values is ever made of it."""
    return _Plain(io.BytesIO(data)).load()


def dump_plain(value: Any) -> bytes:
    """Write a plain value (numbers, texts, dates, tuples, lists, mappings) as bytes.

    Raises:
        DataError: it holds something else.
    """
    data = pickle.dumps(value, 5)
    if pickle.STACK_GLOBAL in data:  # it may name a class: refuse now what could not be read
        _Plain(io.BytesIO(data)).load()
    return data


def _record(group: TokenGroup) -> bytes:
    """What a group has beside its tokens, as bytes."""
    v = group.verdict
    meta = {name: value for name, value in group.meta.items() if name != "place"}
    masked = tuple(mask is not None for mask in group.masks)
    verdict = (v.kind, v.ranks, v.scores, v.thumbs)
    return dump_plain((group.id, verdict, group.truncated, meta, masked))


def _cuts(group: TokenGroup) -> tuple[bool, ...]:
    return group.truncated or (False,) * len(group.completions)


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts).astype(kind, copy=False) if parts else np.zeros(0, kind)
