"""What kind a data file is, told by its first bytes; what is no data is refused by its name."""

from __future__ import annotations

import re
from typing import Literal

from alignlab.data.rows.listing import DataFile
from alignlab.errors import DataError

Kind = Literal["json", "csv", "text", "yaml", "parquet", "arrow", "arrow_stream"]

HEAD = 65_536  # bytes that are looked at
READS = (
    "alignlab reads JSON lines, JSON, CSV, TSV, Parquet, Arrow, YAML and plain text (.txt), also "
    "compressed with gzip, zstd, bzip2 or xz"
)
_EXPORT = "Export the rows as JSON lines, CSV or Parquet."
_NOT_DATA: dict[bytes, tuple[str, str]] = {  # first bytes: what it is, what to do
    b"PK\x05\x06": ("an empty zip archive", "Name a file with rows."),
    b"Rar!": ("a RAR archive", "Unpack it and name the file inside."),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it and name the file inside."),
    b"\x04\x22\x4d\x18": ("LZ4-compressed", "Unpack it with unlz4."),
    b"%PDF": ("a PDF document", "Extract its text to a .txt file."),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "Save the sheet as CSV."),
    b"SQLite format 3\x00": ("an SQLite database", _EXPORT),
    b"\x89HDF": ("an HDF5 file", _EXPORT),
    b"\x93NUMPY": ("a NumPy array", _EXPORT),
    b"GGUF": ("model weights (GGUF)", "Name it as backbone.path; data.path is for data."),
    b"Obj\x01": ("an Avro file", _EXPORT),
    b"ORC": ("an ORC file", _EXPORT),
    b"FEA1": ("an old Feather file", "Write it again: pyarrow.feather.write_feather, version 2."),
    b"PARE": ("an encrypted Parquet file", "Write it again without encryption."),
    b"\x89PNG": ("a PNG image", "Name a file with rows."),
    b"\xff\xd8\xff": ("a JPEG image", "Name a file with rows."),
    b"GIF8": ("a GIF image", "Name a file with rows."),
    b"\x7fELF": ("a program", "Name a file with rows."),
    b"version https://git-lfs": (
        "a Git LFS pointer and not the data",
        "Fetch the file itself: git lfs pull.",
    ),
    b"{\\rtf": ("an RTF document", "Save it as plain text."),
}
_CONTROL = bytes([*range(9), *range(14, 32), 127])
_NAME = re.compile(r"\s*\"?[A-Za-z_][\w .\-/]{0,63}\"?\s*")
_WORD = re.compile(r"\"?[A-Za-z_][\w.\-]{0,63}\"?")


def is_table(head: bytes) -> bool:
    """Whether a file is Parquet or Arrow, which have no encoding of text to be told."""
    return head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"))


def kind_of(head: bytes, file: DataFile) -> Kind:
    """Return how to read a file that begins with ``head``; the name decides only between texts.

    Raises:
        DataError: it is something else, with what it is and what to do.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if head.startswith(b"\xff\xff\xff\xff"):
        return "arrow_stream"
    _refuse_other(head, file)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().decode("utf-8", "replace")
    if re.match(r"<(!doctype|html|head|body|\?xml)", text, re.IGNORECASE):
        raise DataError(
            f"{file.where} is a web page or XML, perhaps an error page that was saved instead of "
            "the data. Open it in a browser, and download the file itself."
        )
    suffix = file.suffix
    if not text:
        return "json"  # nothing but blank lines: no rows, in any kind
    if suffix in (".yaml", ".yml"):
        return "yaml"
    if suffix in (".txt", ".text", ".md"):
        return _plain_text_or_table(text)
    if text[:1] in ("{", "["):
        return "json"
    if suffix in (".json", ".jsonl", ".ndjson"):
        raise DataError(
            f"{file.where}, line 1: not JSON; it begins with {text[:20]!r}. Every row is an object "
            "with names in double quotes."
        )
    if suffix in (".csv", ".tsv") or _is_header(text, _NAME):
        return "csv"
    raise DataError(
        f"{file.where} begins like none of the kinds of data ({text[:20]!r}). {READS}; plain text "
        "needs a name that ends in .txt."
    )


def delimiter_of(header: str) -> str:
    """Return the separator of a table by its first line: comma, tab or semicolon."""
    return max(",\t;", key=header.count)


def _refuse_other(head: bytes, file: DataFile) -> None:
    what = next((told for magic, told in _NOT_DATA.items() if head.startswith(magic)), None)
    if head.startswith(b"PK\x03\x04"):
        what = _zip(head, file)
    elif head[257:262] == b"ustar":
        what = "a tar archive", "Unpack it (tar -xf) and name the folder or file inside."
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        what = "a pickle, which can run any code and is not opened", _EXPORT
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 10**8:
        what = "model weights (safetensors)", "Name them as backbone.path; data.path is for data."
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")) or _every_second_is_nul(head):
        advice = "Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW; or set data.encoding=utf-16."
        what = "text in UTF-16 or UTF-32", advice
    elif what is None and len(head) > 64 and _share_of_control(head) > 0.1:
        what = "a binary file of no known kind", READS + "."
    if what is not None:
        raise DataError(f"{file.where} is {what[0]}. {what[1]}")


def _share_of_control(head: bytes) -> float:
    return 1 - len(head.translate(None, _CONTROL)) / len(head)


def _zip(head: bytes, file: DataFile) -> tuple[str, str]:
    if b"xl/" in head or b"[Content_Types].xml" in head:
        return "an Office document (Excel, Word)", "Save the sheet as CSV (UTF-8)."
    if b"data.pkl" in head or b".npy" in head:
        return "an archive of arrays (torch, NumPy)", _EXPORT
    inside = f"data.path='zip://NAME::{file.where}'"
    return "a zip archive", f"Unpack it, or name the file inside: {inside}."


def _every_second_is_nul(head: bytes) -> bool:
    start = head[:200]
    return len(start) >= 4 and (not any(start[0::2]) or not any(start[1::2])) and any(start)


def _plain_text_or_table(text: str) -> Kind:
    """What a .txt file holds: rows if it looks exactly like rows, else text."""
    if re.match(r"\{\s*\"|\[\s*\{\s*\"", text):
        return "json"
    header, _, second = text.partition("\n")
    mark = delimiter_of(header)
    whole = second.partition("\n")[0].count(mark) >= header.count(mark)
    return "csv" if whole and _is_header(text, _WORD) else "text"


def _is_header(text: str, name: re.Pattern[str]) -> bool:
    header = text.split("\n", 1)[0].rstrip("\r")
    cells = header.split(delimiter_of(header))
    return len(cells) > 1 and all(name.fullmatch(cell) or not cell for cell in cells)
