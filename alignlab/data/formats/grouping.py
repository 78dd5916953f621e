"""Rows of one prompt put together: one prompt group with all its completions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from alignlab.data.group import PromptGroup, Verdict

_PER_COMPLETION = ("attributes", "models")  # lists in `meta` with one value per completion


def together(groups: Iterable[PromptGroup]) -> list[PromptGroup]:
    """Return the groups with those of one prompt as one, in the order of their first rows.

    Two groups belong together if prompt, tools and kind of verdict are equal and the kind is
    scores or thumbs: what is known of one answer then holds beside the others. Rankings stay apart
    (two ranks of two rows cannot be compared), and so do demonstrations. All groups are held in
    memory: rows of one prompt may stand anywhere.
    """
    found: dict[str, list[PromptGroup]] = {}
    for number, group in enumerate(groups):
        found.setdefault(common_key(group) or str(number), []).append(group)
    return [_merge(members) for members in found.values()]


def common_key(group: PromptGroup) -> str:
    """Return what is equal in groups that belong together; empty for one that stays alone."""
    if group.verdict.kind not in ("scores", "thumbs"):
        return ""
    return json.dumps([group.verdict.kind, group.prompt, group.tools], sort_keys=True)


def _merge(groups: Sequence[PromptGroup]) -> PromptGroup:
    if len(groups) == 1:
        return groups[0]
    first = groups[0]
    scores = tuple(chain.from_iterable(group.verdict.scores for group in groups))
    thumbs = tuple(chain.from_iterable(group.verdict.thumbs for group in groups))
    return PromptGroup(
        first.prompt,
        tuple(chain.from_iterable(group.completions for group in groups)),
        Verdict(first.verdict.kind, scores=scores, thumbs=thumbs),
        first.id,
        _merge_meta(groups),
        first.tools,
    )


def _merge_meta(groups: Sequence[PromptGroup]) -> dict[str, Any]:
    """What all rows say alike is kept; what differs is a list, one value per row.

    The place is that of the first row. A list with one value per completion grows.
    """
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(chain.from_iterable(group.meta for group in groups)):
        values = [group.meta.get(key) for group in groups]
        if key in _PER_COMPLETION and all(isinstance(value, list) for value in values):
            merged[key] = list(chain.from_iterable(values))  # type: ignore[arg-type]
        elif key == "place" or all(value == values[0] for value in values):
            merged[key] = values[0]
        else:
            merged[key] = values
    return merged
