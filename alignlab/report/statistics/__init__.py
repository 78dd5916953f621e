"""Small pure functions for comparing methods over training seeds and held-out prompts.

The data of a comparison is a matrix of *cells* with one row per training seed (the unit of
replication) and one column per prompt. Prompts are shared by the seeds and by the methods, so
differences are taken cell by cell (a blocked design) and prompts are resampled as clusters.
"""

from alignlab.report.statistics.intervals import (
    DRAWS,
    Array,
    Interval,
    Resamples,
    bootstrap_interval,
    hierarchical_bootstrap,
    hierarchical_draws,
    interquartile_mean,
    resamples,
    satterthwaite,
    summarise,
    widen,
)
from alignlab.report.statistics.overoptimisation import (
    Form,
    Overoptimisation,
    fit_form,
    fit_overoptimisation,
    form_value,
    frontier_optimism,
    frontier_value,
    mean_over_kl,
    peak_of,
    value_at_kl,
)
from alignlab.report.statistics.profiles import Band, band, performance_profile
from alignlab.report.statistics.ranking import (
    bradley_terry,
    bradley_terry_intervals,
    cycles,
    improvement_interval,
    probability_of_improvement,
    rank_intervals,
)
from alignlab.report.statistics.testing import (
    Difference,
    difference_of_cells,
    holm,
    mcnemar,
    minimum_detectable_effect,
    paired_cells,
    paired_difference,
    permutation_test,
    power,
    sign_flip_test,
    t_p_value,
)
from alignlab.report.statistics.tuning import expected_max, expected_max_curve

__all__ = [
    "DRAWS",
    "Array",
    "Band",
    "Difference",
    "Form",
    "Interval",
    "Overoptimisation",
    "Resamples",
    "band",
    "bootstrap_interval",
    "bradley_terry",
    "bradley_terry_intervals",
    "cycles",
    "difference_of_cells",
    "expected_max",
    "expected_max_curve",
    "fit_form",
    "fit_overoptimisation",
    "form_value",
    "frontier_optimism",
    "frontier_value",
    "hierarchical_bootstrap",
    "hierarchical_draws",
    "holm",
    "improvement_interval",
    "interquartile_mean",
    "mcnemar",
    "mean_over_kl",
    "minimum_detectable_effect",
    "paired_cells",
    "paired_difference",
    "peak_of",
    "performance_profile",
    "permutation_test",
    "power",
    "probability_of_improvement",
    "rank_intervals",
    "resamples",
    "satterthwaite",
    "sign_flip_test",
    "summarise",
    "t_p_value",
    "value_at_kl",
    "widen",
]
