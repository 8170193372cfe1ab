"""Results of an evaluation: metrics, groups of metrics, tables; and two models compared.

A task turns answers into `TaskScores`; `estimate_metrics` adds confidence intervals and
`compare_results` compares two models. report.py and plots.py render the results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from regionqa.errors import DataError
from regionqa.evaluation.metrics.statistics import (
    Bools,
    Estimate,
    McNemar,
    Metric,
    PairedDifference,
    bootstrap_estimates,
    mcnemar,
    paired_differences,
)

TableRows = Sequence[Mapping[str, object]]
"""Rows with equal keys, as `--json` holds them."""


@dataclass(frozen=True)
class TaskScores:
    """The scored answers of one model, without confidence intervals."""

    task: str
    """`recognition`, `vqa`, `caption` or `fineeval`."""
    items: tuple[str, ...]
    """A text that identifies each item (N,), by which the answers of two models are paired."""
    images: tuple[str, ...]
    """The image of each item (N,)."""
    metrics: tuple[Metric, ...]
    """Metrics of all items, the main one first."""
    groups: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)
    """Metrics of parts of the items, by what they are grouped by, like `class` or `size`."""
    tables: Mapping[str, TableRows] = field(default_factory=dict)
    """Tables without intervals, like the most frequent confusions, by name."""
    correct: Bools | None = None
    """Whether each answer is right (N,); None if answers are not simply right or wrong."""


@dataclass(frozen=True)
class MetricEstimate:
    """A metric with its value and interval."""

    metric: Metric
    estimate: Estimate


@dataclass(frozen=True)
class EvalResult:
    """The evaluation of one model, with confidence intervals."""

    scores: TaskScores
    model: str
    revision: str
    device: str
    failed: int
    """Items without an answer; no metric includes them."""
    metrics: tuple[MetricEstimate, ...]
    groups: Mapping[str, tuple[MetricEstimate, ...]]
    settings: Mapping[str, object]
    """Options of asking and scoring, by name."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items; differences are the second's metrics minus the first's."""

    first: EvalResult
    second: EvalResult
    differences: tuple[PairedDifference, ...]
    """Of the metrics that both models have, in the first's order."""
    groups: Mapping[str, tuple[PairedDifference, ...]]
    """By group, for groups that are equal in both."""
    mcnemar: McNemar | None
    """None if answers are not simply right or wrong."""

    def shared(self) -> list[tuple[MetricEstimate, MetricEstimate, PairedDifference]]:
        """Return the metrics that both models have, with their differences."""
        second = {each.metric.key: each for each in self.second.metrics}
        pairs = [
            (each, second[each.metric.key])
            for each in self.first.metrics
            if each.metric.key in second
        ]
        return [(*pair, each) for pair, each in zip(pairs, self.differences, strict=True)]


def estimate_metrics(
    scores: TaskScores,
    *,
    model: str,
    revision: str = "",
    device: str = "",
    failed: int = 0,
    settings: Mapping[str, object] | None = None,
) -> EvalResult:
    """Return the scores with a confidence interval for every metric."""
    return EvalResult(
        scores=scores,
        model=model,
        revision=revision,
        device=device,
        failed=failed,
        metrics=_estimates(scores.metrics, scores.images),
        groups={name: _estimates(group, scores.images) for name, group in scores.groups.items()},
        settings=settings or {},
    )


def compare_results(first: EvalResult, second: EvalResult) -> Comparison:
    """Compare two models that answered the same items.

    Raises:
        DataError: The items differ.
    """
    a, b = first.scores, second.scores
    if a.items != b.items:
        raise DataError(
            f"{first.model} and {second.model} answered different items, so they cannot be "
            "compared; run both on the same file"
        )
    groups = {}
    for name in a.groups:
        if [m.key for m in a.groups[name]] == [m.key for m in b.groups.get(name, ())]:
            groups[name] = tuple(paired_differences(a.groups[name], b.groups[name], a.images))
    by_key = {metric.key: metric for metric in b.metrics}
    pairs = [(metric, by_key[metric.key]) for metric in a.metrics if metric.key in by_key]
    differences = paired_differences([x for x, _ in pairs], [y for _, y in pairs], a.images)
    test = None
    if a.correct is not None and b.correct is not None:
        test = mcnemar(a.correct, b.correct)
    return Comparison(first, second, tuple(differences), groups, test)


def _estimates(metrics: Sequence[Metric], images: Sequence[str]) -> tuple[MetricEstimate, ...]:
    return tuple(map(MetricEstimate, metrics, bootstrap_estimates(metrics, images)))
