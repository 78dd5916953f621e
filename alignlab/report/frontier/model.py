"""What the reward–KL plane of a study consists of: points, curves, comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alignlab.report.analysis import Score
from alignlab.report.frontier.sampled import Sampled
from alignlab.report.statistics import Band, Interval, Overoptimisation


@dataclass(frozen=True)
class Point:
    """One method in the plane; ``kl`` of best-of-n is its analytic bound."""

    score: Score
    kl: Interval
    gold: Interval
    gain: Interval | None  # gold over the baseline, paired
    proxy_gain: Interval | None
    seeds: Mapping[int, tuple[float, float]]  # training seed → (KL, gold)


@dataclass(frozen=True)
class Curve:
    """A family in the plane: its points by KL, and what was fitted through them."""

    family: str
    control: bool  # best-of-n
    points: tuple[Point, ...]
    drawn: Sampled
    line: Band | None  # gold at equal KL against √KL; None for fewer than two points
    fit: Overoptimisation | None
    proxy_fit: Overoptimisation | None
    misfit: float  # χ² per degree of freedom of the fit to gold
    past: Interval | None  # fitted gold at the furthest point minus that at the peak
    proxy_past: Interval | None  # the same of proxy, from the peak of gold on

    @property
    def lead(self) -> str:
        """Id of the method whose look the family has."""
        return self.points[0].score.method.id

    @property
    def furthest(self) -> Point:
        """The point of largest KL."""
        return self.points[-1]

    @property
    def swept(self) -> bool:
        """Whether there are enough points to speak of a curve."""
        return self.line is not None and not self.control


@dataclass(frozen=True)
class Area:
    """A family's mean gold reward over √KL from 0 to √top, and its gold at some KLs and budgets."""

    curve: Curve
    mean: Interval | None  # None for a sweep that ends before ``top``
    at: tuple[Interval | None, ...]  # gold at equal KL, per budget; None beyond its reach
    best: tuple[Interval, ...]  # best gold at KL ≤ b, per budget, without its optimism
    optimism: tuple[float, ...]


@dataclass(frozen=True)
class AreaPair:
    """Family ``a`` against ``b``: paired over seeds and prompts."""

    a: str
    b: str
    mean: Interval
    p_value: float
    holm: float
    at: tuple[Interval, ...]


@dataclass(frozen=True)
class Beside:
    """A family of one setting against the curve of another at the KL of that setting."""

    single: Point
    curve: str
    there: Interval  # gold of the curve at that KL
    difference: Interval  # the setting's gold minus that


@dataclass(frozen=True)
class Plane:
    """The reward–KL plane of a study."""

    curves: tuple[Curve, ...]
    baseline: Score | None
    reference_gold: float | None  # gold reward of the data's own answers
    top: float | None  # nats up to which families are compared; None without two sweeps
    budgets: tuple[float, ...]
    areas: tuple[Area, ...]  # largest mean first
    pairs: tuple[AreaPair, ...]
    short: tuple[str, ...]  # swept families that do not reach ``top``
    beside: tuple[Beside, ...]
