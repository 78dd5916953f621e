"""Steps on what is known about rows rather than on their words: verdicts, labels, numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from alignlab.data.group import PromptGroup
from alignlab.data.quality.step import Reason, Step, StepEffect, effect, sieve
from alignlab.errors import DataError, did_you_mean
from alignlab.typed import Range


@dataclass(frozen=True, kw_only=True)
class Margin(Step):
    """Drops rows whose best and worst completion are less than ``least`` apart, so also all ties.

    Rankings are measured in ranks and thumbs in 0 and 1. Rows that judge fewer than two completions
    have no margin and pass.
    """

    least: Annotated[float, Range(min=0, min_open=True)]
    field: str | None  # a list of one number per completion in the row's meta; null = the verdict

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows whose margin is large enough."""

        def complaint(group: PromptGroup) -> Reason | None:
            values = self._values(group)
            if len(values) < 2:
                return None
            margin = max(values) - min(values)
            if margin == 0:
                return Reason("tie")
            near = margin < self.least
            return Reason(f"margin below {self.least:g}", f"{margin:.3g}") if near else None

        return sieve(self.name, groups, complaint)

    def _values(self, group: PromptGroup) -> Sequence[float]:
        if self.field is None:
            return group.verdict.utilities()
        values = _field(group, self.field)
        if not isinstance(values, (list, tuple)) or len(values) != len(group.completions):
            raise DataError(
                f"{_where(group)}: '{self.field}' must be a list of one number for each of the "
                f"{len(group.completions)} completions, not {values!r}."
            )
        return [_number(group, self.field, value) for value in values]


@dataclass(frozen=True, kw_only=True)
class Bounds(Step):
    """Drops rows whose number in a field of the data is out of bounds.

    For example the agreement of annotators, a classifier's score or a number of votes.
    """

    field: str
    least: float | None  # null = no bound
    most: float | None
    missing: Literal["keep", "drop"]  # rows that do not have the field

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows whose number is in bounds; DataError when no row has the field."""
        rows = list(groups)
        if rows and not any(row.meta.get(self.field) is not None for row in rows):
            hint = did_you_mean(self.field, rows[0].meta)
            known = ", ".join(rows[0].meta) or "none"
            raise DataError(f"No row has the field '{self.field}'; there are {known}.{hint}")
        return sieve(self.name, rows, self._complaint)

    def _complaint(self, group: PromptGroup) -> Reason | None:
        value = group.meta.get(self.field)
        if value is None:
            return Reason(f"no {self.field}") if self.missing == "drop" else None
        number = _number(group, self.field, value)
        if self.least is not None and number < self.least:
            return Reason(f"{self.field} below {self.least:g}", f"{number:g}")
        if self.most is not None and number > self.most:
            return Reason(f"{self.field} above {self.most:g}", f"{number:g}")
        return None


@dataclass(frozen=True, kw_only=True)
class Balance(Step):
    """Keeps at most ``ratio`` rows of a label for every row of the rarest one, the first in order.

    The label is the thumb of a row with one completion, or a field of the data.
    """

    field: str | None  # null = the thumb
    ratio: Annotated[float, Range(min=1)]

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows up to each label's share; one label alone cannot be balanced."""
        rows = list(groups)
        labels = [self._label(row) for row in rows]
        counts = Counter(labels)
        if rows and len(counts) < 2:
            raise DataError(f"All {len(rows)} rows have the label {labels[0]}: nothing to balance.")
        most = math.floor(self.ratio * min(counts.values(), default=0) + 1e-9)
        seen: Counter[str] = Counter()
        kept, dropped = [], []
        for row, label in zip(rows, labels, strict=True):
            seen[label] += 1
            if seen[label] <= most:
                kept.append(row)
            else:
                dropped.append((row, Reason(f"more than {most} rows of the label {label}")))
        numbers = {f"label {label}": float(counts[label]) for label in sorted(counts)}
        return kept, effect(self.name, len(rows), len(kept), dropped, numbers)

    def _label(self, group: PromptGroup) -> str:
        if self.field is not None:
            return str(_field(group, self.field))
        if len(group.verdict.thumbs) != 1:
            raise DataError(
                f"{_where(group)}: not one completion with a thumb but a verdict of kind "
                f"'{group.verdict.kind}'. Name the field that holds the label: field=NAME."
            )
        return str(group.verdict.thumbs[0])


