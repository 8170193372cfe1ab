"""Metrics with confidence intervals: statistics of weighted items, bootstrapped by image.

Items of one image are correlated, so resampling them one by one would give intervals that are too
narrow: images are drawn with replacement, each with all of its items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import comb
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]
"""A function of R weight vectors over N items, (R, N) -> (R,); NaN where no item has any weight."""
ROUNDS = 1000
SEED = 0
"""Seed of every bootstrap, so that the same answers give the same intervals."""
CHUNK = 100
"""Rounds that are weighed at a time; this bounds the memory."""


@dataclass(frozen=True)
class Metric:
    """One number that an evaluation reports."""

    key: str
    """Its name in JSON, like `class_mean`."""
    name: str
    """Its name in tables, like `mean over classes`."""
    statistic: Statistic
    count: int
    """Number of items that it is computed from."""
    percent: bool = True
    """Whether it is a share, reported in percent."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval; NaN if it is undefined."""

    value: float
    low: float
    high: float


def weighted_mean(values: Sequence[float] | Bools | Floats, mask: Bools | None = None) -> Statistic:
    """Return the weighted mean of values (N,), of the items in the mask (N,) if there is one."""
    column = np.asarray(values, np.float64)
    if mask is None:
        return lambda weights: _ratio(weights @ column, weights.sum(1))
    rows = np.flatnonzero(mask)
    column = column[rows]

    def statistic(weights: Floats) -> Floats:
        selected = weights[:, rows]
        return _ratio(selected @ column, selected.sum(1))

    return statistic


def mean_over_groups(
    values: Sequence[float] | Bools | Floats,
    groups: Sequence[str] | Floats,
    mask: Bools | None = None,
) -> Statistic:
    """Return the unweighted mean over groups (N,) of each group's weighted mean.

    Groups whose items have no weight, or are not in the mask (N,), do not count.
    """
    column = np.asarray(values, np.float64)
    _, index = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    member = np.zeros((len(column), int(index.max(initial=-1)) + 1))
    member[np.arange(len(column)), index] = 1.0  # (N, G)
    if mask is not None:
        member *= mask[:, None]

    def statistic(weights: Floats) -> Floats:
        means = _ratio(weights @ (member * column[:, None]), weights @ member)  # (R, G)
        present = ~np.isnan(means)
        return _ratio(np.where(present, means, 0.0).sum(1), present.sum(1))

    return statistic


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def bootstrap_weights(images: Sequence[str], rounds: int = ROUNDS) -> Iterator[Floats]:
    """Yield item weights (R, N), `rounds` in all: how often the image of each item was drawn."""
    names, index = np.unique(np.array(images, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(SEED)
    for start in range(0, rounds, CHUNK):
        count = min(CHUNK, rounds - start)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
        yield drawn[:, index].astype(np.float64)


def bootstrap_estimates(
    metrics: Sequence[Metric], images: Sequence[str], rounds: int = ROUNDS
) -> list[Estimate]:
    """Return the value of every metric with its 95 % percentile interval, clustered by image.

    Args:
        metrics: Metrics of N items.
        images: The image of each item (N,).
        rounds: Number of bootstrap samples.
    """
    if not metrics:
        return []
    ones = np.ones((1, len(images)))
    drawn = [
        [metric.statistic(weights) for metric in metrics]
        for weights in bootstrap_weights(images, rounds)
    ]
    samples = [np.concatenate(column) for column in zip(*drawn, strict=True)]
    return [
        Estimate(float(metric.statistic(ones)[0]), *_interval(sample))
        for metric, sample in zip(metrics, samples, strict=True)
    ]


def _interval(sample: Floats) -> tuple[float, float]:
    known = sample[~np.isnan(sample)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


# -- two models on the same items ------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """The second model's metric minus the first's."""

    estimate: Estimate
    p: float
    """Two-sided p-value from the same bootstrap: twice the share of rounds with the other sign."""


class McNemar(NamedTuple):
    """McNemar's exact test of two models on the same items."""

    only_first: int
    """Items that only the first model has right."""
    only_second: int
    p: float
    """Two-sided."""


def paired_differences(
    first: Sequence[Metric], second: Sequence[Metric], images: Sequence[str], rounds: int = ROUNDS
) -> list[PairedDifference]:
    """Return the difference of every pair of metrics; both models share each bootstrap sample."""
    ones = np.ones((1, len(images)))
    drawn = [
        [b.statistic(weights) - a.statistic(weights) for a, b in zip(first, second, strict=True)]
        for weights in bootstrap_weights(images, rounds)
    ]
    results = []
    for a, b, *column in zip(first, second, *drawn, strict=True):
        sample: Floats = np.concatenate(column)
        value = float((b.statistic(ones) - a.statistic(ones))[0])
        results.append(PairedDifference(Estimate(value, *_interval(sample)), sign_p(sample)))
    return results


def sign_p(sample: Floats) -> float:
    """Return the two-sided p-value of a bootstrap sample (R,) against zero.

    The observed difference counts as one more round on the other side, so that p is never below
    2 / (R + 1): fewer rounds cannot show less.
    """
    known = sample[~np.isnan(sample)]
    if not len(known):
        return float("nan")
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(known) + 1))


def mcnemar(first: Bools, second: Bools) -> McNemar:
    """Return McNemar's exact test (1947), by the binomial distribution.

    It assumes independent items, which several of one image are not quite.

    Args:
        first: Whether the first model is right on each item (N,).
        second: The same for the second model (N,).
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    below = sum(comb(total, k) for k in range(fewer + 1))
    return McNemar(only_first, only_second, min(1.0, float(2 * below / 2**total)))
