"""Which files a path means: a file, a folder, a glob or a URL, and the split each is named for."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from alignlab.data.rows.limits import LIMITS
from alignlab.errors import DataError, did_you_mean

COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_GLOB = re.compile(r"[*?\[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|.*::")
# What lies beside data and is none: documents, and the notes that `datasets` and Spark write.
_BESIDE = re.compile(
    r"(readme|license|licence|notice|source|citation|changelog|authors)(\.(md|txt|rst|html|cff))?"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json|[._].*",
    re.IGNORECASE,
)
# The words by which `datasets` tells splits in the names of files and folders.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT = {
    split: re.compile(rf"(?:^|[-._ /0-9])(?:{'|'.join(words)})(?:$|[-._ /0-9])", re.IGNORECASE)
    for split, words in _WORDS.items()
}


@dataclass(frozen=True)
class DataFile:
    """One file that holds rows."""

    where: str  # the path or URL, as messages call it
    name: str  # inside its folder, or the file's own name
    size: int  # bytes; -1 where a server does not say
    stamp: str  # changes when the file does
    remote: Any = field(default=None, compare=False, repr=False)  # (file system, path), or local

    @property
    def suffix(self) -> str:
        """The name's ending in lower case, without that of a compression: ``.jsonl``."""
        path = Path(self.name.lower())
        return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix

    def open(self) -> BinaryIO:
        """Open the file's bytes, unbuffered.

        Raises:
            DataError: it cannot be opened, with the system's reason.
        """
        if self.remote is None:
            try:
                return Path(self.where).open("rb", buffering=0)
            except OSError as error:
                raise DataError(f"{self.where} cannot be read: {error.strerror}.") from error
        system, path = self.remote
        try:
            opened: BinaryIO = system.open(path, "rb")
        except Exception as error:  # every file system has errors of its own
            raise DataError(f"{self.where} cannot be opened: {_said(error)}.") from error
        return opened


def is_url(where: str) -> bool:
    """Whether the text names something that fsspec opens, such as ``hf://`` or ``zip://a::b``."""
    return _URL.match(where) is not None


def split_named(name: str) -> tuple[str, ...]:
    """Splits whose words are in a file's name, else in the names of its folders."""
    folder, _, own = name.rpartition("/")
    own = own.split(".", 1)[0] if not own.startswith(".") else own
    for part in (own, *reversed(folder.split("/"))):
        if found := tuple(split for split, word in _SPLIT.items() if word.search(part)):
            return found
    return ()


def files_of(where: str | Path) -> tuple[DataFile, ...]:
    """Return the files that a path, folder, glob or URL means, in the order of their names.

    Hidden files and notes (README, LICENSE, dataset_info.json) in a folder are passed over.

    Raises:
        DataError: there is none, something is no plain file, a link leads back to its own folder,
            there are too many, or their endings say that they are of several kinds.
    """
    text = str(where)
    files = _remote(text) if is_url(text) else _local(text)
    if len(files) > LIMITS.files:
        raise DataError(
            f"{text}: more than {LIMITS.files} files. Name a part of them with a glob, or join "
            "them into larger ones."
        )
    kinds = {file.suffix: file.name for file in reversed(files)}
    if len(kinds) > 1:
        shown = ", ".join(sorted(kinds.values())[:4])
        raise DataError(
            f"{text} holds files of several kinds ({shown}). Name those that are the data with a "
            f"glob, for example data.path='{text.rstrip('/')}/*{min(kinds)}'."
        )
    return files


def by_split(files: Sequence[DataFile], where: str) -> dict[str, tuple[DataFile, ...]]:
    """Sort several files into train, validation and test by their names; one file is ``train``.

    Files without such a word are ``train`` where no file is named so. Only test files: ``test``.

    Raises:
        DataError: a file belongs to two splits, or to none where another is named train.
    """
    if len(files) == 1:
        return {"train": tuple(files)}
    found: dict[str, list[DataFile]] = {}
    for file in files:
        splits = split_named(file.name)
        if len(splits) > 1:
            raise DataError(f"{where}: {file.name} is named for {' and '.join(splits)}. Rename it.")
        found.setdefault(splits[0] if splits else "", []).append(file)
    rest = found.pop("", [])
    if rest and "train" in found:
        raise DataError(
            f"{where} has files of named splits, and {rest[0].name} belongs to none. Name the files"
            " that you mean with a glob."
        )
    if rest:
        found["train"] = rest
    elif set(found) == {"validation"}:
        found = {"train": found["validation"]}
    return {split: tuple(members) for split, members in found.items()}


