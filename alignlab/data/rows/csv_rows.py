"""Rows of delimited text (CSV, TSV, semicolons) and documents of plain text."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

from alignlab.data.rows.bad_rows import InFile
from alignlab.data.rows.kinds import delimiter_of
from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.data.rows.lines import lines_of
from alignlab.errors import DataError


def csv_rows(stream: io.BufferedReader, file: InFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a table whose first line names the fields; place is a row's first line.

    A cell that is a JSON list or object is parsed, all others are text. A quote that is not closed
    takes all that follows with it, so it is no bad row but the end.

    Raises:
        DataError: a name occurs twice in the header, a row has another number of values, or a
            quote is not closed; names the line.
    """
    csv.field_size_limit(LIMITS.line_bytes)
    where = file.where
    damaged: dict[int, str] | None = {} if file.bad.leave_out else None
    texts = (text + "\n" for _, text in lines_of(stream, file, damaged))
    first = next(texts, "")
    delimiter = delimiter_of(first)
    reader = csv.reader(itertools.chain([first], texts), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            advice = _csv_advice(error)
            if not names or advice is _OPEN:
                raise DataError(f"{where}, line {line}: {advice}") from error
            file.take(f"line {line}", advice, error)
            continue
        if cells is None:
            return
        if damaged and (hurt := [n for n in damaged if line <= n <= reader.line_num]):
            file.take(f"line {hurt[0]}", damaged[hurt[0]])
            for number in hurt:
                del damaged[number]
            continue
        if not any(cells) and len(cells) <= 1:
            continue
        if not names:
            names = _header(cells, where)
            continue
        if len(cells) != len(names):
            file.take(
                f"line {line}",
                f"{len(cells)} values, not the {len(names)} that the header names "
                f"({', '.join(names)}). Quote texts that hold '{delimiter}' or line breaks.",
            )
            continue
        yield f"line {line}", dict(zip(names, map(_cell, cells), strict=True))


def text_documents(
    stream: io.BufferedReader, file: InFile, whole: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, {"text": document}): the whole file, or what blank lines separate.

    Raises:
        DataError: it is not UTF-8, or a document is too long.
    """
    lines: list[str] = []
    size = start = 0
    damaged: dict[int, str] | None = {} if file.bad.leave_out else None

    def document() -> Iterator[tuple[str, dict[str, Any]]]:
        hurt = [n for n in damaged or () if start <= n < start + len(lines)]
        if damaged and hurt:
            file.take(f"line {hurt[0]}", damaged[hurt[0]])
            for one in hurt:
                del damaged[one]
        else:
            yield f"line {start}", {"text": "\n".join(lines).rstrip("\n")}

    for number, text in lines_of(stream, file, damaged):
        if text.strip() or (whole and lines):
            start = start or number
            lines.append(text.removesuffix("\r"))
            size += len(text)
            if size > LIMITS.line_bytes:
                raise DataError(
                    f"{file.where}, line {start}: a document of more than "
                    f"{LIMITS.line_bytes // MIB} MiB. Part documents with blank lines."
                )
        elif lines and not whole:
            yield from document()
            lines, size, start = [], 0, 0
    if lines:
        yield from document()


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(names) > LIMITS.fields:
        raise DataError(f"{where}, line 1: {len(names):,} columns. Is this a table with a header?")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        said = f"the column '{twice}' occurs twice" if twice else "two columns have no name"
        raise DataError(f"{where}, line 1: {said} in the header. Rename or remove one.")
    return names


def _cell(value: str) -> Any:
    """Parse lists and objects, which a CSV cell can only hold as JSON; all else stays text."""
    if value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


_OPEN = "a quote that opens in this row is not closed. Double the quotes inside a text."


def _csv_advice(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text or "field larger" in text:
        return _OPEN
    if "new-line character" in text:
        return "lines that end in CR alone. Convert the file: tr '\\r' '\\n' < OLD > NEW."
    return f"not a row of a table ({text}). Double the quotes inside a quoted text."
