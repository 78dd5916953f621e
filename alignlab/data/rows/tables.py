"""Rows of Parquet and Arrow files, batch by batch, as plain Python values."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from alignlab.data.rows.bad_rows import InFile
from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.errors import DataError

BATCH = 256  # most rows that are Python objects at one time ...
BATCH_BYTES = 64 * MIB  # ... and about so many bytes of them


def parquet_rows(source: BinaryIO, file: InFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("row 12", row) of a Parquet file, by its row groups.

    Raises:
        DataError: the file is damaged or cut off, names a column twice, or holds other than plain
            values.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(source)
        _check_names(table.schema_arrow, file.where)
        batches = table.iter_batches(batch_size=_batch_of(table.metadata), use_threads=False)
        yield from _rows(batches, file)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(_damaged(file.where, "Parquet", error)) from error


def arrow_rows(
    source: BinaryIO | Path, file: InFile, stream: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("row 12", row) of an Arrow file or stream (what `datasets.save_to_disk` writes).

    A path is mapped into memory, because one batch may be the whole file.

    Raises:
        DataError: as :func:`parquet_rows`.
    """
    import pyarrow

    try:
        data = pyarrow.memory_map(str(source)) if isinstance(source, Path) else source
        reader = pyarrow.ipc.open_stream(data) if stream else pyarrow.ipc.open_file(data)
        _check_names(reader.schema, file.where)
        whole = (
            iter(reader)
            if stream
            else (reader.get_batch(i) for i in range(reader.num_record_batches))
        )
        parts = (
            batch.slice(start, BATCH)
            for batch in whole
            for start in range(0, batch.num_rows, BATCH)
        )
        yield from _rows(parts, file)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(_damaged(file.where, "Arrow", error)) from error


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with dates as ISO text, decimals as numbers and UTF-8 bytes as text.

    Raises:
        DataError: a field holds what is neither text, number, list nor object, such as an image.
    """
    return {name: _plain(value, name) for name, value in row.items()}


def plain_rows(
    rows: Iterable[dict[str, Any]], file: InFile
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("row 12", plain row); a row that is not plain is a bad one."""
    for number, row in enumerate(rows, 1):
        try:
            plain = plain_row(row)
        except DataError as error:
            file.take(f"row {number}", str(error), error)
        else:
            yield f"row {number}", plain


def _rows(batches: Any, file: InFile) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = (row for batch in batches for row in batch.to_pylist(maps_as_pydicts="strict"))
    yield from plain_rows(rows, file)


# Columns whose binary values may be images, and what such a value is called in them.
_SHOWS = ("images", "image", "messages", "prompt", "conversations", "conversation")
_IMAGE = ("images", "image", "bytes")


def _plain(value: Any, field: str, key: str | None = None) -> Any:
    """A value as JSON has it; ``key`` is what the mapping around it calls it, if there is one."""
    kind = type(value)
    if kind in (str, int, bool, float) or value is None:
        return value
    if kind is list:
        return [_plain(x, field, key) for x in value]
    if kind is dict:
        return {str(k): _plain(x, field, str(k)) for k, x in value.items()}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            if field in _SHOWS and (key or field) in _IMAGE:  # `data.images` says whether it is
                return f"data:;base64,{base64.b64encode(value).decode('ascii')}"
            kind = "binary value, perhaps an image or a sound"  # type: ignore[assignment]
    if field in _SHOWS and hasattr(value, "save") and hasattr(value, "convert"):  # PIL's
        buffer = io.BytesIO()
        value.convert("RGB").save(buffer, format="PNG")
        return f"data:;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    told = kind if isinstance(kind, str) else f"value of type {kind.__name__}"
    raise DataError(
        f"'{field}' holds a {told}; alignlab reads text. Write the data without this column."
    )


def _batch_of(metadata: Any) -> int:
    """Rows to take at once, so that long ones do not add up."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(BATCH, int(BATCH_BYTES / max(longest, 1))))


def _check_names(schema: Any, where: str) -> None:
    names = list(schema.names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the column '{twice}' occurs twice. Rename or remove one.")
    if len(names) > LIMITS.fields:
        raise DataError(f"{where}: {len(names):,} columns; a row has at most {LIMITS.fields:,}.")


def _damaged(where: str, kind: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return (
        f"{where}: the {kind} file is damaged or cut off ({said}). Copy, download or write it "
        "again."
    )
