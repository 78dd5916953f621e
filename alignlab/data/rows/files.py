"""Rows of a local file whose kind is told by its content, and hashes of files."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignlab.errors import DataError, did_you_mean

Row = dict[str, Any]

_WRAPPERS = ("data", "rows", "train", "examples")  # {"data": [rows]}


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """Read (place, row) pairs from JSON lines, JSON, CSV, TSV or Parquet, gzipped or not.

    The kind is told by the content, not by the name. ``place`` ("line 12" or "row 12") is for
    messages.

    Raises:
        DataError: the file does not exist, is empty or is not what it looks like.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise DataError(f"No file {path} (looked in {path.parent.resolve()}).{hint}")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[:4] == b"PAR1":
        rows = list(_parquet(content))
    else:
        rows = list(_text_rows(path, _decode(path, content)))
    if not rows:
        raise DataError(f"{path} holds no rows.")
    for place, row in rows:
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise DataError(f"{path}, {place}: a row must be an object with fields, not a {kind}.")
    return rows


def fingerprint_of(paths: Sequence[Path], fields: Any) -> str:
    """SHA-256 over the bytes of files and over plain values or dataclasses."""

    def plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    content = [_file_hash(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths]
    text = json.dumps([content, fields], sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=64)
def _file_hash(path: str, modified_ns: int, size: int) -> str:
    """Hash of a file's bytes; time and size are only the key of the cache."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text ({error.reason}). Convert the file, "
            "for example with: iconv -t UTF-8."
        ) from error


def _text_rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    first = text.lstrip()[:1]
    if first == "[":
        yield from _json(path, text)
    elif first == "{":
        opening, _, rest = text.lstrip().partition("\n")
        lines = _is_json(opening) and rest.strip()
        yield from _json_lines(path, text) if lines else _json(path, text)
    else:
        yield from _csv(path, text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}, column {error.colno}: not JSON ({error.msg}). "
                    "Every line must be one whole object."
                ) from error


def _json(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})."
        ) from error
    if isinstance(content, dict):
        table = next((content[name] for name in _WRAPPERS if _is_table(content.get(name))), None)
        content = [content] if table is None else table
    for number, row in enumerate(content, 1):
        yield f"row {number}", row


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _csv(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    header = text.split("\n", 1)[0]
    delimiter = max(",\t;", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    for row in reader:
        place = f"line {reader.line_num}"
        if None in row or None in row.values():
            raise DataError(
                f"{path}, {place}: not as many values as the header has fields "
                f"({', '.join(reader.fieldnames or [])}). Quote texts that hold '{delimiter}'."
            )
        yield place, {name: _cell(value) for name, value in row.items()}


def _cell(value: str) -> Any:
    """Parse lists and objects, which a CSV cell can only hold as JSON; all else stays text."""
    if value[:1] in ("[", "{") and _is_json(value):
        return json.loads(value)
    return value


def _parquet(content: bytes) -> Iterator[tuple[str, Row]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"row {number}", row
