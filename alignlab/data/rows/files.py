"""The rows of a file, folder, glob or URL as a stream; the kind is told by the content."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignlab.data.rows.bad_rows import BadRows, InFile
from alignlab.data.rows.csv_rows import csv_rows, text_documents
from alignlab.data.rows.json_rows import json_rows
from alignlab.data.rows.kinds import HEAD, Kind, is_table, kind_of
from alignlab.data.rows.listing import DataFile, files_of
from alignlab.data.rows.opening import mappable, opened, recoded, seekable
from alignlab.data.rows.tables import arrow_rows, parquet_rows
from alignlab.data.rows.yaml_rows import yaml_rows
from alignlab.errors import DataError

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[tuple[str, Row]]:
    """Read all (place, row) pairs at once; see :func:`stream_rows`."""
    return list(stream_rows(path))


def stream_rows(
    where: str | Path | Sequence[DataFile],
    bad: BadRows | None = None,
    encoding: str = "utf-8",
) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) of a file, a folder, a glob, a URL of fsspec or listed files.

    JSON lines, JSON, CSV, TSV, Parquet, Arrow or plain text, also compressed (gzip, zstd, bzip2,
    xz), are told by their content. Only the row at hand is in memory (of Parquet and Arrow: a
    batch). ``place`` is "line 12" or "row 12", for several files "name.jsonl, line 12". A single
    text file is parted into documents at blank lines; of several each is one document.

    ``bad`` takes the rows that cannot be read, None = the first is refused; ``encoding`` is that of
    texts.

    Raises:
        DataError: nothing to read, or not what it looks like; names file, place and what to do.
    """
    files = files_of(where) if isinstance(where, (str, Path)) else tuple(where)
    bad = bad or BadRows()
    first: Kind | None = None
    empty = True
    for file in files:
        stream = opened(file)
        if encoding != "utf-8" and not is_table(stream.peek(HEAD)):
            stream = recoded(stream, file, encoding, keep=bad.leave_out)
        here = InFile(file.where, bad, file.name)
        with stream:
            head = stream.peek(HEAD)[:HEAD]
            if not head:
                raise DataError(
                    f"{file.where} holds no rows: the file is empty. Remove or fill it."
                )
            kind = kind_of(head, file)
            if first not in (None, kind):
                raise DataError(
                    f"{file.where} is of another kind ({kind}) than the files before it ({first}). "
                    "Name files of one kind with a glob."
                )
            first = kind
            for place, row in _rows(kind, stream, file, here, len(files) > 1):
                if not isinstance(row, dict):
                    found = type(row).__name__
                    here.take(place, f"a row must be an object with fields, not a {found}.")
                    continue
                empty = False
                yield (f"{file.name}, {place}" if len(files) > 1 else place), row
    if empty and not bad.count:
        name = files[0].where if len(files) == 1 else where
        raise DataError(f"{name} holds no rows. Name a file with rows.")


def _rows(
    kind: Kind, stream: io.BufferedReader, file: DataFile, here: InFile, several: bool
) -> Iterator[tuple[str, Any]]:
    if kind == "json":
        return json_rows(stream, here, file.suffix in (".jsonl", ".ndjson"))
    if kind == "csv":
        return csv_rows(stream, here)
    if kind == "text":
        return text_documents(stream, here, several)
    if kind == "yaml":
        return yaml_rows(stream, here)
    if kind == "parquet":
        return parquet_rows(seekable(stream), here)
    mapped = mappable(stream, file)
    if kind == "arrow":
        return arrow_rows(mapped or seekable(stream), here, stream=False)
    return arrow_rows(mapped or stream, here, stream=True)
