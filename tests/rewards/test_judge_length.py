"""Length control on planted biases, with truths that are known."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.rewards.judge.length_control import (
    at_equal_length,
    design,
    fit,
    length_controlled_win_rate,
    sigmoid,
)


def judged(seed, *, n=400, quality=0.0, length=0.0, longer=0.0, hardness=0.0, noise=1.0):
    """Verdicts of the model itself: (win, Δ, γ); ``longer`` is the mean of Δ in deviations."""
    source = np.random.default_rng(seed)
    delta = 20 * (longer + source.normal(size=n))
    gamma = source.normal(size=n)
    logit = quality + length * np.tanh(delta / delta.std()) + hardness * gamma
    win = (source.random(n) < sigmoid(logit)).astype(float)
    return win, delta, gamma, float(sigmoid(quality + hardness * gamma).mean())


def test_a_judge_that_only_likes_length():
    """Raw win rate far above one half; at equal length nothing is left of it."""
    raw, controlled = [], []
    for seed in range(30):
        win, delta, _, _ = judged(seed, length=3.0, longer=1.2)
        raw.append(win.mean())
        controlled.append(length_controlled_win_rate(win, delta).rate)
    assert np.mean(raw) > 0.75
    assert np.mean(controlled) == pytest.approx(0.5, abs=0.02)
    assert np.std(controlled) < 0.08


def test_a_judge_that_always_takes_the_longer_answer():
    win, delta, _, _ = judged(1, n=1000, longer=0.8)
    win = (delta > 0).astype(float)
    found = length_controlled_win_rate(win, delta)
    assert win.mean() > 0.75
    assert found.rate == pytest.approx(0.5, abs=0.06)
    assert found.length > 5


def test_quality_that_comes_with_length_is_kept():
    """A better method that also writes more, before a judge who does not look at length."""
    for seed in range(5):
        win, delta, _, truth = judged(seed, n=1000, quality=1.0, longer=1.0)
        found = length_controlled_win_rate(win, delta)
        assert truth == pytest.approx(0.731, abs=1e-3)  # σ(1)
        assert found.rate == pytest.approx(truth, abs=0.08)


def test_a_worse_method_that_hides_behind_length():
    raw, controlled = [], []
    for seed in range(20):
        win, delta, _, truth = judged(seed, quality=-0.8, length=3.0, longer=0.8)
        raw.append(win.mean())
        controlled.append(length_controlled_win_rate(win, delta).rate)
    assert np.mean(raw) > 0.6
    assert np.mean(controlled) == pytest.approx(truth, abs=0.03)  # σ(−0.8) = 0.31


def test_without_length_the_rate_is_the_win_rate():
    source = np.random.default_rng(0)
    win = source.choice([0.0, 0.5, 1.0], size=300)
    found = length_controlled_win_rate(win, np.zeros(300))
    # Cross-fitting predicts every fold from the others: equal up to the prior's pull.
    assert found.rate == pytest.approx(win.mean(), abs=2e-3)
    assert found.length == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_method_that_always_wins_or_loses_stays_finite(value):
    found = length_controlled_win_rate(np.full(50, value), np.arange(50.0) - 20)
    assert abs(found.rate - value) < 0.05
    assert np.isfinite(found.influence).all()
    one = length_controlled_win_rate([1.0], [3.0])
    assert 0.5 < one.rate < 1


def test_swapping_the_sides_mirrors_everything():
    win, delta, gamma, _ = judged(3, quality=0.4, length=1.0, longer=0.5, hardness=0.7)
    one = length_controlled_win_rate(win, delta, gamma)
    other = length_controlled_win_rate(1 - win, -delta, gamma)
    assert one.rate + other.rate == pytest.approx(1, abs=1e-9)
    assert one.quality == pytest.approx(-other.quality)
    assert one.length == pytest.approx(other.length)
    assert one.difficulty == pytest.approx(-other.difficulty)


def test_the_unit_of_length_does_not_matter():
    win, delta, _, _ = judged(4, length=1.0, longer=0.5)
    one, other = (length_controlled_win_rate(win, c * delta) for c in (1.0, 37.0))
    assert one.rate == pytest.approx(other.rate)


def test_the_fit_is_that_of_a_general_minimiser():
    from scipy.optimize import minimize

    win, delta, gamma, _ = judged(5, n=120, quality=0.5, length=1.5, longer=0.4, hardness=0.8)
    x = design(delta, gamma)

    def loss(b):
        z = x @ b
        return -np.sum(win * z - np.logaddexp(0, z)) + b @ b / (2 * 5.0**2)

    wanted = minimize(loss, np.zeros(3), tol=1e-12).x
    assert fit(x, win) == pytest.approx(wanted, abs=1e-5)


def test_the_influences_are_those_of_leaving_one_out():
    """A row's influence, divided by n − 1, is what the estimate loses without the row."""
    win, delta, gamma, _ = judged(6, n=300, quality=0.3, length=1.0, longer=0.5, hardness=0.5)
    found = length_controlled_win_rate(win, delta, gamma)
    x = design(delta, gamma)
    equal = x.copy()
    equal[:, 1] = 0
    whole = sigmoid(equal @ fit(x, win)).mean()
    effects = []
    for i in range(0, 300, 15):
        keep = np.arange(300) != i
        effects.append(whole - sigmoid(equal[keep] @ fit(x[keep], win[keep])).mean())
    predicted = (found.influence[::15] - found.rate) / 299
    assert predicted == pytest.approx(effects, abs=4e-5, rel=0.03)
    assert np.corrcoef(predicted, effects)[0, 1] > 0.999
    assert found.influence.mean() == pytest.approx(found.rate)


