"""From rows to prompt groups, one by one, each with its id and its place."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignlab.data.formats.alpaca import with_headings
from alignlab.data.formats.media import with_marks
from alignlab.data.formats.registry import FORMATS, Calls, Turns, detect, detect_most, read
from alignlab.data.group import PromptGroup
from alignlab.data.rows.bad_rows import HOPELESS, BadRows, Policy
from alignlab.data.rows.files import Row
from alignlab.data.shown_images import require_marks
from alignlab.data.sources.splits import value_of
from alignlab.data.thinking import Thinking, with_thinking
from alignlab.data.transcript import Style, with_style
from alignlab.errors import DataError, did_you_mean
from alignlab.images import KEY, Reference

HEAD = 100  # rows by which the format is told
AHEAD = 1000  # rows that are looked at after one that cannot be read


@dataclass(frozen=True)
class Reading:
    """How rows become groups; hashable, so that what was read once is not read again."""

    format: str  # auto, or a name of `formats.FORMATS`
    style: Style
    turns: Turns
    fields: tuple[tuple[str, str], ...]  # (field in the data, field that alignlab knows)
    weights: tuple[tuple[str, float], ...]  # (attribute, its weight in the score)
    split_by: str | None
    bad_rows: Policy = "refuse"
    calls: Calls | None = None
    thinking: Thinking | None = None
    mask_thinking: bool = False
    images: str | None = None  # folder of image files; None = rows with images are refused


def groups_of(
    rows: Iterable[tuple[str, Row]], where: str, short: str, reading: Reading, bad: BadRows
) -> tuple[bool, Iterator[PromptGroup]]:
    """Return whether rows of one prompt belong together, and the groups of the rows, one by one.

    Each ``meta["place"]`` is ``short`` and the place of its row. ``bad``, which also takes the rows
    that ``rows`` cannot read, takes those that cannot be told or grouped.

    Raises:
        DataError: names ``where``, the place of the first bad row, the field and the reason; or
            no row is a good one.
    """
    stream = iter(rows)
    head = list(itertools.islice(stream, HEAD))
    names = dict(reading.fields)
    if not head and bad.count:
        bad.give_up(where)
    unseen = set(names).difference(*(row for _, row in head))
    if unseen and len(head) < HEAD:
        raise _unknown_field(where, min(unseen), head[0][1] if head else {})
    try:
        chosen, odd = _told(head, reading, names)
    except DataError as error:
        if unseen:
            raise _unknown_field(where, min(unseen), head[0][1]) from error
        raise DataError(f"{where}: {error}") from error

    def read_on() -> Iterator[PromptGroup]:
        rest = itertools.chain(head, stream)
        messages: bool | None = None  # whether the first row became messages
        for number, (place, row) in enumerate(rest):
            unseen.difference_update(row)
            at = f"{short}, {place}" if short else place
            try:
                if number in odd:
                    raise DataError(f"the row looks like '{odd[number]}'.")
                group, by = _group(_renamed(row, names), chosen, reading)
                messages = _as_before(group, messages)
            except DataError as error:
                left = () if bad.leave_out else (_renamed(row, names) for _, row in rest)
                more = _also_bad(left, chosen, reading)
                message = f"{where}, {place} (format {chosen}): {error}{more}"
                bad.take(message, at, str(error), error)
                if bad.count >= HOPELESS and not bad.good:
                    break
                continue
            bad.good += 1
            yield _named(group, {**by, "place": at})
        if unseen and bad.good:
            raise _unknown_field(where, min(unseen), head[0][1])
        if bad.count and not bad.good:
            bad.give_up(where)

    return FORMATS[chosen].together, read_on()


def _told(
    head: Sequence[tuple[str, Row]], reading: Reading, names: Mapping[str, str]
) -> tuple[str, dict[int, str]]:
    """The format of the first rows, and which of them are of another one that may be left out."""
    if reading.format != "auto":
        return reading.format, {}
    rows = [_renamed(row, names) for _, row in head]
    if reading.bad_rows == "leave_out":
        return detect_most(rows)
    return detect(rows, [place for place, _ in head]), {}


def _named(group: PromptGroup, more: Mapping[str, Any]) -> PromptGroup:
    """The group with more in its meta, and a name."""
    name = group.id or _identity(group)
    meta = {**group.meta, **more}
    return PromptGroup(group.prompt, group.completions, group.verdict, name, meta, group.tools)


def _group(row: Row, format: str, reading: Reading) -> tuple[PromptGroup, dict[str, Any]]:
    """The group of a row, and the field that it is split by."""
    weights = dict(reading.weights) or None
    text = reading.style == "text"
    shown: tuple[Reference, ...] = ()
    if reading.images is not None:
        folder = Path(reading.images) if reading.images else None
        row, shown = with_marks(row, FORMATS[format].used(row), folder)
    group = read(
        format,
        row,
        turns=reading.turns,
        weights=weights,
        transcript=text,
        calls=reading.calls,
    )
    if shown:
        require_marks(group, shown, anywhere=reading.turns == "each")
        group = replace(group, meta={**group.meta, KEY: shown})
    group = with_thinking(group, reading.thinking, masked=reading.mask_thinking)
    group = with_style(group, reading.style)
    if reading.style == "alpaca":
        group = with_headings(group, row)
    if reading.split_by is None:
        return group, {}
    return group, {reading.split_by: value_of(row, reading.split_by)}


def _as_before(group: PromptGroup, messages: bool | None) -> bool:
    """Refuse a file in which a template is applied to some rows and not to others."""
    if messages is None or group.conversational == messages:
        return group.conversational
    kinds = ("messages", "text") if messages else ("text", "messages")
    raise DataError(
        f"the rows before are {kinds[0]} and this one is {kinds[1]}, so the chat template would be "
        "applied to some rows only. Make them alike: data.style=text or data.style=messages."
    )


def _also_bad(rows: Iterable[Row], format: str, reading: Reading) -> str:
    """Say how many of the next rows cannot be read either: is it one slip or the wrong format."""
    seen = bad = 0
    try:
        for row in itertools.islice(rows, AHEAD):
            seen += 1
            try:
                _group(row, format, reading)
            except DataError:
                bad += 1
    except DataError:  # the file itself is broken further on; the first trouble is told already
        seen += 1
        bad += 1
    return f" {bad} of the next {seen} rows cannot be read either." if bad else ""


def _identity(group: PromptGroup) -> str:
    text = json.dumps([group.prompt, group.completions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _renamed(row: Row, names: Mapping[str, str]) -> Row:
    return {names.get(k, k): v for k, v in row.items()} if names else row


def _unknown_field(where: str, name: str, row: Row) -> DataError:
    known = ", ".join(row)
    hint = did_you_mean(name, row)
    return DataError(f"{where}: data.fields names '{name}'; the fields are {known}.{hint}")