@dataclass(frozen=True, kw_only=True)
class Mix(Step):
    """Examples-proportional mixing with a maximum: no source gives more than its cap.

    Of source m with e_m rows min(e_m, K_m) count. With ``total`` rows in all, source m gives
    total · min(e_m, K_m) / Σ_n min(e_n, K_n) of them, as in T5 (Raffel et al. 2020,
    arXiv:1910.10683, section 3.5.2) and FLAN (Wei et al. 2021, arXiv:2109.01652, K = 3000). No row
    is used twice. The first rows of a source are kept.
    """

    field: str  # field of the data that names the source or the task
    most: Annotated[int | None, Range(min=1)]  # K of every source without a cap of its own
    caps: dict[str, int]  # source -> its own K
    total: Annotated[int | None, Range(min=1)]  # rows in all; null = everything under the caps

    def __post_init__(self) -> None:
        if negative := [name for name, cap in self.caps.items() if cap < 0]:
            raise DataError(f"caps.{negative[0]} must not be negative.")

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return each source's first rows, in the order of the rows."""
        rows = list(groups)
        sources = [str(_field(row, self.field)) for row in rows]
        counts = Counter(sources)
        for name in self.caps:
            if counts and name not in counts:
                known = ", ".join(sorted(counts))
                hint = did_you_mean(name, counts)
                raise DataError(f"caps.{name}: the field '{self.field}' holds {known}.{hint}")
        allowed = self._allowed(counts)
        seen: Counter[str] = Counter()
        kept, dropped = [], []
        for row, source in zip(rows, sources, strict=True):
            seen[source] += 1
            if seen[source] <= allowed[source]:
                kept.append(row)
            else:
                dropped.append((row, Reason(f"more than {allowed[source]} rows of {source}")))
        numbers = {f"kept of {name}": float(min(counts[name], allowed[name])) for name in counts}
        return kept, effect(self.name, len(rows), len(kept), dropped, numbers)

    def _allowed(self, counts: Counter[str]) -> dict[str, int]:
        caps = {name: self.caps.get(name, self.most) for name in counts}
        capped = {
            name: count if caps[name] is None else min(count, int(caps[name] or 0))
            for name, count in counts.items()
        }
        if self.total is None or self.total >= sum(capped.values()):
            return capped
        return apportion(self.total, capped)


def apportion(total: int, weights: dict[str, int]) -> dict[str, int]:
    """Divide ``total`` in proportion to the weights: largest remainders, names break ties.

    No share is larger than its weight as long as ``total`` is at most their sum.
    """
    everything = sum(weights.values())
    if not everything:
        return dict.fromkeys(weights, 0)
    shares = {name: total * weight // everything for name, weight in weights.items()}
    left = total - sum(shares.values())
    rest = sorted(weights, key=lambda name: (-(total * weights[name] % everything), name))
    for name in rest[:left]:
        shares[name] += 1
    return shares


def field_number(group: PromptGroup, field: str) -> float:
    """Return the number in a field of the row; DataError where it is missing or no number."""
    return _number(group, field, _field(group, field))


def _field(group: PromptGroup, field: str) -> Any:
    value = group.meta.get(field)
    if value is None:
        known = ", ".join(group.meta) or "none"
        hint = did_you_mean(field, group.meta)
        raise DataError(f"{_where(group)}: no field '{field}'; there are {known}.{hint}")
    return value


def _number(group: PromptGroup, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise DataError(f"{_where(group)}: '{field}' must be a number, not {value!r}.")
    return float(value)


def _where(group: PromptGroup) -> str:
    return str(group.meta.get("place") or group.id or "a row")
