"""Calibration of confidences: expected calibration error, reliability bins, accuracy at coverage.

Confidences are probabilities (N,) and `correct` says which answers are right (N,). Bins are equally
wide and closed above, ((m - 1) / M, m / M], as in Guo et al. 2017 (arXiv 1706.04599); the first one
also holds 0, the last one 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from regionqa.bundles.card import ConfidenceCard
from regionqa.evaluation.metrics.classes import is_unsure
from regionqa.evaluation.metrics.statistics import Bools, Floats, Metric, Statistic, weighted_mean
from regionqa.language.number_words import is_number
from regionqa.requests import Answer

BINS = 10
COVERAGES = (0.9, 0.8, 0.5)
"""Shares of the answers, the most confident first, for which accuracy is reported."""
CURVE_POINTS = 20


@dataclass(frozen=True)
class UncertaintyRule:
    """Decides which answers count as "not sure"."""

    rule: ConfidenceCard | None = None
    """The rule of the model's card; None: the card has none."""
    unsure_below: float | None = None
    """A confidence threshold that replaces the card's."""

    def unsure(self, answer: Answer) -> bool:
        """Return whether the text says so, or the confidence is below the threshold."""
        if is_unsure(answer.text):
            return True
        rule = self.rule or ConfidenceCard(threshold=0.0)
        if self.unsure_below is not None:
            rule = rule.with_threshold(self.unsure_below)
        return answer.confidence is not None and rule.holds_back(
            answer.confidence, answer.tokens, number=is_number(answer.text)
        )


@dataclass(frozen=True)
class ReliabilityBin:
    """The answers whose confidence lies in one bin."""

    low: float
    """Exclusive, except in the first bin."""
    high: float
    """Inclusive."""
    count: int
    confidence: float
    """Mean over the bin's answers."""
    accuracy: float
    """Share of the bin's answers that are right."""


def bin_indices(confidence: Floats, bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return the bin of each confidence (N,), 0 to bins - 1."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def reliability_bins(
    confidence: Sequence[float] | Floats, correct: Sequence[bool] | Bools, bins: int = BINS
) -> list[ReliabilityBin]:
    """Return the bins that hold answers, in ascending order (a reliability diagram)."""
    values, hits = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    index = bin_indices(values, bins)
    return [
        ReliabilityBin(
            low=number / bins,
            high=(number + 1) / bins,
            count=int((index == number).sum()),
            confidence=float(values[index == number].mean()),
            accuracy=float(hits[index == number].mean()),
        )
        for number in np.unique(index).tolist()
    ]


def calibration_error(
    confidence: Sequence[float] | Floats, correct: Sequence[bool] | Bools, bins: int = BINS
) -> float:
    """Return the expected calibration error, 0 to 1; NaN without answers.

    The mean over answers of the distance between their bin's confidence and accuracy (Naeini et al.
    2015, Guo et al. 2017).
    """
    found = reliability_bins(confidence, correct, bins)
    total = sum(each.count for each in found)
    gaps = sum(each.count * abs(each.confidence - each.accuracy) for each in found)
    return gaps / total if total else float("nan")


def abstention_metrics(
    correct: Bools, unsure: Bools, answerable: Bools | None = None
) -> tuple[Metric, ...]:
    """Return what holding back unsure answers costs and gains; nothing where none is unsure.

    Args:
        correct: Whether each answer is right (N,).
        unsure: Whether each answer counts as "not sure" (N,).
        answerable: Questions that have an answer (N,), which alone count; None: all.
    """
    asked = np.ones(len(correct), bool) if answerable is None else answerable
    if not (unsure & asked).any():
        return ()
    count, sure = int(asked.sum()), asked & ~unsure
    held_back = weighted_mean(correct & ~unsure, asked)
    where_sure = weighted_mean(correct, sure)
    return (
        Metric("not_sure", "not sure", weighted_mean(unsure, asked), count),
        Metric("accuracy_when_sure", "accuracy where sure", where_sure, int(sure.sum())),
        Metric("accuracy_held_back", "accuracy, not sure is wrong", held_back, count),
    )


