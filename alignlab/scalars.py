"""Single values of a configuration: what is taken for a number, a text, a path, and what is not."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from alignlab.annotations import described, shown
from alignlab.errors import did_you_mean

_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+|[+-]?\.?inf")


def number(value: Any) -> float | None:
    """Read a number, or a text that YAML 1.1 does not take for one; None for anything else."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value.replace(".inf", "inf"))
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


SCALARS: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: value if isinstance(value, bool) else None,
    int: lambda value: value if type(value) is int else None,
    float: number,
    str: lambda value: value if isinstance(value, str) else None,
    Path: lambda value: Path(value) if isinstance(value, (str, Path)) else None,
    types.NoneType: lambda value: None,
}


def near_choice(annotation: Any, value: Any) -> str:
    """Hint at the choice that a text nearly is."""
    texts = [choice for choice in typing.get_args(annotation) if isinstance(choice, str)]
    return did_you_mean(value, texts) if isinstance(value, str) else ""


def literal(choices: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    """Convert to one of ``choices``; on a problem append to ``problems`` and return None."""
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    expected = described(Literal[choices])
    near = near_choice(Literal[choices], value)
    problems.append(f"{path}: expected {expected}, got {shown(value)}.{near}")
    return None


def scalar(wanted: type, value: Any, path: str, problems: list[str]) -> Any:
    """Convert to a single value; on a problem append to ``problems`` and return None."""
    taken = SCALARS[wanted](value)
    if taken is None and value is not None:
        problems.append(f"{path}: expected {described(wanted)}, got {shown(value)}.")
    elif wanted is not types.NoneType and value is None:
        problems.append(f"{path}: expected {described(wanted)}, got null.")
    return taken
