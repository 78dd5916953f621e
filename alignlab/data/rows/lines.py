"""Lines of a text file one by one: UTF-8, of bounded length, without NUL bytes."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.errors import DataError


def lines_of(stream: io.BufferedReader, where: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) without the LF at its end; a byte-order mark at the start is dropped.

    Raises:
        DataError: a line is too long, is not UTF-8 or holds a NUL byte; names the line.
    """
    number = 0
    begun: list[bytes] = []  # of the line that the last piece ended in
    while piece := stream.read(MIB):
        if number == 0 and not begun:
            piece = piece.removeprefix(codecs.BOM_UTF8)
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
        for text in _decoded(whole, where, number).split("\n"):
            number += 1
            yield number, text
    last = b"".join(begun)
    if last:
        yield number + 1, _decoded(last, where, number)


def _decoded(lines: bytes, where: str, number: int) -> str:
    """Decode whole lines at once; ``number`` lines are before them."""
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
            "with: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW."
        ) from error
