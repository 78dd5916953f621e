"""Errors meant for a person: one message that says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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


class DivergenceError(TrainingError):
    """Training that left the numbers: a loss, a gradient or a log-probability is not finite."""


class Interrupted(AlignlabError):
    """A run that was asked to stop by a signal; what had to be kept of it is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest candidate, or an empty string."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


@contextmanager
def located(path: str) -> Iterator[None]:
    """Put ``path`` before the message of a refusal raised inside, unless it is in it."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if path in str(error):
            raise
        kind = DataError if isinstance(error, DataError) else ConfigError
        raise kind(f"{path}: {error}") from None
