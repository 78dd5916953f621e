"""Finished runs in another place, which is only read: a folder, or anything that fsspec opens."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alignlab import files, seal
from alignlab.disk import trouble
from alignlab.errors import ConfigError, TrainingError
from alignlab.run import Run

VARIABLE = "ALIGNLAB_UPSTREAM"
LINKED = 2**20  # bytes from which a file of a folder is linked and not copied
TRIES = 3  # of a transfer that breaks or arrives changed
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|.*::")
_WHOLE = "model"  # folder that only those need who go on with a run
_RUN = re.compile(r"[a-z][a-z0-9_]*-[0-9a-z]+")


def upstreams(configured: Iterable[str] = ()) -> tuple[Upstream, ...]:
    """Places as configured, else those of ``$ALIGNLAB_UPSTREAM``, which commas separate."""
    stated = tuple(configured) or os.environ.get(VARIABLE, "").split(",")
    return tuple(Upstream(place.strip()) for place in stated if place.strip())


@dataclass(frozen=True)
class Upstream:
    """A place with runs, each in a folder ``<kind>-<key>`` as in a store."""

    where: str

    @cached_property
    def folder(self) -> Path | None:
        """The place as a folder of this machine; None for an address."""
        if _URL.match(self.where) is None:
            return Path(self.where).expanduser().resolve()
        plain = self.where.removeprefix("file://")
        return Path(plain).resolve() if plain != self.where else None

    @cached_property
    def _remote(self) -> tuple[Any, str]:
        """File system and root of an address."""
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.where)
        except ImportError as error:
            raise ConfigError(
                f"store_upstream: {self.where} needs a package that is not installed: {error}."
            ) from error
        except Exception as error:  # an unknown protocol, an address that does not parse
            raise self._unreachable(error) from error
        return system, str(root).rstrip("/")

    def check(self) -> None:
        """Refuse a place that is not there: without it, all it holds would be trained again.

        Raises:
            ConfigError: no such folder, or an address that does not answer.
        """
        if self.folder is not None:
            there = self.folder.is_dir()
        else:
            system, root = self._remote
            try:
                there = bool(system.exists(root)) or self._answers()
            except Exception as error:  # each file system has errors of its own
                raise self._unreachable(error) from error
        if not there:
            raise self._nothing()

    def _answers(self) -> bool:
        """Whether a server that does not show its folders is there, and forbids only that."""
        system, root = self._remote
        try:
            system.info(root)
        except FileNotFoundError as error:  # over http whatever the answer was
            return getattr(error.__cause__, "status", None) in (401, 403, 405)
        return True

    def _nothing(self) -> ConfigError:
        return ConfigError(
            f"store_upstream: there is nothing at {self.where}. Is it mounted, and the address "
            "right? To go without it, and train here what it would have had, leave it out."
        )

    def _unreachable(self, error: Exception) -> ConfigError:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return ConfigError(
            f"store_upstream: {self.where} cannot be reached ({said}). Check the address and the "
            "network; or leave it out, and what it would have had is trained here."
        )

    @cached_property
    def listed(self) -> frozenset[str] | None:
        """Names of the folders that may be runs; None where the place shows no list."""
        if self.folder is not None:
            try:
                names = iter([entry.name for entry in self.folder.iterdir()])
            except OSError as error:
                raise self._nothing() from error
        else:
            system, root = self._remote
            if type(system).__name__.startswith("HTTP"):
                return None
            try:
                entries = system.ls(root, detail=False)
            except Exception as error:
                raise self._unreachable(error) from error
            names = (str(entry).rstrip("/").rpartition("/")[2] for entry in entries)
        return frozenset(name for name in names if _RUN.fullmatch(name))

    def seal_of(self, run: str) -> dict[str, Any] | None:
        """What ``DONE`` of a run says; None where the run is not there or not finished."""
        if self.listed is not None and run not in self.listed:
            return None
        if self.folder is not None:
            return seal.read(self.folder / run) or None
        system, root = self._remote
        try:
            found = json.loads(system.cat_file(f"{root}/{run}/{seal.NAME}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unreachable(error) from error
        return found if isinstance(found, dict) and "files" in found else None

    def bring(self, run: Run, note: Callable[[str], None], *, whole: bool) -> None:
        """Put a finished run of this place into its folder in the store, verified by its seal.

        Files of a folder that are large are linked. Not ``whole``: without the model of an
        address, which a report does not need; the seal names what is absent, and a later call
        brings it. An unfinished run of the same name gives way.

        Raises:
            TrainingError: the place no longer has it, or what arrives is not what was sealed.
        """
        if run.done:
            if whole and run.missing():
                self._complete(run, note, whole)
            return
        with run.claim(note):
            if not run.done:
                self._complete(run, note, whole)

    def _complete(self, run: Run, note: Callable[[str], None], whole: bool) -> None:
        said = self.seal_of(run.name)
        if said is None:
            raise TrainingError(f"{run.name} is not, or no longer, finished in {self.where}.")
        later = [] if whole or self.folder is not None else _models(said["files"])
        wanted = {n: digest for n, digest in said["files"].items() if n not in later}
        began = time.monotonic()
        for name, digest in wanted.items():
            self._get(run, name, digest)
        for name in seal.members(run.path):
            if name not in said["files"]:
                (run.path / name).unlink()  # of the unfinished run that was here
        shutil.rmtree(run.state_dir, ignore_errors=True)
        origin = {"upstream": self.where, "brought": time.time()}
        told = {"finished": said["finished"], "files": said["files"], **origin}
        files.write_atomically(run.path / seal.NAME, {**told, "absent": later})
        without = f", {len(later)} of its model left there" if later else ""
        seconds = time.monotonic() - began
        note(f"{run.name}: {len(wanted)} files from {self.where}{without} ({seconds:.1f} s)")

    def _get(self, run: Run, name: str, digest: str) -> None:
        target = run.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise TrainingError(f"{self.where}: the seal of {run.name} names {name}.")
        if target.is_file() and not target.is_symlink() and files.sha256(target) == digest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = files.beside(target)
        try:
            if not self._linked(run, name, beside):
                self._copied(run, name, digest, beside)
            beside.replace(target)
        finally:
            with suppress(OSError):
                beside.unlink(missing_ok=True)

    def _linked(self, run: Run, name: str, beside: Path) -> bool:
        if self.folder is None:
            return False
        source = self.folder / run.name / name
        try:
            large = files.patient(source.stat).st_size >= LINKED
        except OSError as error:
            raise self._gone(run, name, error) from error
        if large:
            beside.symlink_to(source)
        return large

    def _copied(self, run: Run, name: str, digest: str, beside: Path) -> None:
        """Copy a file and compare its hash; what breaks or arrives changed is tried again."""
        reason: object = ""
        for attempt in range(TRIES):
            time.sleep(attempt)
            try:
                self._fetch(f"{run.name}/{name}", beside)
                found = files.sha256(beside, sync=True)
            except FileNotFoundError as error:
                raise self._gone(run, name, error) from error
            except OSError as error:
                if trouble(error):  # of this machine: no second try helps
                    raise
                reason = error
            except Exception as error:  # a remote file system's own
                reason = error
            else:
                if found == digest:
                    return
                reason = "it is not what was sealed: its hash is another"
        raise self._gone(run, name, reason)

    def _fetch(self, name: str, copy: Path) -> None:
        if self.folder is not None:
            shutil.copyfile(self.folder / name, copy)
        else:
            system, root = self._remote
            system.get_file(f"{root}/{name}", str(copy))

    def _gone(self, run: Run, name: str, reason: object) -> TrainingError:
        said = " ".join(str(reason).split())[:300] or type(reason).__name__
        return TrainingError(
            f"{run.name}/{name} cannot be had from {self.where}: {said}. Repair the run there, or "
            "leave the place out of store_upstream, and it is trained here."
        )


def find(places: Sequence[Upstream], run: str) -> Upstream | None:
    """Return the first of the places that has a finished run."""
    return next((place for place in places if place.seal_of(run) is not None), None)


def _models(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.partition("/")[0] == _WHOLE]
