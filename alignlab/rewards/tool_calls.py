"""Rewards for tool calls: whether a call is a valid one, and whether it is the right one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from alignlab.data.call_text import Call, read
from alignlab.data.tool_schema import declared, fits
from alignlab.errors import DataError
from alignlab.rewards.reward import Meta, Texts, fingerprint


@dataclass(frozen=True, kw_only=True)
class ToolCallFormat:
    """Whether the calls of a completion can be executed: they parse, are declared, and fit.

    *all*: 1 if every call is JSON, names a function among the prompt's tools and has arguments
    that fit its schema, else 0. *share*: the mean of the three questions, each asked of all calls.
    A completion without calls scores 1 where the data's own answer has none either, else 0.
    """

    credit: Literal["all", "share"]

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "tool_call_format"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion in [0, 1], float32 (R,).

        Raises:
            DataError: a prompt without tools.
        """
        pairs = zip(completions, meta, strict=True)
        return np.array([self._one(text, known) for text, known in pairs], dtype=np.float32)

    def _one(self, text: str, known: Mapping[str, Any]) -> float:
        functions = declared(tools_of(known))
        written = read(text)
        if not written.tried:
            return float(known.get("calls") == [])
        if written.error:
            return 0.0
        named = [functions.get(call.name) for call in written.calls]
        pairs = zip(written.calls, named, strict=True)
        try:
            fitting = all(one is not None and fits(call, one) for call, one in pairs)
        except DataError as error:
            raise DataError(f"{known.get('place', 'a prompt')}: {error}") from error
        passed = [True, None not in named, fitting]
        return float(all(passed)) if self.credit == "all" else sum(passed) / len(passed)

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)


@dataclass(frozen=True, kw_only=True)
class ToolCallMatch:
    """How far the calls of a completion are the reference's, in whatever order they stand.

    *exact*: 1 if they are the same calls, else 0. *partial*: R_max / S_max of ToolRL (Qian et al.
    2025, arXiv:2504.13958, §3.3; there as 6 · R_max / S_max − 3): the share of equal names, for
    each matched call the share of equal argument names and the number of equal values, over what a
    perfect answer has; calls are matched so that the sum is largest. Without calls on either side
    it is 1, with calls on one side 0.
    """

    calls: str  # key of meta with the reference calls; `calls` are those of the data's own answer
    credit: Literal["exact", "partial"]

    @property
    def name(self) -> str:
        """Short name for tables."""
        return "tool_call_match"

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion in [0, 1], float32 (R,).

        Raises:
            DataError: a prompt without reference calls.
        """
        measure = exact if self.credit == "exact" else partial
        scores = []
        for text, known in zip(completions, meta, strict=True):
            written = read(text)
            wanted = self._reference(known)
            scores.append(0.0 if written.error else measure(wanted, written.calls))
        return np.array(scores, dtype=np.float32)

    def _reference(self, known: Mapping[str, Any]) -> tuple[Call, ...]:
        value = known.get(self.calls)
        value = json.loads(value) if isinstance(value, str) and value.lstrip()[:1] == "[" else value
        found = read(json.dumps(value)) if isinstance(value, list) and value else None
        if value == []:
            return ()
        if found is None or not found.calls:
            raise DataError(
                f"The data give no reference calls under '{self.calls}' (fields: "
                f"{', '.join(sorted(known)) or 'none'}). They are the calls of a row's own answer, "
                "or a field of JSON calls that reward.calls names."
            )
        return found.calls

    def fingerprint(self) -> str:
        """Hash of the fields."""
        return fingerprint(self, 1)


def tools_of(known: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the tools that a prompt declares.

    Raises:
        DataError: it declares none.
    """
    tools: Sequence[Mapping[str, Any]] = known.get("tools") or ()
    if not tools:
        raise DataError(
            f"The reward tool_call_format needs the tools of every prompt, and {known.get('place')}"
            " has none. Give rows a field 'tools', or read those in the text with "
            "data.calls=parsed."
        )
    return tools


def exact(wanted: Sequence[Call], made: Sequence[Call]) -> float:
    """1 if both are the same calls, as often each, else 0."""
    return float(Counter(map(_spelt, wanted)) == Counter(map(_spelt, made)))


def partial(wanted: Sequence[Call], made: Sequence[Call]) -> float:
    """R_max / S_max of ToolRL's correctness reward, in [0, 1]; see `ToolCallMatch`."""
    from scipy.optimize import linear_sum_assignment

    if not wanted or not made:
        return float(not wanted and not made)
    names = [Counter(call.name for call in calls) for calls in (wanted, made)]
    alike = (names[0] & names[1]).total() / (names[0] | names[1]).total()
    gains = np.array([[_gain(one, other) for other in made] for one in wanted])
    rows, columns = linear_sum_assignment(gains, maximize=True)
    most = 1 + len(wanted) + sum(len(call.arguments) for call in wanted)
    return float((alike + gains[rows, columns].sum()) / most)


def _gain(wanted: Call, made: Call) -> float:
    """Share of argument names that both have, and number of arguments of equal value."""
    if wanted.name != made.name:
        return 0.0
    both = wanted.arguments.keys() & made.arguments.keys()
    either = wanted.arguments.keys() | made.arguments.keys()
    equal = sum(_same(wanted.arguments[key]) == _same(made.arguments[key]) for key in both)
    return (len(both) / len(either) if either else 1.0) + equal


def _spelt(call: Call) -> tuple[str, str]:
    return call.name, _same(dict(call.arguments))


def _same(value: Any) -> str:
    """A value's spelling in which equal JSON values are equal: 1 and 1.0, not 1 and true."""
    return json.dumps(_plain(value), sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value
