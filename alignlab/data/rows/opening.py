"""A data file as a stream of its bytes: decompressed by content, and checked while it is read."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from alignlab.data.rows.limits import LIMITS, MIB
from alignlab.data.rows.listing import DataFile
from alignlab.errors import DataError

BUFFER = MIB
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_UNPACK = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}


def opened(file: DataFile) -> io.BufferedReader:
    """Open a file for reading, decompressed if its first bytes say so.

    Raises:
        DataError: it cannot be opened; while reading: it is cut off or damaged, it cannot be read,
            or it unpacks to far more than text does.
    """
    raw = file.open()
    plain: io.BufferedReader[Any] = io.BufferedReader(_Checked(raw, file.where), BUFFER)
    kind = compression(plain.peek(8)[:8])
    if kind is None:
        return plain
    unpacked = _Unpacked(_unpacker(kind, plain), plain, file.where, kind)
    inner: io.BufferedReader[Any] = io.BufferedReader(unpacked, BUFFER)
    if again := compression(inner.peek(8)[:8]):
        raise DataError(
            f"{file.where} is compressed twice ({kind}, then {again}). Unpack it once: "
            f"{_UNPACK[kind]}."
        )
    return inner


def recoded(stream: io.BufferedReader, file: DataFile, encoding: str, keep: bool) -> Any:
    """Return a stream of UTF-8 for one in another encoding.

    ``keep``: bytes that the encoding does not know are passed on as they are.

    Raises:
        DataError: while reading: the file is in another encoding; names the line.
    """
    text = _Recoded(stream, file.where, encoding, "surrogateescape" if keep else "strict")
    return io.BufferedReader(text, BUFFER)


def compression(head: bytes) -> str | None:
    """Return the compression that the first bytes of a file belong to, or None."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def mappable(stream: io.BufferedReader, file: DataFile) -> Path | None:
    """Return the path of a local file that is read as it lies there, not unpacked; else None."""
    return Path(file.where) if file.remote is None and stream.seekable() else None


def seekable(stream: io.BufferedReader) -> BinaryIO:
    """Return the stream if one can go back in it, else a temporary file with its bytes."""
    if stream.seekable():
        return stream
    copy: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the rows' iterator)
    shutil.copyfileobj(stream, copy, BUFFER)
    copy.seek(0)
    return copy


def _unpacker(kind: str, plain: io.BufferedReader) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=plain)
    if kind == "bzip2":
        return bz2.BZ2File(plain)
    if kind == "xz":
        return lzma.LZMAFile(plain)
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(plain, mode="r"), "zstd")


class _Checked(io.RawIOBase):
    """Bytes of an opened file; what goes wrong while reading is an error that names it."""

    def __init__(self, raw: BinaryIO, where: str) -> None:
        self.raw, self.where = raw, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """Whether one can go back: tried, because a file of a plain web server only says so."""
        try:
            here = self.raw.tell()
            self.raw.seek(here + 1)
            self.raw.seek(here)
        except (OSError, ValueError, AttributeError):
            return False
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.raw.seek(offset, whence)

    def tell(self) -> int:
        return self.raw.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.raw.read(len(buffer))
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"{self.where} cannot be read to its end: {reason}.") from error
        except Exception as error:  # a remote file system's own kinds
            name = type(error).__name__
            raise DataError(f"{self.where} cannot be read to its end: {name}: {error}.") from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Recoded(io.RawIOBase):
    """UTF-8 made of text in another encoding."""

    def __init__(self, source: io.BufferedReader, where: str, encoding: str, errors: str) -> None:
        self.source, self.where, self.encoding, self.errors = source, where, encoding, errors
        self.decoder = codecs.getincrementaldecoder(encoding)(errors)
        self.ready = b""
        self.line = 1

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            data = self.source.read(BUFFER)
            try:
                text = self.decoder.decode(data, final=not data)
            except UnicodeError as error:
                start = getattr(error, "start", 0)
                line = self.line + data.count(b"\n", 0, max(start, 0))
                reason = getattr(error, "reason", error)
                raise DataError(
                    f"{self.where}, line {line}: not {self.encoding} text ({reason}). Set "
                    "data.encoding to the encoding that the file has."
                ) from error
            self.line += text.count("\n")
            self.ready = text.encode("utf-8", self.errors)
            if not data:
                break
        taken, self.ready = self.ready[: len(buffer)], self.ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self.source.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """Decompressed bytes, counted against the compressed ones that they came from."""

    def __init__(self, unpacker: Any, source: io.BufferedReader, where: str, kind: str) -> None:
        self.unpacker, self.source, self.where, self.kind = unpacker, source, where, kind
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.unpacker.read(len(buffer))
        except DataError:
            raise
        except (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError) as error:
            if isinstance(error, EOFError) or "runcated" in str(error):
                reason = "the file is cut off: copy or download it again"
            else:
                reason = f"the file is damaged ({error}): copy or download it again"
            raise DataError(
                f"{self.where}: {self.kind} data end or break after {self.count:,} unpacked bytes;"
                f" {reason}."
            ) from error
        self.count += len(data)
        read = max(self.source.tell(), 1)
        if self.count > LIMITS.ratio_after and self.count > LIMITS.ratio * read:
            raise DataError(
                f"{self.where} unpacks to more than {LIMITS.ratio} times its size, as no text does "
                f"({self.count:,} bytes from {read:,}). If that is right, unpack it yourself "
                f"({_UNPACK[self.kind]}): files that are not compressed are read in any size."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.unpacker.close()
        self.source.close()
        super().close()
