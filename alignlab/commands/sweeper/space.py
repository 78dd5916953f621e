"""From swept overrides to Optuna's distributions: what a trial may choose, and its overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.overrides import spelled_out

if TYPE_CHECKING:
    from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
    from optuna.distributions import BaseDistribution

TAGS = ("log",)


@dataclass(frozen=True)
class Space:
    """Overrides of every trial, and by key what one may choose."""

    fixed: tuple[str, ...]
    axes: Mapping[str, BaseDistribution]

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Overrides of the job that has these settings."""
        return [*self.fixed, *(f"{key}={params[key]}" for key in self.axes)]

    def described(self) -> dict[str, str]:
        """Text of every axis: two spaces of equal texts are the same one."""
        return {key: repr(axis) for key, axis in self.axes.items()}


def space_of(overrides: Sequence[Override]) -> Space:
    """Read the search space of a sweep; of a key that is given twice the later one counts.

    ``range(a,b)`` ends before ``b``, as everywhere in Hydra (its plugin for Optuna includes it);
    ``interval(a,b)`` has real numbers, ``int(interval(a,b))`` whole ones with both ends.

    Raises:
        ConfigError: nothing to choose from, an unknown tag, or logarithms of what is not positive.
    """
    stated = {override.get_key_element(): override for override in overrides}
    axes = {key: _axis(o) for key, o in stated.items() if o.is_sweep_override()}
    if not axes:
        raise ConfigError(
            "hydra/sweeper=optuna: no override is swept, so there is nothing to choose. Give "
            "KEY=interval(0.01,1), KEY=range(1,5) or KEY=a,b."
        )
    return Space(tuple(spelled_out(o)[0] for k, o in stated.items() if k not in axes), axes)


def _axis(override: Override) -> BaseDistribution:
    line = override.input_line or ""
    tags: set[str] = getattr(override.value(), "tags", set())
    if odd := sorted(tags - set(TAGS)):
        raise ConfigError(f"'{line}': the tag '{odd[0]}' means nothing here; known: log.")
    log = "log" in tags
    try:
        if override.is_interval_sweep():
            return _interval(override.value(), log)  # type: ignore[arg-type]
        if override.is_range_sweep():
            return _range(override.value(), log)  # type: ignore[arg-type]
        if log:
            raise ValueError("a list of values has no logarithm; tag an interval or a range")
        return _choice(override)
    except ValueError as error:
        raise ConfigError(f"'{line}': {str(error).rstrip('.')}.") from None


def _interval(sweep: IntervalSweep, log: bool) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _range(sweep: RangeSweep, log: bool) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    found = sorted(sweep.range())
    if not found:
        raise ValueError("the range holds no number")
    step = abs(sweep.step)
    if all(isinstance(number, int) for number in found):
        return IntDistribution(found[0], found[-1], log=log, step=int(step))
    return FloatDistribution(found[0], found[-1], log=log, step=float(step))


def _choice(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import Transformer
    from optuna.distributions import CategoricalDistribution

    def kept(value: Any) -> Any:  # numbers as such; anything else as it is written in an override
        return value if type(value) in (bool, int, float) else Transformer.str(value)

    found: list[Any] = list(override.sweep_iterator(kept))
    if not found:
        raise ValueError("matches nothing")
    if len({repr(value) for value in found}) < len(found):
        raise ValueError("a value is named twice")
    return CategoricalDistribution(found)
