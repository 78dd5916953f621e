"""Prompt groups from files: one, a folder, a glob, or whatever fsspec reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from alignlab.data.rows.files import stream_rows
from alignlab.data.rows.fingerprint import content_of, fingerprint_of
from alignlab.data.rows.listing import DataFile, by_split, files_of
from alignlab.data.sources.groups import Reading, groups_of
from alignlab.data.sources.splits import is_official_test
from alignlab.data.sources.spool import Spool
from alignlab.data.sources.table import VERSION, Table


@dataclass(frozen=True, kw_only=True)
class File(Table):
    """Files of rows; the kind (JSON, CSV, Parquet, Arrow, text, compressed) is told by content.

    In a folder (or glob) files named for train, validation and test are these splits, by the words
    that `datasets` knows; what has no file of its own is cut from the train files.
    """

    path: str
    validation_path: str | None  # rows of its own; then nothing is cut from `path` for it
    test_path: str | None

    def fingerprint(self) -> str:
        """Hash of the files' bytes (remote: what the server says) and of all but the paths."""
        fields = replace(self, path="", validation_path=None, test_path=None)
        content = {split: [content_of(f) for f in files] for split, files in self._files().items()}
        return fingerprint_of([], ("file", VERSION, content, fields))

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
        return _spool(files, where or self.path, self._reading())

    def _official_test(self, split: str) -> str | None:
        train = self._files()["train"]
        return next((file.name for file in train if is_official_test(file.name)), None)


@lru_cache(maxsize=6)
def _spool(files: tuple[DataFile, ...], where: str, reading: Reading) -> Spool:
    """Groups of files, read once; a file that changed has another stamp."""
    short = files[0].name if len(files) == 1 else ""  # else each place names its file
    merge, groups = groups_of(stream_rows(files), where, short, reading)
    return Spool(groups, reading.split_by, merge)
