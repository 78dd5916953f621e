"""``alignlab run`` as torchrun starts it: in every process, each stage executed by all of them.

The first process plans, owns the runs, prints and writes the report; the others wait for a stage
and take part in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from alignlab import interruption, typed
from alignlab.commands.study import Settings, common_of, store_root
from alignlab.compose import compose_all, expand
from alignlab.errors import AlignlabError, ConfigError
from alignlab.launch.inprocess import follow
from alignlab.launch.outcomes import told
from alignlab.launch.program import joined
from alignlab.launch.ranks import Ranks, leading
from alignlab.launch.task import Place
from alignlab.run import Store


def run_together(
    overrides: Sequence[str], *, multirun: bool, command: Callable[[], int], again: str
) -> int:
    """Do ``command`` in the first process of several, its stages in all of them.

    Raises:
        ConfigError: a launch that starts processes by itself.
    """
    common = common_of(compose_all(expand(overrides, multirun)[:1]))
    settings = typed.build(Settings, common)
    if settings.launch.kind != "inprocess":
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: torchrun has started this command in several "
            "processes, which execute every stage together; that is launch=inprocess. "
            f"launch={settings.launch.kind} starts processes by itself: use it without torchrun, "
            f"as `{again}`."
        )
    root = store_root(settings.store)
    place = Place(store=str(root), study="", engine=common["engine"], tracking=common["tracking"])
    ranks = joined(place, lambda ranks, error: _give_up(root, ranks, error))
    try:
        if not ranks.is_main:
            with interruption.heeding():
                return follow(ranks, _note)
        return _lead(ranks, command)
    finally:
        ranks.leave()


def _lead(ranks: Ranks, command: Callable[[], int]) -> int:
    """Do the command, and tell the others with which code all end."""
    code = 1
    try:
        with leading(ranks):
            code = command()
    except AlignlabError as error:
        code = error.exit_code
        raise
    finally:
        ranks.say({"end": code})
    return code


def _give_up(root: Path, ranks: Ranks, error: AlignlabError) -> None:
    """Leave word of a stage whose process will not come out of a collective."""
    if ranks.is_main:
        said = told(error)
        run = Store(root).find(ranks.name)
        run.update_record(error=said["reason"], error_kind=said["kind"])


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
