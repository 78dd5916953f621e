"""Rows of JSON: lines, one array, one object, an array in an object, or objects by their ids."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from alignlab.data.rows.bad_rows import InFile
from alignlab.data.rows.json_values import DECODER, LENIENT, by_id, check, parse, reason_of
from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.data.rows.lines import lines_of
from alignlab.errors import DataError

WRAPPERS = ("data", "rows", "train", "examples")  # {"data": [rows]}
_WRAPPED = re.compile(rf'\s*\{{\s*"(?:{"|".join(WRAPPERS)})"\s*:\s*\[')
_SPACE = re.compile(r"[ \t\r\n]*")


def json_rows(stream: io.BufferedReader, file: InFile, lines: bool) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of a JSON file; ``lines``: its name says that it is JSON lines.

    A line, or a value of an array, that is wrong by itself is a bad row; an array whose brackets or
    commas are wrong has no rows to go on with.

    Raises:
        DataError: it is not JSON, one object has a name twice, a number is none (NaN), a text is
            no Unicode, or a value is too long or too deep; names line and reason.
    """
    head = stream.peek(65_536).removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
    if head.lstrip()[:1] == "[" or _WRAPPED.match(head):
        yield from _Scanner(_pieces(stream, file), file).rows()
        return
    damaged: dict[int, str] | None = {} if file.bad.leave_out else None
    every = lines_of(stream, file, damaged)
    rows: Iterator[tuple[int, str]] = (line for line in every if line[1].strip())
    number, first = next(rows, (0, ""))
    if not first:
        return
    try:
        value = parse(first)
    except (ValueError, RecursionError) as error:
        if not (lines or not isinstance(error, json.JSONDecodeError) or error.msg == "Extra data"):
            pieces = (f"{text}\n" for text in itertools.chain([first], (text for _, text in every)))
            yield from _Scanner(pieces, file, number).rows()
            return
    else:
        second = next(rows, None)
        if second is None and isinstance(value, dict) and not lines and not damaged:
            yield from _only(value, file.where)
            return
        rows = itertools.chain([] if second is None else [second], rows)
    for line, text in itertools.chain([(number, first)], rows):
        if damaged and line in damaged:
            file.take(f"line {line}", damaged.pop(line))
            continue
        try:
            value = parse(text)
        except (ValueError, RecursionError) as error:
            reason, column = reason_of(error, text)
            file.take(f"line {line}" + f", column {column}" * bool(column), reason, error)
        else:
            yield f"line {line}", value


def _only(value: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Rows of a file that is a single object: those that it wraps or holds by id, else itself."""
    for name in WRAPPERS:
        if isinstance(value.get(name), list) and all(isinstance(r, dict) for r in value[name]):
            for number, row in enumerate(value[name], 1):
                yield f"row {number}", row
            return
    if by_id(value):
        yield from ((f"entry '{name}'", row) for name, row in value.items())
        return
    columns = [v for v in value.values() if isinstance(v, list)]
    same_length = len({len(c) for c in columns}) == 1 and len(value) == len(columns) > 1
    plain = all(not isinstance(x, (dict, list)) for c in columns for x in c)
    if value and all(isinstance(v, dict) for v in value.values()):
        found = "objects by column"
    elif same_length and plain and len(columns[0]) > 1:
        found = "lists by column"
    else:
        yield "row 1", value
        return
    raise DataError(
        f"{where} is one object that holds {found}, not rows. Write a list of objects (pandas: "
        "orient='records')."
    )


def _pieces(stream: io.BufferedReader, file: InFile) -> Iterator[str]:
    """Yield the text of a file without regard to lines, which an array may not have.

    Where bad rows are left out, bytes that are no UTF-8 come as lone surrogates.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")(
        "surrogateescape" if file.bad.leave_out else "strict"
    )
    line = 1
    while True:
        data = stream.read(MIB)
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, max(error.start, 0))
            raise DataError(
                f"{file.where}, line {line}: not UTF-8 text ({error.reason}). Convert the file, "
                "for example with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW; or name its encoding, "
                f"for example data.encoding=cp1252.{file.bad.way_out}"
            ) from error
        line += data.count(b"\n")
        if text:
            yield text
        if not data:
            return