def calibration_metrics(correct: Bools, confidence: Sequence[float | None]) -> tuple[Metric, ...]:
    """Return calibration error and accuracy at each coverage; nothing without confidences.

    Args:
        correct: Whether each answer is right (N,).
        confidence: The confidence of each answer (N,); answers with None are left out.
    """
    known, values = _known(confidence)
    count = int(known.sum())
    if not count:
        return ()
    error = weighted_calibration_error(correct, values, known)
    metrics = [Metric("calibration_error", "expected calibration error", error, count)]
    for share in COVERAGES:
        percent = f"{100 * share:.0f}"
        metrics.append(
            Metric(
                f"accuracy_at_{percent}",
                f"accuracy at {percent} % coverage",
                accuracy_at(share, correct, values, known),
                int(np.ceil(share * count)),
            )
        )
    return tuple(metrics)


def calibration_tables(
    correct: Bools, confidence: Sequence[float | None]
) -> dict[str, list[dict[str, object]]]:
    """Return the reliability bins and the accuracy-coverage curve, as `--json` holds them."""
    known, values = _known(confidence)
    bins = reliability_bins(values[known], correct[known])
    return {
        "confidence": [
            {"from": each.low, "to": each.high, "count": each.count,
             "confidence": each.confidence, "accuracy": each.accuracy}
            for each in bins
        ],
        "coverage": coverage_curve(correct, confidence),
    }  # fmt: skip


def weighted_calibration_error(
    correct: Bools, confidence: Floats, known: Bools, bins: int = BINS
) -> Statistic:
    """Return `calibration_error` of the known answers (N,) as a statistic of weighted answers."""
    member = np.zeros((len(confidence), bins))
    index = bin_indices(confidence, bins)
    member[np.arange(len(confidence)), index] = known.astype(np.float64)  # (N, B)
    gap = (correct.astype(np.float64) - confidence)[:, None] * member

    def statistic(weights: Floats) -> Floats:
        total = weights @ known.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, np.abs(weights @ gap).sum(1) / total, np.nan)

    return statistic


def accuracy_at(share: float, correct: Bools, confidence: Floats, known: Bools) -> Statistic:
    """Return the accuracy of the most confident `share` of the known answers, as a statistic.

    An answer at the edge may count in part. Answers of equal confidence at the edge count alike, so
    that their order does not matter.
    """
    levels, inverse = np.unique(-confidence[known], return_inverse=True)  # most confident first
    level = np.full(len(confidence), len(levels))
    level[known] = inverse
    order = np.argsort(level, kind="stable")[: int(known.sum())]
    starts = np.searchsorted(level[order], np.arange(len(levels)))

    def statistic(weights: Floats) -> Floats:
        ordered = weights[:, order]
        available = np.add.reduceat(ordered, starts, axis=1)  # (R, L)
        right = np.add.reduceat(ordered * correct[order], starts, axis=1)
        room = share * available.sum(1, keepdims=True) - (available.cumsum(1) - available)
        taken = np.clip(room, 0, available)
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(available > 0, taken / available, 0.0)
            return np.where(taken.sum(1) > 0, (right * part).sum(1) / taken.sum(1), np.nan)

    return statistic


def coverage_curve(
    correct: Bools, confidence: Sequence[float | None], points: int = CURVE_POINTS
) -> list[dict[str, object]]:
    """Return the accuracy at `points` coverages up to 1; empty without confidences."""
    known, values = _known(confidence)
    if not known.any():
        return []
    ones = np.ones((1, len(values)))
    return [
        {"coverage": share, "accuracy": float(accuracy_at(share, correct, values, known)(ones)[0])}
        for share in (number / points for number in range(1, points + 1))
    ]


def _known(confidence: Sequence[float | None]) -> tuple[Bools, Floats]:
    """Return the mask (N,) of answers with a confidence, and confidences (N,), 0 for the others."""
    known = np.array([each is not None for each in confidence], bool)
    return known, np.array([0.0 if each is None else each for each in confidence], np.float64)