def _local(text: str) -> tuple[DataFile, ...]:
    path = Path(text).expanduser()
    try:
        status = path.stat()
    except FileNotFoundError as error:
        if _GLOB.search(text):
            return _matching(text)
        raise DataError(_missing(path)) from error
    except (OSError, ValueError) as error:  # a loop of links, no permission, a NUL in the name
        raise DataError(
            f"{text} cannot be read: {getattr(error, 'strerror', error)}. Check the path, its "
            "links and its permissions."
        ) from error
    if stat.S_ISDIR(status.st_mode):
        names = sorted(_walk(path, path, ()))
        if not names:
            raise DataError(f"The folder {path} holds no data files (hidden ones do not count).")
        return tuple(_plain(path / name, name) for name in names)
    return (_plain(path, path.name),)


def _missing(path: Path) -> str:
    try:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    except OSError:
        siblings = []
    hint = did_you_mean(path.name, siblings)
    return f"No file {path} (looked in {path.parent.resolve()}).{hint}"


def _matching(pattern: str) -> tuple[DataFile, ...]:
    path = Path(pattern).expanduser()
    found = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
    paths = sorted(p for p in found if p.is_file() and not _BESIDE.fullmatch(p.name))
    if not paths:
        raise DataError(
            f"No file matches {pattern}. Put the pattern in quotes, so that the shell leaves it to "
            "alignlab."
        )
    top = Path(os.path.commonpath([p.parent for p in paths]))
    return tuple(_plain(path, path.relative_to(top).as_posix()) for path in paths)


def _plain(path: Path, name: str) -> DataFile:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a pipe" if stat.S_ISFIFO(status.st_mode) else "a device or socket"
        raise DataError(
            f"{path} is {kind} and no file. Data are read more than once: save them to a file."
        )
    return DataFile(str(path), name, status.st_size, f"{status.st_mtime_ns}-{status.st_size}")


def _walk(folder: Path, top: Path, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Names of the data files below a folder, links followed, but never back into a folder."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"{folder} is a link back into its own folder. Remove the link.")
    saved = _saved(folder)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for count, entry in enumerate(entries):
        if count > LIMITS.files + 100:
            return  # the caller refuses so many
        if _BESIDE.fullmatch(entry.name) or (saved and entry.name not in saved):
            continue
        try:
            is_folder = stat.S_ISDIR(entry.stat().st_mode)
        except OSError as error:
            raise DataError(
                f"{entry} cannot be read: {error.strerror}. Remove it, or repair the link."
            ) from error
        if is_folder:
            yield from _walk(entry, top, (*above, here))
        else:
            yield entry.relative_to(top).as_posix()


def _saved(folder: Path) -> frozenset[str]:
    """Names of the data files of a folder by `datasets.save_to_disk`; empty for another folder.

    What `map` has cached lies beside them and looks the same.
    """
    state = folder / "state.json"
    if not state.is_file():
        return frozenset()
    try:
        files = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
        return frozenset(entry["filename"] for entry in files)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(
            f"{state} is not what datasets.save_to_disk writes. Save the data set again."
        ) from error


def _remote(url: str) -> tuple[DataFile, ...]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        if _GLOB.search(path):
            infos = system.glob(path, detail=True)
        else:  # not isdir(): over http it would read the whole file to look for links
            infos = {path: system.info(path)}
            if infos[path].get("type") == "directory":
                infos = system.find(path, detail=True)
    except ImportError as error:
        raise DataError(f"{url} needs a package that is not installed: {error}.") from error
    except FileNotFoundError as error:
        raise DataError(f"Nothing at {url}. Check the address.") from error
    except Exception as error:  # network, permission, unknown protocol: each system's own
        raise DataError(f"{url} cannot be reached: {_said(error)}.") from error
    fixed = _GLOB.split(path, maxsplit=1)[0]
    top = path.rstrip("/") if fixed == path else fixed.rpartition("/")[0]
    found = sorted(name for name, info in infos.items() if info.get("type") != "directory")
    files = []
    for place in found:
        name = place[len(top) :].lstrip("/") if len(found) > 1 and place.startswith(top) else place
        if len(found) == 1 or not any(_BESIDE.fullmatch(part) for part in name.split("/")):
            short = name if len(found) > 1 else place.rstrip("/").rsplit("/", 1)[-1]
            where = url if len(found) == 1 else str(system.unstrip_protocol(place))
            info = infos[place]
            files.append(
                DataFile(where, short, _size(info), _identity(info), remote=(system, place))
            )
    if not files:
        raise DataError(f"No data files at {url}. Check the address.")
    return tuple(files)


def _size(info: dict[str, Any]) -> int:
    size = info.get("size")
    return size if isinstance(size, int) else -1


def _identity(info: dict[str, Any]) -> str:
    """What a server says of a file's content, or "" where it says nothing of use."""
    telling = ("etag", "md5", "digest", "modified", "mtime", "created", "crc", "oid", "blob_id")
    said = {k: str(v) for k, v in info.items() if any(word in k.lower() for word in telling) and v}
    return json.dumps({**said, "size": _size(info)}, sort_keys=True) if said else ""


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
