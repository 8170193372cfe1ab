"""Intervals, differences and tests, against values by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from regionqa.backends.base import ModelInfo
from regionqa.errors import DataError
from regionqa.evaluation import runner
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.metrics.statistics import (
    Estimate,
    Metric,
    bootstrap_estimates,
    bootstrap_weights,
    mcnemar,
    mean_over_groups,
    paired_differences,
    sign_p,
    weighted_mean,
)
from regionqa.evaluation.options import EvaluationOptions
from regionqa.evaluation.report import Table, comparison_tables, format_table
from regionqa.evaluation.results import (
    Comparison,
    TaskScores,
    compare_results,
    estimate_metrics,
)
from regionqa.evaluation.runner import EvalRun, EvalSettings, EvalTask, evaluate_models
from regionqa.pipeline.console import Console
from regionqa.requests import Answer, Request

WHOLE = np.ones((1, 4))


def metric(values: list[float]) -> Metric:
    return Metric("x", "x", weighted_mean(values), len(values))


def test_weighted_mean() -> None:
    weights = np.array([[1.0, 1, 1, 1], [3, 1, 0, 0], [0, 0, 0, 0]])
    found = weighted_mean([1, 0, 0, 1])(weights)
    assert found[:2].tolist() == [0.5, 0.75]
    assert np.isnan(found[2])
    chosen = weighted_mean([1, 0, 0, 1], np.array([False, True, True, True]))(weights)
    assert chosen[:2].tolist() == [pytest.approx(1 / 3), 0]


def test_mean_over_groups_is_unweighted() -> None:
    measure = mean_over_groups([1, 1, 0, 1], ["a", "a", "a", "b"])
    assert measure(WHOLE)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert measure(np.array([[1.0, 0, 0, 0]]))[0] == 1  # b has no item, and does not count


def test_bootstrap_is_clustered_by_image() -> None:
    drawn = np.concatenate(list(bootstrap_weights(["a", "a", "b", "c"], 300)))
    assert drawn.shape == (300, 4)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 1:].sum(1) == 3).all()


def test_interval_coverage() -> None:
    """500 items alone in their images: half right, so 50 % give or take 1.96 * 2.24 points."""
    values = [0.0, 1.0] * 250
    [found] = bootstrap_estimates([metric(values)], [str(n) for n in range(500)], rounds=4000)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - 0.0438, abs=0.004)
    assert found.high == pytest.approx(0.5 + 0.0438, abs=0.004)
    [clustered] = bootstrap_estimates([metric(sorted(values))], [str(n // 10) for n in range(500)])
    assert clustered.high - clustered.low > 2.5 * (found.high - found.low)


def test_paired_interval_is_narrower() -> None:
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


def test_smallest_p_value() -> None:
    """All 99 rounds on one side: the observed difference counts as one on the other side."""
    assert sign_p(np.full(99, 0.3)) == sign_p(np.full(99, -0.3)) == pytest.approx(2 / 100)
    assert sign_p(np.array([1.0, 1, 1, -1])) == pytest.approx(2 * 2 / 5)
    assert sign_p(np.array([1.0, 1, 1, 0])) == pytest.approx(2 * 2 / 5)  # zero is on both sides
    assert sign_p(np.array([1.0, -1])) == 1
    assert sign_p(np.zeros(10)) == 1
    assert sign_p(np.array([1.0, np.nan, 1])) == pytest.approx(2 / 3)
    assert np.isnan(sign_p(np.full(3, np.nan)))


def test_consistent_difference_has_the_smallest_p() -> None:
    images = [str(n) for n in range(40)]
    worse, better = metric([0.0] * 40), metric([1.0] * 40)
    [up] = paired_differences([worse], [better], images, rounds=99)
    [down] = paired_differences([better], [worse], images, rounds=99)
    assert (up.estimate, down.estimate) == (Estimate(1, 1, 1), Estimate(-1, -1, -1))
    assert up.p == down.p == pytest.approx(0.02)


def test_intervals_are_reproducible() -> None:
    images = [str(n // 2) for n in range(60)]
    values = metric([float(n % 3 == 0) for n in range(60)])
    assert bootstrap_estimates([values], images) == bootstrap_estimates([values], images)
    first, second = (np.concatenate(list(bootstrap_weights(images, 150))) for _ in range(2))
    assert (first == second).all()
    assert not (first[:100][:50] == first[100:]).all()  # chunks are drawn anew


def test_intervals_are_the_central_95_percent() -> None:
    """The percentiles of the bootstrap's own values, of all rounds."""
    images = [str(n) for n in range(30)]
    values = metric([float(n) for n in range(30)])
    sample = np.concatenate([values.statistic(w) for w in bootstrap_weights(images, 250)])
    assert len(sample) == 250
    [found] = bootstrap_estimates([values], images, rounds=250)
    assert (found.low, found.high) == tuple(np.percentile(sample, (2.5, 97.5)))


