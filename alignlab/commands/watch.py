"""``alignlab watch``: a study in the terminal while it runs, from its files alone."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from alignlab.commands.study import store_root
from alignlab.commands.watch_text import Style, changes, draw, headline
from alignlab.errors import DataError, did_you_mean
from alignlab.report.live import Watcher, newest
from alignlab.run import Store

EVERY = 1.0  # seconds between two looks
REST = 19  # times what a look has cost: of a huge study too it takes 5 % of a core at most
QUIET = 30.0  # seconds between two headlines in a pipe


def watch(study: str | None, *, once: bool, every: float = EVERY) -> int:
    """Show a study until it has ended; Ctrl-C leaves it running.

    On a terminal the picture is drawn again in place; in a pipe a line follows every change.

    Raises:
        DataError: there is no such study.
    """
    store = Store(store_root())
    watcher = Watcher(study_named(study, store), store)
    try:
        if once or not sys.stdout.isatty():
            _print(watcher, once, every)
        else:
            _redraw(watcher, every)
    except KeyboardInterrupt:
        return 0
    return 0


def study_named(study: str | None, store: Store) -> str:
    """Name of a study of the store: as given, else the newest one.

    Raises:
        DataError: there is no such study.
    """
    if study is None:
        found = newest(store)
        if found is None:
            raise DataError(f"no study under {store.studies} yet; `alignlab run` begins one.")
        return found
    if not (store.studies / study / "study.json").is_file():
        known = sorted(file.parent.name for file in store.studies.glob("*/study.json"))
        raise DataError(
            f"no study '{study}' under {store.studies}.{did_you_mean(study, known)} "
            f"Known studies: {', '.join(known) or 'none'}."
        )
    return study


def _print(watcher: Watcher, once: bool, every: float) -> None:
    """The picture as plain lines; then, unless once, a line per change until the end."""
    style = Style(unicode=in_unicode(sys.stdout))
    seen = watcher.look()
    print("\n".join(draw(seen, style)), flush=True)
    said = time.monotonic()
    while seen.active and not once:
        time.sleep(every)
        before, seen = seen, watcher.look()
        lines = changes(before, seen)
        if time.monotonic() - said >= QUIET or not seen.active:
            lines.append(headline(seen, style))
        if lines:
            said = time.monotonic()
            print("\n".join(lines), flush=True)


def _redraw(watcher: Watcher, every: float) -> None:
    """Draw over the last picture until the study has ended; leave the last one standing."""
    drawn = 0
    looked = time.process_time()
    with _hidden_cursor(sys.stdout):
        while True:
            seen = watcher.look()
            size = shutil.get_terminal_size()
            style = Style(
                colour="NO_COLOR" not in os.environ,
                unicode=in_unicode(sys.stdout),
                width=size.columns - 1,
                height=size.lines - 1,
            )
            lines = draw(seen, style)
            back = f"\x1b[{drawn}F" if drawn else ""
            sys.stdout.write(back + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            sys.stdout.flush()
            drawn = len(lines)
            if not seen.active:
                break
            cost, looked = time.process_time() - looked, time.process_time()
            time.sleep(max(every, cost * REST))
    unfinished = len(seen.of("waiting", "queued", "stopped", "failed", "blocked"))
    if unfinished and seen.command:
        print(f"continue with: {seen.command}")


@contextmanager
def _hidden_cursor(stream: TextIO) -> Iterator[None]:
    stream.write("\x1b[?25l")
    try:
        yield
    finally:
        stream.write("\x1b[?25h")
        stream.flush()


def in_unicode(stream: TextIO) -> bool:
    """Whether a stream takes more than ASCII."""
    return (stream.encoding or "").lower().replace("-", "") == "utf8"
