"""What a sweep with Optuna is asked to do: the fields of ``conf/hydra/sweeper/optuna.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from alignlab import typed
from alignlab.errors import ConfigError
from alignlab.spec import Spec
from alignlab.typed import Range

Direction = Literal["maximize", "minimize"]
PATH = "hydra.sweeper"


@dataclass(frozen=True)
class Objective:
    """One number of a trial: a metric in the record of one of its stages."""

    stage: str
    metric: str
    direction: Direction

    @property
    def name(self) -> str:
        """As it was written: ``STAGE/METRIC``."""
        return f"{self.stage}/{self.metric}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How trials are made, scored and kept."""

    objective: str | tuple[str, ...]
    direction: Direction | tuple[Direction, ...]
    n_trials: Annotated[int, Range(min=1)]
    n_jobs: Annotated[int, Range(min=1)]
    seeds: tuple[int, ...] | None
    split: Literal["validation", "test"]
    storage: str | None
    study_name: str | None
    max_failure_rate: Annotated[float, Range(min=0, max=1)]
    sampler: Spec

    def __post_init__(self) -> None:
        """Refuse objectives without a stage or a direction, and seeds that repeat."""
        names, directions = _many(self.objective), _many(self.direction)
        if len(names) != len(directions) or not names:
            raise ConfigError(
                f"direction: {len(directions)} for {len(names)} objectives; each has one."
            )
        for name in names:
            stage, slash, metric = name.partition("/")
            if not (stage and slash and metric):
                raise ConfigError(
                    f"objective: '{name}' should be STAGE/METRIC, as evaluate/gold: a number that "
                    "the stage reports."
                )
        if len(set(names)) < len(names):
            raise ConfigError(f"objective: one is named twice in {', '.join(names)}.")
        if self.seeds is not None and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ConfigError(f"seeds: expected different seeds, got {list(self.seeds)}.")

    @property
    def objectives(self) -> list[Objective]:
        """What is optimised, in order."""
        pairs = zip(_many(self.objective), _many(self.direction), strict=True)
        split = ((*name.partition("/"), direction) for name, direction in pairs)
        return [Objective(stage, metric, direction) for stage, _, metric, direction in split]


def settings_of(sweeper: Mapping[str, Any]) -> Settings:
    """Read the configuration of a sweeper as Hydra composed it.

    Raises:
        ConfigError: another sweeper than Optuna, or fields that say what cannot be.
    """
    target = sweeper.get(typed.TARGET)
    if target is not None:
        raise ConfigError(
            f"{PATH}: {target} is a plugin of Hydra, and jobs are not run by Hydra here; "
            "hydra/sweeper=optuna is the one that is known."
        )
    return typed.build(Settings, sweeper, PATH)


def _many(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
