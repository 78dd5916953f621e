"""Lines of a text file one by one: UTF-8, of bounded length, without NUL bytes."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from alignlab.data.rows.bad_rows import InFile
from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.errors import DataError


def lines_of(
    stream: io.BufferedReader, file: InFile, damaged: dict[int, str] | None
) -> Iterator[tuple[int, str]]:
    """Yield (number, line) without the LF at its end; a byte-order mark at the start is dropped.

    Where CR alone ends the lines, it counts as LF.

    With ``damaged``, lines that are no UTF-8 text are noted there by their number, with the reason,
    and come with U+FFFD in place of what cannot be read.

    Raises:
        DataError: a line is too long; or, without ``damaged``, is not UTF-8 or holds a NUL byte.
    """
    where = file.where
    number, old = 0, False
    begun: list[bytes] = []  # of the line that the last piece ended in
    while piece := stream.read(MIB):
        if number == 0 and not begun:
            piece = piece.removeprefix(codecs.BOM_UTF8)
            old = b"\n" not in piece and b"\r" in piece  # as text was written before 2001
        if old:
            piece = piece.replace(b"\r", b"\n")
        end = piece.rfind(b"\n")
        if end < 0:
            begun.append(piece)
            if sum(map(len, begun)) > LIMITS.line_bytes:
                raise DataError(
                    f"{where}, line {number + 1}: longer than {LIMITS.line_bytes // MIB} MiB, so "
                    "perhaps no text with line ends. Split the row, or write JSON with one row per "
                    "line."
                )
            continue
        whole = b"".join([*begun, piece[:end]])
        begun = [piece[end + 1 :]]
        for text in _decoded(whole, file, number, damaged).split("\n"):
            number += 1
            yield number, text
    last = b"".join(begun)
    if last:
        yield number + 1, _decoded(last, file, number, damaged)


def _decoded(lines: bytes, file: InFile, number: int, damaged: dict[int, str] | None) -> str:
    """Decode whole lines at once; ``number`` lines are before them."""
    where = file.where
    try:
        return _text(lines, where, number)
    except DataError as error:
        if damaged is None:
            raise DataError(f"{error}{file.bad.way_out}") from error
    texts = []
    for line, data in enumerate(lines.split(b"\n"), number + 1):
        try:
            texts.append(_text(data, where, line - 1))
        except DataError as error:
            damaged[line] = str(error).removeprefix(f"{where}, line {line}: ")
            texts.append(data.replace(b"\0", b"\xff").decode("utf-8", "replace"))
    return "\n".join(texts)


def _text(lines: bytes, where: str, number: int) -> str:
    nul = lines.find(b"\0")
    if nul >= 0:
        line = number + 1 + lines.count(b"\n", 0, nul)
        raise DataError(
            f"{where}, line {line}: a NUL byte inside the text; the file was damaged, or it is no "
            "text. Write it again, or remove them: tr -d '\\000' < OLD > NEW."
        )
    try:
        return lines.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + 1 + lines.count(b"\n", 0, error.start)
        raise DataError(
            f"{where}, line {line}: not UTF-8 text ({error.reason}). Convert the file, for example "
            "with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW; or name its encoding, for example "
            "data.encoding=cp1252."
        ) from error
