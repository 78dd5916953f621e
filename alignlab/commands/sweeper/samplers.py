"""Optuna's samplers, made anew for every trial: what a trial proposes depends on its number.

A sampler that goes on drawing from one random stream proposes other points after a restart, and
one that is made again with the same seed proposes its first points again. Here the seed is a hash
of the configured one and the number of the trial: a study that was stopped and continued proposes
what it would have proposed undisturbed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.typed import Range

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

Count = Annotated[int, Range(min=1)]
Seed = Annotated[int, Range(min=0)]


def tpe(
    number: int, /, *, seed: Seed, n_startup_trials: Count, multivariate: bool, constant_liar: bool
) -> BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011)."""
    from optuna.samplers import TPESampler

    return _made(
        TPESampler,
        seed=_seed(seed, number),
        n_startup_trials=n_startup_trials,
        multivariate=multivariate,
        constant_liar=constant_liar,
    )


def random(number: int, /, *, seed: Seed) -> BaseSampler:
    """Independent uniform points."""
    from optuna.samplers import RandomSampler

    return _made(RandomSampler, seed=_seed(seed, number))


def cmaes(
    number: int, /, *, seed: Seed, n_startup_trials: Count, sigma0: float | None
) -> BaseSampler:
    """Covariance matrix adaptation (Hansen and Ostermeier 2001); its state is in the storage."""
    from optuna.samplers import CmaEsSampler

    return _made(
        CmaEsSampler,
        seed=_seed(seed, number),
        n_startup_trials=n_startup_trials,
        sigma0=sigma0,
        warn_independent_sampling=False,
    )


def nsgaii(
    number: int, /, *, seed: Seed, population_size: Annotated[int, Range(min=2)]
) -> BaseSampler:
    """Non-dominated sorting genetic algorithm (Deb et al. 2002)."""
    from optuna.samplers import NSGAIISampler

    return _made(NSGAIISampler, seed=_seed(seed, number), population_size=population_size)


def qmc(number: int, /, *, seed: Seed) -> BaseSampler:
    """Scrambled Sobol points; their scrambling is one for all trials, or they would not be even."""
    from optuna.samplers import QMCSampler

    return _made(
        QMCSampler,
        seed=seed,
        scramble=True,
        independent_sampler=random(number, seed=seed),
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    )


def gp(number: int, /, *, seed: Seed, n_startup_trials: Count) -> BaseSampler:
    """Gaussian process; results are noisy, since they are means over prompts."""
    from optuna.samplers import GPSampler

    return _made(GPSampler, seed=_seed(seed, number), n_startup_trials=n_startup_trials)


def _made(sampler: Callable[..., BaseSampler], **options: Any) -> BaseSampler:
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return sampler(**options)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
