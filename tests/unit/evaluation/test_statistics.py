"""Intervals, differences and calibration, against what can be worked out by hand."""

import numpy as np
import pytest

from regionqa.errors import DataError
from regionqa.evaluation.metrics.statistics import (
    Metric,
    bootstrap_estimates,
    bootstrap_weights,
    mcnemar,
    mean_over_groups,
    paired_differences,
    weighted_mean,
)
from regionqa.evaluation.report import Table, format_table
from regionqa.evaluation.results import TaskScores, compare_results, estimate_metrics

WHOLE = np.ones((1, 4))


def metric(values: list[float]) -> Metric:
    return Metric("x", "x", weighted_mean(values), len(values))


def test_means_weigh_items() -> None:
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 0, 0], [0, 0, 0, 0]])
    found = weighted_mean([1, 0, 0, 1])(weights)
    assert found[:2].tolist() == [0.5, 0.75]
    assert np.isnan(found[2])
    chosen = weighted_mean([1, 0, 0, 1], np.array([False, True, True, True]))(weights)
    assert chosen[:2].tolist() == [pytest.approx(1 / 3), 0]


def test_the_mean_over_groups_counts_each_alike() -> None:
    measure = mean_over_groups([1, 1, 0, 1], ["a", "a", "a", "b"])
    assert measure(WHOLE)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert measure(np.array([[1.0, 0, 0, 0]]))[0] == 1  # b has no item, and does not count


def test_images_are_drawn_with_all_their_items() -> None:
    drawn = np.concatenate(list(bootstrap_weights(["a", "a", "b", "c"], 300)))
    assert drawn.shape == (300, 4)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 1:].sum(1) == 3).all()


def test_intervals_cover_what_theory_says() -> None:
    """500 items alone in their images: half right, so 50 % give or take 1.96 * 2.24 points."""
    values = [0.0, 1.0] * 250
    [found] = bootstrap_estimates([metric(values)], [str(n) for n in range(500)], rounds=4000)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 0.0438, abs=0.004)
    assert found.high == pytest.approx(0.5 + 0.0438, abs=0.004)
    [clustered] = bootstrap_estimates([metric(sorted(values))], [str(n // 10) for n in range(500)])
    assert clustered.high - clustered.low > 2.5 * (found.high - found.low)


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    first = (rng.random(400) < 0.5).astype(float)
    second = np.where(rng.random(400) < 0.1, 1.0, first)
    images = [str(n) for n in range(400)]
    one, two = metric(first.tolist()), metric(second.tolist())
    [found] = paired_differences([one], [two], images)
    low_of_second = bootstrap_estimates([two], images)[0].low
    high_of_first = bootstrap_estimates([one], images)[0].high
    assert low_of_second < high_of_first
    assert found.estimate.low > 0
    assert found.p < 0.01
    [same] = paired_differences([one], [one], images)
    assert (same.estimate.value, same.p) == (0, 1)


def test_mcnemar_is_exact() -> None:
    first = np.array([True] * 8 + [False] * 2 + [True] * 5)
    second = np.array([False] * 8 + [True] * 2 + [True] * 5)
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (8, 2)
    assert p == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(first, first)[2] == 1


# -- tables ----------------------------------------------------------------------------------------


def test_columns_line_up() -> None:
    table = Table("a title", ("", "value", "of"), (("all", "50.0 %", "4"), ("without", "-", "10")))
    assert format_table(table) == [
        "a title",
        "          value  of",
        "all      50.0 %   4",
        "without       -  10",
    ]


def test_only_the_same_items_are_compared() -> None:
    one, other = (
        estimate_metrics(TaskScores("vqa", items, ("p", "p"), (metric([1, 0]),)), model=model)
        for model, items in (("one", ("a", "b")), ("other", ("a", "c")))
    )
    with pytest.raises(DataError, match="one and other answered different items"):
        compare_results(one, other)
    assert compare_results(one, one).mcnemar is None
