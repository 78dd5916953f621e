"""Errors meant for a person: one message that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AlignlabError(Exception):
    """Base of every error that the command line prints as a message, without a traceback."""

    exit_code = 1


class ConfigError(AlignlabError):
    """A configuration that cannot be run; raised before anything is loaded."""

    exit_code = 2


class DataError(AlignlabError):
    """Data that no stage should train on; names the file, the row and the reason."""

    exit_code = 2


class TrainingError(AlignlabError):
    """A run that stopped itself, for example at a loss that is not finite."""


class Interrupted(AlignlabError):
    """A run that was asked to stop (SIGINT, SIGTERM) and saved a checkpoint first."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest candidate, or an empty string."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
