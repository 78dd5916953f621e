"""The trials of a sweep in Optuna's storage: asked for in batches, told what became of them.

The storage remembers everything, so the same command again goes on where the last one ended. A
trial that a command left behind when it was stopped or killed keeps its number and settings; its
stages are resumed like those of any run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.commands.sweeper.settings import PATH, Settings
from alignlab.commands.sweeper.space import Space
from alignlab.errors import ConfigError
from alignlab.spec import function

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.journal"
State = Literal["done", "diverged", "failed", "running"]


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    number: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What became of a trial: its values in the order of the objectives, or why it has none."""

    state: State
    values: tuple[float, ...] = ()
    reason: str = ""


class Trials:
    """The trials of one sweep.

    Of Optuna's states a trial that diverged is *pruned*, which samplers learn from (nothing good
    is there), and one that failed is *failed*, which they leave out (it says nothing).
    """

    def __init__(
        self,
        study: Study,
        settings: Settings,
        space: Space,
        owner: str,
        alive: Callable[[str], bool],
    ) -> None:
        self._study, self._settings, self._space = study, settings, space
        self._owner, self._alive = owner, alive
        self._given: set[int] = set()

    def batch(self) -> list[Trial]:
        """Trials to run together: those that were left behind, then new ones; none at the end."""
        known = self._study.get_trials(deepcopy=False)
        found = [Trial(t.number, t.params) for t in known if self._left(t)][: self._settings.n_jobs]
        new = min(self._settings.n_jobs - len(found), self._settings.n_trials - len(known))
        found += [self._new(len(known) + i) for i in range(new)]
        self._given |= {trial.number for trial in found}
        return found

    def tell(self, number: int, verdict: Verdict) -> None:
        """Store what became of a trial."""
        from optuna.trial import TrialState

        states = {"done": TrialState.COMPLETE, "diverged": TrialState.PRUNED}
        values = list(verdict.values) if verdict.state == "done" else None
        state = states.get(verdict.state, TrialState.FAIL)
        # Another command may have taken it over as well, and have been quicker.
        self._study.tell(number, values, state, skip_if_finished=True)

    def rows(self) -> list[dict[str, Any]]:
        """Every trial as plain data, in order."""
        return [
            {
                "number": trial.number,
                "state": _state(trial),
                "params": dict(trial.params),
                "values": list(trial.values) if trial.values and _state(trial) == "done" else None,
            }
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def best(self) -> list[int]:
        """Numbers of the best trials: one, or of several objectives the Pareto front."""
        if not any(row["state"] == "done" for row in self.rows()):
            return []
        if len(self._settings.objectives) == 1:
            return [self._study.best_trial.number]
        return sorted(trial.number for trial in self._study.best_trials)

    def _new(self, number: int) -> Trial:
        self._study.sampler = function(self._settings.sampler)(number)
        trial = self._study.ask(dict(self._space.axes))
        trial.set_user_attr("owner", self._owner)
        return Trial(trial.number, trial.params)

    def _left(self, trial: FrozenTrial) -> bool:
        """Whether a trial is unfinished and the command that asked for it has ended."""
        if _state(trial) != "running" or trial.number in self._given:
            return False
        return set(trial.params) == set(self._space.axes) and not self._alive(
            trial.user_attrs.get("owner", "")
        )


def open_trials(
    settings: Settings,
    space: Space,
    name: str,
    folder: Path,
    owner: str,
    alive: Callable[[str], bool],
    storage: BaseStorage | None = None,
) -> Trials:
    """Open the study ``name`` in its storage, or begin it; ``folder`` is where its files are.

    Raises:
        ConfigError: Optuna is not installed, or the storage holds a study of that name which asks
            something else.
    """
    study = optuna().create_study(
        storage=storage or storage_of(settings.storage, folder),
        study_name=settings.study_name or name,
        directions=[o.direction for o in settings.objectives],
        load_if_exists=True,
    )
    asked = {
        "objective": {o.name: o.direction for o in settings.objectives},
        "overrides": list(space.fixed),
        "space": space.described(),
        "seeds": None if settings.seeds is None else list(settings.seeds),
        "split": settings.split,
    }
    before = study.user_attrs.get("alignlab")
    if before is None:
        study.set_user_attr("alignlab", asked)
    elif odd := [key for key in asked if asked[key] != before.get(key)]:
        raise ConfigError(
            f"{PATH}.study_name: the storage holds a study '{study.study_name}' with another "
            f"{' and another '.join(odd)} ({_told(before, odd)}), and their trials do not belong "
            "together. Give this one a name of its own."
        )
    return Trials(study, settings, space, owner, alive)


def storage_of(stated: str | None, folder: Path) -> BaseStorage:
    """Optuna's storage: a database for a URL, else a journal file, which any file system can hold.

    Raises:
        ConfigError: a database that cannot be opened.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if stated is not None and "://" in stated:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return RDBStorage(stated)
        except (SQLAlchemyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{PATH}.storage: cannot open '{stated}': {reason}.") from None
    file = folder / JOURNAL if stated is None else Path(stated).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))


def optuna() -> Any:
    """Import Optuna, quiet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna as found
    except ModuleNotFoundError:
        raise ConfigError(
            "hydra/sweeper=optuna needs the package 'optuna', which is not installed: "
            "pip install 'alignlab[optuna]'."
        ) from None
    found.logging.set_verbosity(found.logging.WARNING)
    return found


def _state(trial: FrozenTrial) -> State:
    from optuna.trial import TrialState

    known: dict[TrialState, State] = {
        TrialState.COMPLETE: "done",
        TrialState.PRUNED: "diverged",
        TrialState.FAIL: "failed",
    }
    return known.get(trial.state, "running")


def _told(before: Mapping[str, Any], odd: Sequence[str]) -> str:
    return "; ".join(f"{key}: {before.get(key)}" for key in odd)
