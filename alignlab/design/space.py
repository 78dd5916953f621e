"""What a search may choose: for each field an interval or a list, and the points that are tried."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.design.draft import Node, field_of
from alignlab.design.halton import PRIMES, halton
from alignlab.errors import ConfigError, did_you_mean

WORDS = ("low", "high", "log", "around")
EXAMPLE = "{low: 1e-5, high: 1e-3, log: true}, {around: 10}, or a list of values"
DIGITS = 3  # of a number that is tried: settings that a person can write down


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``, even in themselves or in their logarithms."""

    low: float
    high: float
    log: bool
    whole: bool  # whole numbers alone

    def at(self, share: float) -> Any:
        """Return the number at a share of the way, 0 ≤ share < 1."""
        if self.whole:
            # Each whole number has a stretch of its own, both ends included.
            return int(self._between(self.low, self.high + 1, share))
        return float(f"{self._between(self.low, self.high, share):.{DIGITS}g}")

    def _between(self, low: float, high: float, share: float) -> float:
        if self.log:
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return low + share * (high - low)


@dataclass(frozen=True)
class Choices:
    """One of some values, each as likely as the others."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """Return the value at a share of the way through the list."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True)
class Dimension:
    """One field of a stage, and what it may be."""

    keys: tuple[str, ...]
    options: Span | Choices

    @property
    def field(self) -> str:
        """Dotted path of the field in its stage."""
        return ".".join(self.keys)


def dimensions_of(stated: Any, node: Node, path: str) -> list[Dimension]:
    """Read the space of one stage; a field that is null is not searched.

    Raises:
        ConfigError: an unknown field, or what is neither an interval nor a list.
    """
    if not isinstance(stated, Mapping):
        raise ConfigError(f"{path}: expected fields and what they may be, as in {EXAMPLE}.")
    found = []
    for keys, options in _leaves(stated, ()):
        where = f"{path}.{'.'.join(keys)}"
        configured = field_of(node, keys, where)
        if options is not None:
            found.append(Dimension(keys, _options(options, configured, where)))
    if len(found) > len(PRIMES):
        raise ConfigError(f"{path}: at most {len(PRIMES)} fields can be searched together.")
    return found


def points(dimensions: Sequence[Dimension], node: Node, seed: int) -> Iterator[tuple[Any, ...]]:
    """Settings to try, in order: those that are configured, then even points without repetition.

    Ends when the space has no more settings.
    """
    first = tuple(field_of(node, d.keys, d.field) for d in dimensions)
    yield first
    seen = {json.dumps(first, default=str)}
    unlucky = 0
    for shares in halton([d.field for d in dimensions], seed) if dimensions else ():
        point = tuple(d.options.at(s) for d, s in zip(dimensions, shares, strict=True))
        text = json.dumps(point, default=str)
        if text in seen:
            unlucky += 1
            if unlucky > 100 + 10 * len(seen):  # a space of few settings: all have been met
                return
            continue
        unlucky = 0
        seen.add(text)
        yield point


def _leaves(stated: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    for key, value in stated.items():
        keys = (*above, *str(key).split("."))
        if isinstance(value, Mapping) and value and not set(value) & set(WORDS):
            yield from _leaves(value, keys)
        else:
            yield keys, value


def _options(stated: Any, configured: Any, path: str) -> Span | Choices:
    if isinstance(stated, list | tuple) and stated:
        if len({json.dumps(v, default=str) for v in stated}) < len(stated):
            raise ConfigError(f"{path}: a value is named twice in {list(stated)}.")
        return Choices(tuple(stated))
    if not isinstance(stated, Mapping) or not stated:
        raise ConfigError(f"{path}: expected {EXAMPLE}, got {stated!r}.")
    for word in stated:
        if word not in WORDS:
            near = did_you_mean(str(word), WORDS)
            raise ConfigError(f"{path}.{word}: unknown word.{near} Known: {', '.join(WORDS)}.")
    given = {word: _number(stated[word], f"{path}.{word}") for word in stated if word != "log"}
    log = stated.get("log")
    if log not in (None, True, False):
        raise ConfigError(f"{path}.log: expected true or false, got {log!r}.")
    # A given interval is taken before `around`: overrides of a mapping are merged into it.
    if "low" not in given and "high" not in given and "around" in given:
        return _around(given["around"], configured, log is not False, path)
    if not {"low", "high"} <= set(given):
        raise ConfigError(f"{path}: an interval needs low and high, as in {EXAMPLE}.")
    whole = all(type(given[word]) is int for word in ("low", "high"))
    return _span(given["low"], given["high"], bool(log), whole, path)


def _around(factor: float, configured: Any, log: bool, path: str) -> Span:
    if factor <= 1:
        raise ConfigError(f"{path}.around: expected a factor above 1, got {factor}.")
    if isinstance(configured, bool) or not isinstance(configured, int | float) or configured <= 0:
        raise ConfigError(
            f"{path}.around: the configured value is {configured!r}, and a factor goes around a "
            "number above 0; give low and high."
        )
    whole = type(configured) is int
    low, high = configured / factor, configured * factor
    return _span(max(1, round(low)) if whole else low, round(high) if whole else high,
                 log, whole, path)  # fmt: skip


def _span(low: float, high: float, log: bool, whole: bool, path: str) -> Span:
    if not low < high:
        raise ConfigError(f"{path}: low must be below high, got {low} and {high}.")
    if log and low <= 0:
        raise ConfigError(f"{path}: log needs a low above 0, got {low}.")
    return Span(low, high, log, whole)


def _number(value: Any, path: str) -> float:
    if isinstance(value, str):  # YAML reads 1e-5, without a dot, as text
        try:
            value = float(value)
        except ValueError:
            raise ConfigError(f"{path}: expected a number, got {value!r}.") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{path}: expected a number, got {value!r}.")
    return value
