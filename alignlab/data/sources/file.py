"""Prompt groups from files: one, a folder, a glob, or whatever fsspec reaches."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignlab.data.rows.bad_rows import WAY_OUT, BadRows
from alignlab.data.rows.files import stream_rows
from alignlab.data.rows.fingerprint import content_of, fingerprint_of
from alignlab.data.rows.listing import DataFile, by_split, files_of
from alignlab.data.sources.groups import Reading, groups_of
from alignlab.data.sources.splits import is_official_test
from alignlab.data.sources.spool import Spool
from alignlab.data.sources.table import VERSION, Table
from alignlab.errors import DataError, did_you_mean
from alignlab.images import images_of, stamp_of

ENCODINGS = ("utf-8", "latin-1", "cp1252", "utf-16", "gb18030", "shift_jis", "big5", "koi8-r")


@dataclass(frozen=True, kw_only=True)
class File(Table):
    """Files of rows; the kind (JSON, CSV, Parquet, Arrow, text, compressed) is told by content.

    In a folder (or glob) files named for train, validation and test are these splits, by the words
    that `datasets` knows; what has no file of its own is cut from the train files.
    """

    path: str
    validation_path: str | None  # rows of its own; then nothing is cut from `path` for it
    test_path: str | None
    encoding: str = "utf-8"  # of files that are text

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            codecs.lookup(self.encoding)
            "".encode(self.encoding)  # some codecs are no encodings of text
        except LookupError as error:
            hint = did_you_mean(self.encoding, ENCODINGS)
            raise DataError(
                f"data.encoding={self.encoding} is no encoding that Python knows; common ones are "
                f"{', '.join(ENCODINGS)}.{hint}"
            ) from error

    def fingerprint(self) -> str:
        """Hash of the files' bytes (remote: what the server says) and of all but the paths."""
        fields = {**self._deciding(), "path": "", "validation_path": None, "test_path": None}
        content = {split: [content_of(f) for f in files] for split, files in self._files().items()}
        shown = [] if self.images is None else [self._image_stamps()]
        return fingerprint_of([], ("file", VERSION, content, fields, *shown))

    def _image_folder(self) -> str:
        """``images``, relative to the folder of the (first) data file."""
        first = self._files()["train"][0]
        beside = Path(str(self.images)).expanduser()
        if first.remote is None:
            beside = Path(first.where).resolve().parent / beside
        elif not beside.is_absolute():
            raise DataError(
                f"data.images={self.images}: {first.where} is not on this machine; name the folder "
                "of its images by its whole path."
            )
        if not beside.is_dir():
            raise DataError(f"data.images={self.images}: there is no folder {beside}.")
        return str(beside)

    def _image_stamps(self) -> list[Any]:
        """Names, sizes and times of all image files that rows show."""
        found = set()
        for split in self._files():
            spool = self._own(split)
            for group in spool.read(range(len(spool))) if spool else ():
                for image in images_of(group.meta):
                    if path := image.get("path"):
                        found.add((image["name"], *stamp_of(Path(path))))
        return sorted(found)

    def bytes(self) -> int | None:
        """Size of all its files, compressed as they are; None where a server does not say."""
        sizes = [file.size for files in self._files().values() for file in files]
        return None if any(size < 0 for size in sizes) else sum(sizes)

    def _files(self) -> dict[str, tuple[DataFile, ...]]:
        found = by_split(files_of(self.path), self.path)
        if "train" not in found:  # nothing but a test set: train on it only where that is allowed
            found = {"train": tuple(f for files in found.values() for f in files)}
        for split, path in (("validation", self.validation_path), ("test", self.test_path)):
            if path is not None:
                found[split] = files_of(path)
        return found

    def _has_own(self, split: str) -> bool:
        return split in self._files()

    def _own(self, split: str) -> Spool | None:
        files = self._files().get(split)
        if files is None:
            return None
        where = {"validation": self.validation_path, "test": self.test_path}.get(split)
        return _spool(files, where or self.path, self._reading(), self.encoding)

    def _official_test(self, split: str) -> str | None:
        train = self._files()["train"]
        return next((file.name for file in train if is_official_test(file.name)), None)


@lru_cache(maxsize=6)
def _spool(files: tuple[DataFile, ...], where: str, reading: Reading, encoding: str) -> Spool:
    """Groups of files, read once; a file that changed has another stamp."""
    short = files[0].name if len(files) == 1 else ""  # else each place names its file
    bad = BadRows(reading.bad_rows, WAY_OUT)
    merge, groups = groups_of(stream_rows(files, bad, encoding), where, short, reading, bad)
    return Spool(groups, reading.split_by, merge, bad)