class BadValue(DataError):
    """A value of an array that can be passed over."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Scanner:
    """The rows of one JSON value of any size, read piece by piece."""

    def __init__(self, pieces: Iterator[str], file: InFile, line: int = 1) -> None:
        self.pieces, self.file = pieces, file
        self.text, self.at, self.began = "", 0, 0  # read so far, the next character, the value's
        self.line, self.column = line, 0  # where the text begins

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yield the rows of an array, of an object that wraps one, or the object itself."""
        if self.peek() == "[":
            yield from self.array()
        else:
            yield from self.object()
        if self.peek():
            raise self.error("Extra data", "Put one value into a file, or one into every line.")

    def array(self) -> Iterator[tuple[str, Any]]:
        """Yield the elements of the array that begins here."""
        self.take("[")
        number = 0
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            number += 1
            value, bad = self.row()
            if bad:
                self.file.take(f"row {number}", bad)
            else:
                yield f"row {number}", value
            if self.take(",]") == "]":
                return

    def row(self) -> tuple[Any, str]:
        """Parse a value of the array; where bad rows are left out, also say what is wrong in it."""
        if not self.file.bad.leave_out:
            return self.value(), ""
        try:
            value, bad = self.value(), ""
        except BadValue as error:
            value, bad = None, error.reason
        text = self.text[self.began : self.at]
        if not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text):
            return None, "not UTF-8 text. Name the encoding of the file with data.encoding."
        return value, bad

    def object(self) -> Iterator[tuple[str, Any]]:
        """Yield the rows that the object wraps, or the object as the only row."""
        self.take("{")
        rest: dict[str, Any] = {}
        wrapped = False
        while self.peek() != "}":
            name = self.value()
            if not isinstance(name, str):
                raise self.error("a name must be text", "Names stand in double quotes.")
            self.take(":")
            if name in WRAPPERS and not wrapped and self.peek() == "[":
                wrapped = True
                yield from self.array()
            elif name in rest:
                raise self.error(f"the name '{name}' occurs twice", "Keep one of the two.")
            else:
                rest[name] = self.value()
            if self.peek() != "}":
                self.take(",")
                if self.peek() == "}":
                    raise self.error("not JSON", "Remove the comma before the closing bracket.")
        self.take("}")
        if not wrapped:
            yield from _only(rest, self.file.where)

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or not self.fill():
                return self.text[self.at : self.at + 1]

    def take(self, wanted: str) -> str:
        """Step over one of the wanted characters."""
        found = self.peek()
        if not found or found not in wanted:
            expected = " or ".join(f"'{c}'" for c in wanted)
            reason = (
                f"expected {expected}, found {found!r}" if found else f"no {expected} at the end"
            )
            advice = "Check the JSON here." if found else "The file is cut off: write it again."
            raise self.error(f"not JSON ({reason})", advice)
        self.at += 1
        return found

    def value(self) -> Any:
        """Parse the value that begins here, reading on while it is not whole.

        Raises:
            BadValue: the value ends and means nothing; the next character is the one behind it.
            DataError: it does not end, or is no JSON.
        """
        self.peek()
        while True:
            self.began = self.at
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end == len(self.text) and self.fill():
                    continue  # a number may go on
                if end - self.at > LIMITS.line_bytes:
                    raise self.error("one value is longer than 64 MiB", "Split it.")
                check(value, self.text[self.at : end])
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > LIMITS.line_bytes:
                    raise self.error("one value is longer than 64 MiB", "Split it.") from error
                if self.fill():
                    continue
                reason = reason_of(error, self.text)[0]
                self.at = error.pos
                raise self.error(reason.split(". ")[0], reason.partition(". ")[2]) from error
            except (ValueError, RecursionError) as error:
                raise self.bad_value(error) from error
            else:
                self.at = end
                return value

    def bad_value(self, cause: Exception) -> DataError:
        """The error for a value that means nothing; where such are left out, step over it."""
        place, reason = self.place(), reason_of(cause, "")[0]
        message = f"{place}: {reason}{self.file.bad.way_out}"
        while self.file.bad.leave_out:
            self.began = self.at
            try:
                self.at = LENIENT.raw_decode(self.text, self.at)[1]
                break
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self.fill():
                    return DataError(message)
        return BadValue(message, reason)

    def fill(self) -> bool:
        """Read on: as much again as is still to be parsed; False at the end of the file."""
        wanted = max(MIB, len(self.text) - self.at)
        read: list[str] = []
        size = 0
        while size < wanted and (piece := next(self.pieces, "")):
            read.append(piece)
            size += len(piece)
        self.line, self.column = self.position()
        self.text = self.text[self.at :] + "".join(read)
        self.at = 0
        return size > 0

    def position(self) -> tuple[int, int]:
        """Line of the next character, and how many are before it in that line."""
        breaks = self.text.count("\n", 0, self.at)
        if not breaks:
            return self.line, self.column + self.at
        return self.line + breaks, self.at - self.text.rfind("\n", 0, self.at) - 1

    def place(self) -> str:
        """File and line of the next character."""
        return f"{self.file.where}, line {self.position()[0]}"

    def error(self, reason: str, advice: str) -> DataError:
        """An error at the next character."""
        return DataError(f"{self.place()}, column {self.position()[1] + 1}: {reason}. {advice}")