@pytest.mark.slow
@pytest.mark.parametrize("case", [{"length": 2.0, "longer": 0.7}, {"quality": 0.8, "longer": 0.7}])
def test_the_interval_covers_the_truth(case):
    """Rate ± 1.96 standard errors of the influences covers the truth about 95 times of 100."""
    hits, runs = 0, 300
    for seed in range(runs):
        win, delta, _, truth = judged(1000 + seed, n=200, **case)
        found = length_controlled_win_rate(win, delta)
        error = found.influence.std(ddof=1) / np.sqrt(200)
        hits += abs(found.rate - truth) <= 1.96 * error
    assert 0.91 <= hits / runs <= 0.98


def test_hard_prompts_that_get_longer_answers_are_told_from_length():
    """Longer answers lose because their prompts are hard, not because they are long."""
    with_it, without, truths = [], [], []
    for seed in range(20):
        source = np.random.default_rng(seed)
        gamma = source.normal(size=500)
        delta = 20 * (1 - 0.8 * gamma + 0.6 * source.normal(size=500))
        truths.append(sigmoid(0.3 + 2 * gamma).mean())
        win = (source.random(500) < sigmoid(0.3 + 2 * gamma)).astype(float)
        with_it.append(length_controlled_win_rate(win, delta, gamma).rate)
        without.append(length_controlled_win_rate(win, delta).rate)
    assert np.mean(with_it) == pytest.approx(np.mean(truths), abs=0.02)
    assert np.mean(without) > np.mean(truths) + 0.1


def test_rows_of_one_prompt_stay_in_one_fold():
    """Five copies of every row change nothing, when they are known to be copies."""
    win, delta, _, _ = judged(7, n=60, quality=0.5, length=1.0)
    number = np.arange(60)
    alone = length_controlled_win_rate(win, delta, clusters=number).rate
    copies = [np.repeat(a, 5) for a in (win, delta, number)]
    together = length_controlled_win_rate(*copies[:2], clusters=copies[2]).rate
    assert together == pytest.approx(alone, abs=3e-3)  # the prior weighs less


def test_a_prompt_is_predicted_from_other_prompts():
    """Fold by fold, with the fit of the rows of the other folds: clusters 5 apart are one fold."""
    win, delta, _, _ = judged(9, n=40, quality=0.5, length=1.0)
    numbers = np.random.default_rng(9).integers(0, 13, size=40)
    x = design(delta)
    equal = x * [1, 0]
    predicted = np.empty(40)
    for fold in range(5):
        inside = numbers % 5 == fold
        predicted[inside] = sigmoid(equal[inside] @ fit(x[~inside], win[~inside]))
    found = length_controlled_win_rate(win, delta, clusters=numbers).rate
    assert found == pytest.approx(predicted.mean(), abs=1e-12)
    assert found != pytest.approx(length_controlled_win_rate(win, delta).rate, abs=1e-6)


def test_lengths_that_never_overlap_are_told():
    win, delta, _, _ = judged(8)
    assert length_controlled_win_rate(win, np.abs(delta) + 1).overlap == 0
    assert length_controlled_win_rate(win, delta).overlap > 0.4


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one win per row"):
        length_controlled_win_rate([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="one win per row"):
        length_controlled_win_rate([], [])


def test_a_line_by_hand():
    # Differences 3, 5, 7 at Δ = 1, 2, 3: slope 2, and 1 is left at Δ = 0.
    found = at_equal_length([3.0, 5.0, 7.0], [1.0, 2.0, 3.0])
    assert (found.value, found.slope) == (pytest.approx(1), pytest.approx(2))
    assert found.influence == pytest.approx([1, 1, 1])
    assert at_equal_length([3.0, 5.0], [2.0, 2.0]).value == 4  # no difference in Δ: the mean
    with pytest.raises(ValueError, match="at least one"):
        at_equal_length([], [])


def test_the_line_s_standard_error_is_that_of_least_squares():
    source = np.random.default_rng(0)
    x = source.normal(3, 2, size=500)
    y = 1 + 0.5 * x + source.normal(size=500)
    found = at_equal_length(y, x)
    matrix = np.stack([np.ones_like(x), x], axis=1)
    wanted, residuals, *_ = np.linalg.lstsq(matrix, y, rcond=None)
    error = np.sqrt(residuals[0] / 498 * np.linalg.inv(matrix.T @ matrix)[0, 0])
    assert (found.value, found.slope) == (pytest.approx(wanted[0]), pytest.approx(wanted[1]))
    assert found.influence.std(ddof=1) / np.sqrt(500) == pytest.approx(error, rel=0.05)
