"""Which checker an instruction id means, and what an instruction's arguments must be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Check = Callable[..., bool]
F = TypeVar("F", bound=Check)
CHECKERS: dict[str, Check] = {}


class Undecidable(Exception):
    """The instruction cannot be checked: it counts as unknown, neither followed nor not."""


def instruction(name: str) -> Callable[[F], F]:
    """Register a checker under an instruction id of the data."""

    def add(check: F) -> F:
        assert name not in CHECKERS, name
        CHECKERS[name] = check
        return check

    return add


def follows(name: str, text: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a text follows an instruction; an empty text follows none.

    ``arguments`` may hold more than the checker takes (data of IFEval state every argument of every
    instruction, most of them null); a list of words may come as one text.

    Raises:
        Undecidable: nobody has written a checker for the id, or an argument is missing.
    """
    if name not in CHECKERS:
        raise Undecidable("no checker")
    check = CHECKERS[name]
    taken = list(inspect.signature(check).parameters)[1:]
    given = {key: arguments[key] for key in taken if arguments.get(key) is not None}
    if lacking := [key for key in taken if key not in given]:
        raise Undecidable(f"the data give no {', '.join(lacking)}")
    if not text.strip():
        return False
    return bool(check(text, **given))
