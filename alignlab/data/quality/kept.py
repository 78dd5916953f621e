"""Refined rows kept in the store by content, so that later stages need not refine them again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.data.group import PromptGroup, Verdict
from alignlab.data.token_shards import dump_plain, load_plain, read_arrays, write_arrays
from alignlab.errors import DataError
from alignlab.lease import held
from alignlab.run import Store

Effects = list[dict[str, Any]]


def made_once(
    key: str, make: Callable[[], tuple[list[PromptGroup], Effects]]
) -> tuple[list[PromptGroup], Effects]:
    """What ``make`` gives, kept under ``key`` in the store that stages run in; made outside of one.

    Of several processes one makes it, the others wait for it and read.
    """
    root = os.environ.get("ALIGNLAB_RUNS")
    if not root:
        return make()
    place = Store(Path(root).expanduser()).cache / "rows" / f"{key}.rows"
    place.parent.mkdir(parents=True, exist_ok=True)
    with held(place.with_suffix(".lease")):
        found = read(place)
        if found is None:
            found = make()
            write(place, *found)
    return found


def read(place: Path) -> tuple[list[PromptGroup], Effects] | None:
    """Rows and what was done to them; None where the file is not there or not whole."""
    found = read_arrays(place)
    if found is None:
        return None
    data = found.arrays["rows"]
    parts = pairwise(found.arrays["ends"].tolist())
    return [_group(data[start:end].data) for start, end in parts], found.notes["effects"]


def write(place: Path, groups: Sequence[PromptGroup], effects: Effects) -> None:
    """Keep rows, in one step; rows with values that cannot be kept are made anew each time."""
    try:
        rows = [_row(group) for group in groups]
    except DataError:
        return
    arrays: dict[str, np.ndarray] = {
        "rows": np.frombuffer(b"".join(rows), dtype=np.uint8),
        "ends": np.cumsum([0, *map(len, rows)], dtype=np.int64),
    }
    write_arrays(place, arrays, {"effects": effects})


def _row(group: PromptGroup) -> bytes:
    v = group.verdict
    verdict = (v.kind, v.ranks, v.scores, v.thumbs)
    return dump_plain(
        (group.prompt, group.completions, verdict, group.id, dict(group.meta), group.tools)
    )


def _group(row: memoryview) -> PromptGroup:
    prompt, completions, verdict, name, meta, tools = load_plain(row)
    return PromptGroup(prompt, completions, Verdict(*verdict), name, meta, tools)
