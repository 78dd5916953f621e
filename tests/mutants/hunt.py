"""Hunt the mutants of a module with a list of checks, all in this process."""

from __future__ import annotations

import inspect
import itertools
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType, ModuleType
from typing import Any

import pytest
from ast_mutants import mutants
from mutation import code_objects, functions_of

SECONDS = (0.5, 2.0)  # of computing: after 20 times its own time, within these, a check never ends


class RunsForEver(Exception):
    """A mutant took far longer than any check does."""

    def __str__(self) -> str:
        return "stopped by the clock, twice"


@dataclass(frozen=True)
class Check:
    """Something that raises when the code is wrong."""

    name: str
    run: Callable[[], Any]
    seconds: float = 0.0  # what it takes on the code as it stands


def checks_of(
    tests: ModuleType, without: Collection[str] = (), **fixtures: Callable[[], Any]
) -> Iterator[Check]:
    """The tests of a module as plain calls.

    Left out are those that need other fixtures, and the slow ones, which no hunt can afford:
    properties that hypothesis draws examples for, and tests that build a transformer.
    """
    for name, test in vars(tests).items():
        if not name.startswith("test_") or hasattr(test, "hypothesis"):
            continue
        if name in without or "random_model" in test.__code__.co_names:
            continue
        marks = [m for m in getattr(test, "pytestmark", ()) if m.name == "parametrize"]
        given = {name for mark in marks for name in _names(mark)}
        needed = set(inspect.signature(test).parameters) - given
        if needed <= fixtures.keys():
            for number, values in enumerate(itertools.product(*map(_values, marks))):
                arguments = {k: v for part in values for k, v in part.items()}
                yield Check(f"{name}[{number}]", _call(test, arguments, needed, fixtures))


def _call(test: Any, arguments: Any, needed: set[str], fixtures: Any) -> Callable[[], None]:
    return lambda: test(**arguments, **{name: fixtures[name]() for name in needed})


def _names(mark: pytest.Mark) -> list[str]:
    names = mark.args[0]
    return names.replace(" ", "").split(",") if isinstance(names, str) else list(names)


def _values(mark: pytest.Mark) -> list[dict[str, Any]]:
    names = _names(mark)
    rows = [getattr(row, "values", row) for row in mark.args[1]]  # pytest.param or plain
    single = len(names) == 1
    return [
        dict(zip(names, [row] if single and row is plain else row, strict=True))
        for row, plain in zip(rows, mark.args[1], strict=True)
    ]


@dataclass
class Score:
    """What became of the mutants of one module."""

    dead: list[str] = field(default_factory=list)
    endless: list[str] = field(default_factory=list)  # of the dead: stopped by the clock
    survivors: list[str] = field(default_factory=list)
    equivalent: list[str] = field(default_factory=list)
    dead_equivalents: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = f"{len(self.dead)} of {len(self.dead) + len(self.survivors)} mutants die"
        if self.equivalent:
            said += f"; {len(self.equivalent)} more differ in nothing that can be seen"
        return said


def hunt(
    module: ModuleType,
    checks: Iterable[Check],
    equivalent: Mapping[tuple[str, str], str],
    *,
    only: Collection[str] = (),
) -> Score:
    """Try every mutant of ``module`` on the checks that reach its function, the fastest first."""
    reaching = reached(module, checks)
    caches = [v.cache_clear for v in vars(module).values() if hasattr(v, "cache_clear")]
    score = Score()
    with warnings.catch_warnings(), time_limit():
        warnings.simplefilter("ignore")
        for mutant in mutants(module):
            if only and mutant.function not in only:
                continue
            named = f"{mutant.function}: {mutant.what}"
            with mutant.planted():
                died = first_failure(reaching.get(mutant.function, []), caches)
            for clear in caches:
                clear()
            listed = (mutant.function, mutant.what) in equivalent
            if listed and died is not None:
                score.dead_equivalents.append(f"{named}\n    {type(died).__name__}: {died}")
            elif listed:
                score.equivalent.append(named)
            elif died is None:
                score.survivors.append(f"line {mutant.line}, {named}")
            else:
                score.dead.append(named)
                if isinstance(died, RunsForEver):
                    score.endless.append(named)
    return score


def first_failure(checks: Iterable[Check], caches: Iterable[Callable[[], None]]) -> Any:
    """What the first check to fail raised; the clock's word is taken at the second time only."""
    for check in checks:
        failure = _failure(check, caches)
        if isinstance(failure, RunsForEver):  # or a machine that was busy with something else
            failure = _failure(check, caches)
        if failure is not None:
            return failure
    return None


def _failure(check: Check, caches: Iterable[Callable[[], None]]) -> Any:
    for clear in caches:
        clear()
    least, most = SECONDS
    # Again and again: an exception raised inside a callback or a finalizer is swallowed.
    signal.setitimer(signal.ITIMER_PROF, min(max(least, 20 * check.seconds), most), 1.0)
    try:
        check.run()
    except (Exception, pytest.fail.Exception) as failure:  # a mutant may fail in any way
        return failure
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise RunsForEver

    before = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


def reached(module: ModuleType, checks: Iterable[Check]) -> dict[str, list[Check]]:
    """The checks that enter each function of the module, the fastest first; all must pass."""
    owner = {
        id(code): function.__qualname__
        for function in functions_of(module)
        for code in code_objects(function.__code__)
    }
    entered: dict[str, list[Check]] = {}
    caches = [v.cache_clear for v in vars(module).values() if hasattr(v, "cache_clear")]
    for check in checks:
        for clear in caches:
            clear()
        names: set[str] = set()

        def note(frame: FrameType, event: str, _: Any, names: set[str] = names) -> None:
            if event == "call" and id(frame.f_code) in owner:
                names.add(owner[id(frame.f_code)])

        sys.setprofile(note)
        try:
            check.run()
        finally:
            sys.setprofile(None)
        started = time.perf_counter()
        check.run()
        took = time.perf_counter() - started
        for name in names:
            entered.setdefault(name, []).append(replace(check, seconds=took))
    return {name: sorted(found, key=lambda c: c.seconds) for name, found in entered.items()}
