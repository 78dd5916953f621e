"""From rows to prompt groups, one by one, each with its id and its place."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignlab.data.formats.registry import FORMATS, Turns, detect, read
from alignlab.data.group import PromptGroup
from alignlab.data.rows.files import Row
from alignlab.data.sources.splits import value_of
from alignlab.data.transcript import Style, with_style
from alignlab.errors import DataError, did_you_mean

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


def groups_of(
    rows: Iterable[tuple[str, Row]], where: str, short: str, reading: Reading
) -> tuple[bool, Iterator[PromptGroup]]:
    """Return whether rows of one prompt belong together, and the groups of the rows, one by one.

    Each ``meta["place"]`` is ``short`` and the place of its row.

    Raises:
        DataError: names ``where``, the place of the first bad row, the field and the reason.
    """
    stream = iter(rows)
    head = list(itertools.islice(stream, HEAD))
    names = dict(reading.fields)
    unseen = set(names).difference(*(row for _, row in head))
    if unseen and len(head) < HEAD:
        raise _unknown_field(where, min(unseen), head[0][1] if head else {})
    try:
        first = [_renamed(row, names) for _, row in head]
        places = [place for place, _ in head]
        chosen = detect(first, places) if reading.format == "auto" else reading.format
    except DataError as error:
        if unseen:
            raise _unknown_field(where, min(unseen), head[0][1]) from error
        raise DataError(f"{where}: {error}") from error

    def read_on() -> Iterator[PromptGroup]:
        rest = itertools.chain(head, stream)
        messages: bool | None = None  # whether the first row became messages
        for place, row in rest:
            unseen.difference_update(row)
            try:
                group, by = _group(_renamed(row, names), chosen, reading)
                messages = _as_before(group, messages)
            except DataError as error:
                more = _also_bad((_renamed(row, names) for _, row in rest), chosen, reading)
                raise DataError(f"{where}, {place} (format {chosen}): {error}{more}") from error
            at = f"{short}, {place}" if short else place
            meta = {**group.meta, **by, "place": at}
            name = group.id or _identity(group)
            yield PromptGroup(
                group.prompt, group.completions, group.verdict, name, meta, group.tools
            )
        if unseen:
            raise _unknown_field(where, min(unseen), head[0][1])

    return FORMATS[chosen].together, read_on()


def _group(row: Row, format: str, reading: Reading) -> tuple[PromptGroup, dict[str, Any]]:
    """The group of a row, and the field that it is split by."""
    weights = dict(reading.weights) or None
    group = with_style(read(format, row, turns=reading.turns, weights=weights), reading.style)
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
