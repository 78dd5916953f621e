"""Whether the numbers of a study that was run twice agree, within what its seeds scatter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from alignlab.report.statistics import holm, t_p_value

ROUNDING = 1e-6  # relative; two numbers that are so near each other are the same number
OWN = 5  # seeds from which on a method's own scatter is known well enough
POWER = 0.8


@dataclass(frozen=True)
class Cell:
    """One number of one method, per seed: as recorded, and as it came out again."""

    method: str
    metric: str
    then: Mapping[int, float]
    now: Mapping[int, float]
    error_then: Mapping[int, float]  # standard error over prompts, where it is known
    error_now: Mapping[int, float]

    @property
    def seeds(self) -> list[int]:
        """Seeds that both sides have."""
        return sorted(set(self.then) & set(self.now))

    @property
    def finite(self) -> list[int]:
        """Seeds with a number on both sides."""
        return [s for s in self.seeds if math.isfinite(self.then[s]) and math.isfinite(self.now[s])]

    @property
    def lost(self) -> bool:
        """Whether a seed has a number on one side and none on the other."""
        return any(math.isfinite(self.then[s]) != math.isfinite(self.now[s]) for s in self.seeds)


@dataclass(frozen=True)
class Agreement:
    """The difference of one number, and whether chance explains it."""

    method: str
    metric: str
    seeds: int
    then: float  # means over the shared seeds
    now: float
    error: float  # √(σ²_then + σ²_now) of the two means
    freedom: float  # degrees of freedom of the error; inf where it comes from prompts
    p: float
    holm: float  # p, adjusted over all numbers compared
    noticeable: float  # smallest true difference that would be noticed four times in five
    equal: bool  # the same in every seed, up to rounding

    @property
    def difference(self) -> float:
        """How much higher it is now."""
        return self.now - self.then


def agreements(cells: Sequence[Cell], level: float = 0.95) -> list[Agreement]:
    """Test every number for a difference between then and now.

    z = (mean_now − mean_then) / √(σ²_then + σ²_now), with σ² = s² / seeds on each side, against
    Student's t. s² is the variance of a method's seeds, then and now apart, with Welch's degrees
    of freedom; from fewer than five seeds it is pooled over all methods and both sides, because
    two or three numbers do not show their scatter. Where no method has two seeds, σ is the standard
    error over prompts, the only noise that is recorded; it does not hold the noise of training.
    Adjusted by Holm over all numbers. A number that agrees to rounding has p = 1,
    and one that is there on one side only has p = 0.
    """
    from scipy.special import stdtrit

    shared = [cell for cell in cells if cell.seeds]
    found = []
    for cell in shared:
        seeds = cell.finite or cell.seeds
        then, now = ([side[s] for s in seeds] for side in (cell.then, cell.now))
        error, freedom = _error(cell, [c for c in shared if c.metric == cell.metric])
        equal = all(_same(a, b) for a, b in zip(then, now, strict=True))
        mean_then, mean_now = statistics.fmean(then), statistics.fmean(now)
        same = equal or _same(mean_then, mean_now)
        p = 1.0 if same else t_p_value(mean_now - mean_then, error, freedom)
        p, equal = (0.0, False) if cell.lost else (p, equal)
        name, metric, count = cell.method, cell.metric, len(seeds)
        numbers = (mean_then, mean_now, error, freedom, p, p, 0.0)
        found.append(Agreement(name, metric, count, *numbers, equal=equal))
    if not found:
        return []
    adjusted = holm([each.p for each in found])
    tail = (1 - level) / 2 / len(found)  # of the strictest step
    known = NormalDist().inv_cdf(POWER)

    def quantile(freedom: float) -> float:
        normal = math.isinf(freedom)
        return -NormalDist().inv_cdf(tail) if normal else -float(stdtrit(max(freedom, 1.0), tail))

    return [
        replace(each, holm=p, noticeable=each.error * (quantile(each.freedom) + known))
        for each, p in zip(found, adjusted, strict=True)
    ]


def _error(cell: Cell, alike: Sequence[Cell]) -> tuple[float, float]:
    """Standard error of the difference of the two means, and its degrees of freedom."""
    count = len(cell.finite)
    if not count:
        return 0.0, math.inf
    if count >= OWN:
        parts = [statistics.variance([side[s] for s in cell.finite]) / count
                 for side in (cell.then, cell.now)]  # fmt: skip
        whole = sum(parts)
        welch = (
            whole**2 / sum(p**2 for p in parts) * (count - 1) if whole > 0 else 2.0 * (count - 1)
        )
        return math.sqrt(whole), welch
    squares, freedom = 0.0, 0
    for other in alike:
        if len(other.finite) > 1:
            for side in (other.then, other.now):
                values = [side[s] for s in other.finite]
                squares += statistics.variance(values) * (len(values) - 1)
                freedom += len(values) - 1
    if freedom:
        return math.sqrt(squares / freedom * 2 / count), float(freedom)
    sides = ((cell.error_then, cell.then), (cell.error_now, cell.now))
    parts = [sum(errors.get(s, 0.0) ** 2 for s in cell.finite) / count**2 for errors, _ in sides]
    return math.sqrt(sum(parts)), math.inf


def _same(left: float, right: float) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return math.isclose(left, right, rel_tol=ROUNDING, abs_tol=1e-12)
