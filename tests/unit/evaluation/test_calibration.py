"""Calibration error, reliability bins and accuracy at coverage, against values by hand."""

import math

import numpy as np
import pytest

from regionqa.evaluation.metrics.calibration import (
    abstention_metrics,
    accuracy_at,
    calibration_error,
    calibration_metrics,
    calibration_tables,
    coverage_curve,
    reliability_bins,
    weighted_calibration_error,
)

ONES = np.ones((1, 4))
CORRECT = np.array([True, False, True, True])
CONFIDENCE = np.array([0.95, 0.35, 0.75, 0.32])
KNOWN = np.ones(4, bool)


def test_calibration_error_by_hand() -> None:
    # bins (0.9, 1]: 1 right, 0.95; (0.7, 0.8]: 1 right, 0.75; (0.3, 0.4]: 1 of 2 right, 0.335
    expected = (0.05 + 0.25 + abs(1 - 0.67)) / 4
    assert calibration_error(CONFIDENCE, CORRECT) == pytest.approx(expected)
    assert calibration_error([1.0, 0.0], [True, False]) == 0
    assert math.isnan(calibration_error([], []))
    confidence = [0.95, 0.95, 0.15, 0.15]
    assert calibration_error(confidence, [True, True, False, False]) == pytest.approx(0.10)
    assert calibration_error(confidence, [False, False, True, True]) == pytest.approx(0.90)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_zero_and_one_lie_in_a_bin(confidence: float) -> None:
    assert calibration_error([confidence], [confidence == 1]) == 0
    assert calibration_error([confidence], [confidence == 0]) == 1
    (found,) = reliability_bins([confidence], [False])
    assert (found.low, found.high) == ((0.9, 1.0) if confidence else (0.0, 0.1))


def test_bins_are_closed_above() -> None:
    """(0.4, 0.5] holds 0.5 and 0.41, not 0.51."""
    low, high = reliability_bins([0.5, 0.41, 0.51], [True, False, True])
    assert (low.low, low.high, low.count, low.accuracy) == (0.4, 0.5, 2, 0.5)
    assert low.confidence == pytest.approx(0.455)
    assert (high.low, high.high, high.count, high.accuracy) == (0.5, 0.6, 1, 1)
    # together in one bin their errors cancel in part: mean 0.455 against 0.5
    assert calibration_error([0.5, 0.41], [True, False]) == pytest.approx(0.045)
    assert calibration_error([0.41, 0.51], [False, True]) == pytest.approx((0.41 + 0.49) / 2)


@pytest.mark.parametrize("bins", [1, 2, 10])
def test_weights_equal_repetition(bins: int) -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(26), [0.0, 0.5, 0.5, 1.0]])
    correct, weights = rng.random(30) < confidence, rng.integers(0, 4, 30)
    known = rng.random(30) < 0.8
    statistic = weighted_calibration_error(correct, confidence, known, bins)
    repeated = np.repeat(np.flatnonzero(known), weights[known])
    expected = calibration_error(confidence[repeated], correct[repeated], bins)
    found = statistic(np.stack([weights.astype(float), np.zeros(30)]))
    assert found[0] == pytest.approx(expected)
    assert np.isnan(found[1])
    one = weighted_calibration_error(CORRECT, CONFIDENCE, KNOWN)(np.eye(4)[:1])
    assert one == pytest.approx([0.05])


def test_accuracy_at_coverage_takes_the_most_confident() -> None:
    def at(share: float) -> float:
        return float(accuracy_at(share, CORRECT, CONFIDENCE, KNOWN)(ONES)[0])

    assert [at(0.25), at(0.5), at(1.0)] == [1, 1, 0.75]
    assert at(0.75) == pytest.approx(2 / 3)
    assert at(0.625) == pytest.approx(2 / 2.5)  # half an item counts as half
    tied = accuracy_at(0.5, CORRECT, np.full(4, 0.5), KNOWN)(ONES)[0]
    assert tied == 0.75  # the order of equals does not matter
    several = np.stack([np.ones(4), np.zeros(4), [0, 1, 0, 1]])
    rounds = accuracy_at(0.5, CORRECT, CONFIDENCE, KNOWN)(several)
    assert rounds == pytest.approx([1, np.nan, 0], nan_ok=True)


def test_answers_without_confidence_are_left_out() -> None:
    assert calibration_metrics(CORRECT, [None] * 4) == ()
    metrics = calibration_metrics(CORRECT, [0.95, 0.35, None, None])
    assert [each.key for each in metrics] == [
        "calibration_error", "accuracy_at_90", "accuracy_at_80", "accuracy_at_50",
    ]  # fmt: skip
    assert [each.count for each in metrics] == [2, 2, 2, 1]
    assert metrics[-1].statistic(ONES)[0] == 1
    tables = calibration_tables(CORRECT, [0.95, 0.35, None, 0.4])
    assert tables["confidence"] == [
        {"from": 0.3, "to": 0.4, "count": 2, "confidence": pytest.approx(0.375), "accuracy": 0.5},
        {"from": 0.9, "to": 1.0, "count": 1, "confidence": 0.95, "accuracy": 1.0},
    ]
    assert len(tables["coverage"]) == 20
    assert tables["coverage"][-1] == {"coverage": 1.0, "accuracy": pytest.approx(2 / 3)}
    assert calibration_tables(CORRECT, [None] * 4) == {"confidence": [], "coverage": []}


def test_coverage_curve_ends_at_the_accuracy() -> None:
    curve = coverage_curve(CORRECT, CONFIDENCE.tolist(), points=4)
    assert [row["coverage"] for row in curve] == [0.25, 0.5, 0.75, 1]
    assert [row["accuracy"] for row in curve] == [1, 1, pytest.approx(2 / 3), 0.75]


def test_abstention_metrics() -> None:
    assert abstention_metrics(CORRECT, np.zeros(4, bool)) == ()
    unsure = np.array([False, True, True, False])
    share, where_sure, held_back = abstention_metrics(CORRECT, unsure)
    assert [float(each.statistic(ONES)[0]) for each in (share, where_sure, held_back)] == [
        0.5,
        1,
        0.5,
    ]
    assert [each.count for each in (share, where_sure, held_back)] == [4, 2, 4]