def test_undefined_metric_has_no_interval() -> None:
    nothing = Metric("x", "x", weighted_mean([1, 0], np.zeros(2, bool)), 0)
    [found] = bootstrap_estimates([nothing], ["a", "b"], rounds=10)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert bootstrap_estimates([], ["a"]) == []


def test_mean_over_groups_with_mask() -> None:
    mask = np.array([True, False, True, False])
    statistic = mean_over_groups([1, 0, 0, 1], ["a", "a", "a", "b"], mask)
    assert statistic(WHOLE)[0] == 0.5
    assert np.isnan(statistic(np.array([[0.0, 1, 0, 1]]))[0])


# -- tables ----------------------------------------------------------------------------------------


def test_table_columns_are_aligned() -> None:
    table = Table("a title", ("", "value", "of"), (("all", "50.0 %", "4"), ("without", "-", "10")))
    assert format_table(table) == [
        "a title",
        "          value  of",
        "all      50.0 %   4",
        "without       -  10",
    ]


def test_different_items_are_not_compared() -> None:
    one, other = (
        estimate_metrics(TaskScores("vqa", items, ("p", "p"), (metric([1, 0]),)), model=model)
        for model, items in (("one", ("a", "b")), ("other", ("a", "c")))
    )
    with pytest.raises(DataError, match="one and other answered different items"):
        compare_results(one, other)
    assert compare_results(one, one).mcnemar is None


def test_small_p_values_are_printed_as_a_bound() -> None:
    result = estimate_metrics(
        TaskScores("vqa", ("a", "b"), ("p", "p"), (metric([1, 0]),)), model="one"
    )
    compared = compare_results(result, result)
    (difference,) = compared.differences
    for p, shown in ((0.01, "0.01"), (0.0099, "< 0.01"), (0.25, "0.25"), (float("nan"), "-")):
        (table,) = comparison_tables(
            replace(compared, differences=(replace(difference, p=p),), mcnemar=None)
        )
        assert table.rows[0][table.header.index("p")] == shown


class Listed(EvalTask):
    """Scores nothing, but remembers which requests it was given answers to."""

    def __init__(self) -> None:
        self.settings = {}
        self.scored: list[list[int]] = []

    def requests(self, model: ModelInfo) -> list[Request]:
        return [Request("a.jpg", f"{row}?") for row in range(4)]

    def score(self, answers: Mapping[int, Answer], uncertainty: UncertaintyRule) -> TaskScores:
        self.scored.append(sorted(answers))
        items = tuple(map(str, answers))
        return TaskScores("vqa", items, items, (metric([1.0] * len(items)),))


def test_models_are_scored_on_items_that_both_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    answered: dict[str, tuple[int, ...]] = {"one": (0, 1, 3), "two": (1, 2, 3)}

    def run_task(requests: Sequence[Request], settings: object, model: Any, _: object) -> EvalRun:
        answers = {row: Answer(requests[row]) for row in answered[model.name]}
        failed = len(requests) - len(answers)
        return EvalRun(answers, failed, model.name, "1", "cpu", UncertaintyRule())

    monkeypatch.setattr(
        runner,
        "configured_model",
        lambda name, _: SimpleNamespace(info=SimpleNamespace(note=""), name=name),
    )
    monkeypatch.setattr(runner, "run_task", run_task)
    options = EvalSettings(evaluation=EvaluationOptions(compare=("one", "two")))
    task = Listed()
    console = cast(Console, None)
    assert isinstance(evaluate_models(task, options, console), Comparison)
    assert task.scored == [[1, 3], [1, 3]]
    answered["one"] = (0,)
    answered["two"] = (2, 3)
    with pytest.raises(DataError, match="no request was answered, 3 failed"):
        evaluate_models(task, options, console)
