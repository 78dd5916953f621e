"""What a benchmark task is: it asks a policy about items and gives one number for each.

A number belongs to an *item* (a prompt, a document), and the items are the same for every policy,
so two policies are compared item by item. An item may have several numbers (each instruction of a
prompt); they stay together when items are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from alignlab.evaluation.policy import Policy

Better = Literal["higher", "lower"] | None  # None: a property, neither good nor bad by itself


@dataclass(frozen=True)
class Row:
    """One number about one item. ``weight`` is its share in the metric's mean: Σ w v / Σ w."""

    metric: str
    item: str
    value: float
    weight: float = 1.0
    part: str = ""  # name of a task within the task; its rows are reported apart
    prompt: str | None = None
    completion: str | None = None

    def to_mapping(self, task: str) -> dict[str, Any]:
        """Write the row as ``samples.jsonl`` keeps it; what says nothing is left out."""
        row: dict[str, Any] = {
            "task": f"{task}:{self.part}" if self.part else task,
            "metric": self.metric,
            "item": self.item,
            "value": float(self.value),
        }
        if self.weight != 1.0:
            row["weight"] = float(self.weight)
        named = {"prompt": self.prompt, "completion": self.completion}
        return row | {key: text for key, text in named.items() if text is not None}


@dataclass(frozen=True)
class Result:
    """Rows of one task, which way each metric is better, and what a reader must know beside."""

    rows: Sequence[Row]
    better: Mapping[str, Better]  # metric, or "part/metric" where parts differ
    notes: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def direction(self, row: Row) -> Better:
        """Which way the metric of ``row`` is better."""
        return self.better.get(f"{row.part}/{row.metric}", self.better.get(row.metric))


class Task(Protocol):
    """A frozen dataclass that a configuration states (conf/task)."""

    @property
    def tokens(self) -> int:
        """About how many tokens pass through the model; 0 where nothing is known of it."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the rows, but for the policy: data, code version."""
        ...

    def run(self, policy: Policy) -> Result:
        """Ask the policy; rows in the order of the items."""
        ...


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Σ w v / Σ w; NaN without values."""
    shares = [1.0] * len(values) if weights is None else weights
    total = sum(shares)
    if not total:
        return float("nan")
    return sum(v * w for v, w in zip(values, shares, strict=True)) / total
