"""The name of a study: as it is configured, else made from what is asked for."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence

from alignlab.errors import ConfigError
from alignlab.overrides import key_of

COMMON = ("study", "store", "store_upstream", "report", "engine", "launch", "device", "tracking")
SWEEPS_ON = tuple(f"hydra.sweeper.{k}" for k in ("n_trials", "n_jobs", "storage", "study_name"))
_STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def name_of(configured: str | None, overrides: Sequence[str]) -> str:
    """Name of the folder of a study.

    Raises:
        ConfigError: a configured name that cannot be one.
    """
    study = configured or _derived(overrides)
    if not _STUDY.fullmatch(study):
        raise ConfigError(f"study: {study!r} cannot name a folder; use letters, digits, '-', '_'.")
    return study


def is_elsewhere(override: str) -> bool:
    """Whether an override says where and how a study is executed, and not what it is."""
    key = key_of(override)
    return re.split("[./@]", key)[0] in COMMON or key in SWEEPS_ON


def _derived(overrides: Sequence[str]) -> str:
    """Name a study by its experiment or pipeline and a hash of all that was overridden."""
    chosen = {key_of(o): o.partition("=")[2] for o in overrides}
    head = chosen.get("experiment") or chosen.get("pipeline") or "study"
    head = re.sub(r"[^A-Za-z0-9._-]+", "-", head).strip("-.") or "study"
    # Where and how do not make another study of it, nor does how long a sweep goes on.
    counted = sorted(o for o in overrides if not is_elsewhere(o))
    return f"{head}-{hashlib.sha256(chr(10).join(counted).encode()).hexdigest()[:6]}"


def command_line(overrides: Sequence[str], multirun: bool, launcher: Sequence[str] = ()) -> str:
    """Write a command as one would type it, behind the words of what starts its processes."""
    said = [*launcher, "-m", "alignlab"] if launcher else ["alignlab"]
    return shlex.join([*said, "run", *(["-m"] if multirun else []), *overrides])
