"""Calibration by hand, and against a planted miscalibration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alignlab.evaluation.calibration import (
    brier,
    expected_calibration_error,
    log_loss,
    reliability,
    sigmoid,
)


def test_bins_by_hand() -> None:
    # confidences 0.9 right, 0.9 wrong (p = 0.1), 0.6 right, and a tie
    found = reliability([0.9, 0.1, 0.6, 0.5], bins=5)
    assert [(b.count, b.accuracy) for b in found] == [(1, 0.5), (1, 1.0), (2, 0.5)]
    assert [b.confidence for b in found] == pytest.approx([0.5, 0.6, 0.9])
    assert (found[0].low, found[-1].high) == (0.5, 1.0)
    # 1/4 · |0.5 − 0.5| + 1/4 · |1 − 0.6| + 2/4 · |0.5 − 0.9| = 0.1 + 0.2
    assert expected_calibration_error(found) == pytest.approx(0.3)


def test_full_confidence_is_in_the_last_bin() -> None:
    [found] = reliability([1.0, 0.0])
    assert (found.confidence, found.accuracy, found.count) == (1.0, 0.5, 2)


def test_brier_and_log_loss_by_hand() -> None:
    assert brier([0.9, 0.4]) == pytest.approx((0.01 + 0.36) / 2)
    assert log_loss([0.0]) == pytest.approx(math.log(2))
    assert log_loss([2.0, -1.0]) == pytest.approx(
        (math.log(1 + math.exp(-2)) + math.log(1 + math.e)) / 2
    )


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(np.array([-800.0, 0.0, 800.0])).tolist() == [0.0, 0.5, 1.0]


def test_a_calibrated_model_has_a_small_error_and_a_boastful_one_a_large_one() -> None:
    source = np.random.default_rng(0)
    margins = source.normal(0, 1.5, 20_000)
    right = source.random(20_000) < sigmoid(np.abs(margins))
    signed = np.where(right, np.abs(margins), -np.abs(margins))
    honest = reliability(sigmoid(signed).tolist())
    boast = reliability(sigmoid(4 * signed).tolist())
    assert expected_calibration_error(honest) < 0.02
    assert expected_calibration_error(boast) > 0.1
