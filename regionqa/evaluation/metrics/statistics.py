"""Figures with intervals: measures of weighted items, resampled by image.

Items of one image are alike, so a bootstrap that drew items one by one would claim to know more
than it does: images are drawn, with all their items. Nothing here knows what an item is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Measure = Callable[[Floats], Floats]
"""A figure of N items under R sets of weights: (R, N) -> (R,); NaN where no item has any weight."""
ROUNDS = 1000
CHUNK = 100
"""Rounds that are weighed at a time; this bounds the memory."""


@dataclass(frozen=True)
class Figure:
    """One number that an evaluation tells, and what it is a number of."""

    key: str
    """Its name in JSON, like `class_mean`."""
    name: str
    """Its name for people, like `mean over classes`."""
    measure: Measure
    """How it comes from weighted items."""
    count: int
    """Items that it is a figure of."""
    percent: bool = True
    """Whether it is a share, told in percent."""


@dataclass(frozen=True)
class Estimate:
    """A figure's value with its 95 % interval; NaN where there is nothing to know."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float] | Bools | Floats, chosen: Bools | None = None) -> Measure:
    """The weighted mean of values (N,), of the chosen items (N,) where not all count."""
    column = np.asarray(values, np.float64)
    if chosen is None:
        return lambda weights: _ratio(weights @ column, weights.sum(1))
    rows = np.flatnonzero(chosen)
    column = column[rows]

    def measure(weights: Floats) -> Floats:
        kept = weights[:, rows]
        return _ratio(kept @ column, kept.sum(1))

    return measure


def mean_over_groups(
    values: Sequence[float] | Bools | Floats,
    groups: Sequence[str] | Floats,
    chosen: Bools | None = None,
) -> Measure:
    """The mean over groups (N,) of the weighted means of their items; empty groups do not count."""
    column = np.asarray(values, np.float64)
    _, index = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    member = np.zeros((len(column), int(index.max(initial=-1)) + 1))
    member[np.arange(len(column)), index] = 1.0  # (N, G)
    if chosen is not None:
        member *= chosen[:, None]

    def measure(weights: Floats) -> Floats:
        means = _ratio(weights @ (member * column[:, None]), weights @ member)  # (R, G)
        present = ~np.isnan(means)
        return _ratio(np.where(present, means, 0.0).sum(1), present.sum(1))

    return measure


def _ratio(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def resamples(images: Sequence[str], rounds: int = ROUNDS, seed: int = 0) -> Iterator[Floats]:
    """Weights (R, N) of items whose images are drawn with replacement, some rounds at a time."""
    names, index = np.unique(np.array(images, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, rounds, CHUNK):
        count = min(CHUNK, rounds - start)
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)
        yield drawn[:, index].astype(np.float64)


def bootstrap_estimates(
    figures: Sequence[Figure], images: Sequence[str], rounds: int = ROUNDS, seed: int = 0
) -> list[Estimate]:
    """Every figure's value and 95 % bootstrap interval (percentiles), clustered by image (N,)."""
    if not figures:
        return []
    whole = np.ones((1, len(images)))
    drawn = [[f.measure(weights) for f in figures] for weights in resamples(images, rounds, seed)]
    samples = [np.concatenate(column) for column in zip(*drawn, strict=True)]
    return [
        Estimate(float(figure.measure(whole)[0]), *_interval(sample))
        for figure, sample in zip(figures, samples, strict=True)
    ]


def _interval(sample: Floats) -> tuple[float, float]:
    known = sample[~np.isnan(sample)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


# -- two models on the same items ------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far the second model's figure lies above the first's."""

    estimate: Estimate
    p: float
    """Two-sided, from the same bootstrap: how often a redrawn difference has the other sign."""


def differences(
    first: Sequence[Figure],
    second: Sequence[Figure],
    images: Sequence[str],
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Difference]:
    """Paired: in every round both models are weighed on the same redrawn images."""
    whole = np.ones((1, len(images)))
    drawn = [
        [b.measure(weights) - a.measure(weights) for a, b in zip(first, second, strict=True)]
        for weights in resamples(images, rounds, seed)
    ]
    results = []
    for a, b, *column in zip(first, second, *drawn, strict=True):
        sample: Floats = np.concatenate(column)
        value = float((b.measure(whole) - a.measure(whole))[0])
        results.append(Difference(Estimate(value, *_interval(sample)), _sign_p(sample)))
    return results


def _sign_p(sample: Floats) -> float:
    """Twice the smaller share on either side of zero, never below what the rounds can show."""
    known = sample[~np.isnan(sample)]
    if not len(known):
        return float("nan")
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(known) + 1))


def mcnemar(first: Bools, second: Bools) -> tuple[int, int, float]:
    """Items only the first model has right, only the second; and the exact two-sided p.

    first, second: (N,), right or not. McNemar 1947, by the binomial distribution. It takes items
    for independent, which several of one image are not quite.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total, fewer = only_first + only_second, min(only_first, only_second)
    below = sum(comb(total, k) for k in range(fewer + 1))
    return only_first, only_second, min(1.0, float(2 * below / 2**total))
