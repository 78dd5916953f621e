"""The same measure of held-out rows and of rows trained on: the generalisation gap, as it grows.

The loss that a training step logs is no yardstick for it: it has dropout, noise and smoothed
labels, and is of weights that have moved since. Here the same weights measure both sides alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.engine.stopping import EarlyStopping

Measure = Callable[[Sequence["TokenGroup"]], Mapping[str, float]]

COMPARED = ("nll", "loss", "accuracy", "margin")  # metrics that have a side of the training rows
TRAIN, GAP = "train_", "_gap"


def both_sides(
    measure: Measure,
    held_out: Sequence[TokenGroup],
    training: Sequence[TokenGroup],
    rows: int | None,
    seed: int,
) -> Callable[[], dict[str, float]]:
    """Measure held-out rows and, with ``rows``, so many rows of the training ones beside them.

    Those are the same at every evaluation. Of every metric in `COMPARED` there is then also
    ``train_<metric>``, and ``<metric>_gap``: held-out minus trained on.
    """
    sample = drawn(training, rows, seed)
    if not sample:
        return lambda: dict(measure(held_out))

    def evaluate() -> dict[str, float]:
        found, own = dict(measure(held_out)), measure(sample)
        shared = [name for name in COMPARED if name in found and name in own]
        return {
            **found,
            **{f"{TRAIN}{name}": own[name] for name in shared},
            **{f"{name}{GAP}": found[name] - own[name] for name in shared},
        }

    return evaluate


def drawn(groups: Sequence[TokenGroup], rows: int | None, seed: int) -> list[TokenGroup]:
    """At most ``rows`` of the groups (None = none), drawn by the seed, in the order of the data."""
    import numpy as np

    if rows is None:
        return []
    source, count = np.random.default_rng([seed, len(groups)]), min(rows, len(groups))
    places = source.choice(len(groups), count, replace=False)
    return [groups[int(place)] for place in sorted(places)]


def summary_of(measured: Mapping[str, float]) -> dict[str, float]:
    """What was measured, as a record's summary names it: held-out values as ``validation_…``."""

    def named(name: str) -> str:
        apart = name.startswith(TRAIN) or name.endswith(GAP)
        return name if apart else f"validation_{name}"

    return {named(name): value for name, value in measured.items()}


def require_stopping(
    rule: EarlyStopping | None, every: int, metrics: Collection[str], gap_rows: int | None
) -> None:
    """Refuse early stopping that could not work, when the plan is made.

    ``metrics`` are those that the evaluations of the stage may give.

    Raises:
        ConfigError: there are no evaluations, or none gives the metric.
    """
    if rule is None:
        return
    if not every:
        raise ConfigError("early_stopping needs evaluations: set evaluate_every above 0.")
    sides = [n for m in COMPARED if m in metrics for n in (f"{TRAIN}{m}", f"{m}{GAP}")]
    known = [*sorted(metrics), *(sides if gap_rows else ())]
    if rule.metric in known:
        return
    if rule.metric in sides:
        raise ConfigError(
            f"early_stopping.metric is '{rule.metric}', which needs rows that were trained on to be"
            " measured: set gap_rows."
        )
    raise ConfigError(
        f"early_stopping.metric is '{rule.metric}', but the evaluations give {', '.join(known)}."
        + did_you_mean(rule.metric, known)
    )
