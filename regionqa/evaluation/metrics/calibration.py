"""Whether a model's confidence means anything: calibration error, and accuracy at coverage.

It gets confidences and whether the answers were right; it does not know where either came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regionqa.bundles.card import ConfidenceCard
from regionqa.evaluation.metrics.classes import is_unsure
from regionqa.evaluation.metrics.statistics import Bools, Figure, Floats, Measure, mean_of
from regionqa.requests import Answer

BINS = 10
COVERAGES = (0.9, 0.8, 0.5)


@dataclass(frozen=True)
class UncertaintyRule:
    """When an answer counts as one that the model is not sure of."""

    rule: ConfidenceCard | None = None
    """What the model's card says; None: it says nothing."""
    unsure_below: float | None = None
    """The probability below which it is not sure, in place of the card's."""

    def unsure(self, answer: Answer) -> bool:
        """Whether the answer says so itself, or would have been held back."""
        if is_unsure(answer.text):
            return True
        rule = self.rule or ConfidenceCard(threshold=0.0)
        return answer.confidence is not None and rule.holds_back(
            answer.confidence, answer.tokens, self.unsure_below
        )


def sureness_figures(right: Bools, unsure: Bools) -> tuple[Figure, ...]:
    """What holding back would cost and gain; nothing where nothing is unsure. Both (N,)."""
    if not unsure.any():
        return ()
    held_back = right & ~unsure
    count = len(right)
    sure = int((~unsure).sum())
    return (
        Figure("not_sure", "not sure", mean_of(unsure), count),
        Figure("accuracy_when_sure", "right where it is sure", mean_of(right, ~unsure), sure),
        Figure("accuracy_held_back", "right, if not sure is wrong", mean_of(held_back), count),
    )


def calibration_figures(right: Bools, confidence: Sequence[float | None]) -> tuple[Figure, ...]:
    """What confidences say of answers; nothing where no answer has one.

    right: (N,). confidence: (N,), probabilities; answers without one are left out of all of it.
    """
    known = np.array([each is not None for each in confidence], bool)
    count = int(known.sum())
    if not count:
        return ()
    values = np.array([0.0 if each is None else each for each in confidence], np.float64)
    figures = [
        Figure("calibration_error", "expected calibration error",
               calibration_error(right, values, known), count)
    ]  # fmt: skip
    for share in COVERAGES:
        figures.append(
            Figure(
                f"accuracy_at_{share:.0%}".rstrip("%"),
                f"accuracy on the surest {share:.0%}".replace("%", " %"),
                accuracy_at(share, right, values, known),
                int(np.ceil(share * count)),
            )
        )
    return tuple(figures)


def calibration_error(right: Bools, confidence: Floats, known: Bools, bins: int = BINS) -> Measure:
    """Mean distance of confidence and accuracy over bins of equal width, by the items in them.

    Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599).
    """
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    member = np.zeros((len(confidence), bins))
    member[np.arange(len(confidence)), place] = known.astype(np.float64)  # (N, B)
    gap = (right.astype(np.float64) - confidence)[:, None] * member

    def measure(weights: Floats) -> Floats:
        total = weights @ known.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(total > 0, np.abs(weights @ gap).sum(1) / total, np.nan)

    return measure


def accuracy_at(share: float, right: Bools, confidence: Floats, known: Bools) -> Measure:
    """The accuracy over the share of items the model is surest of; an item may count in part.

    Items of the same confidence at the edge count alike, so that their order does not matter.
    """
    levels, inverse = np.unique(-confidence[known], return_inverse=True)  # the surest first
    level = np.full(len(confidence), len(levels))
    level[known] = inverse
    order = np.argsort(level, kind="stable")[: int(known.sum())]
    starts = np.searchsorted(level[order], np.arange(len(levels)))

    def measure(weights: Floats) -> Floats:
        ordered = weights[:, order]
        held = np.add.reduceat(ordered, starts, axis=1)  # (R, L)
        won = np.add.reduceat(ordered * right[order], starts, axis=1)
        room = share * held.sum(1, keepdims=True) - (held.cumsum(1) - held)
        taken = np.clip(room, 0, held)
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(held > 0, taken / held, 0.0)
            return np.where(taken.sum(1) > 0, (won * part).sum(1) / taken.sum(1), np.nan)

    return measure


def risk_coverage(
    right: Bools, confidence: Sequence[float | None], points: int = 20
) -> list[dict[str, float]]:
    """Accuracy against the share of items kept, the surest first: the curve behind the figures."""
    known = np.array([each is not None for each in confidence], bool)
    if not known.any():
        return []
    values = np.array([0.0 if each is None else each for each in confidence], np.float64)
    whole = np.ones((1, len(values)))
    return [
        {"coverage": share, "accuracy": float(accuracy_at(share, right, values, known)(whole)[0])}
        for share in (number / points for number in range(1, points + 1))
    ]


def reliability(
    right: Bools, confidence: Sequence[float | None], bins: int = BINS
) -> list[dict[str, float]]:
    """For every bin of confidence: how many items, their mean confidence, their accuracy."""
    rows = []
    known = [(value, bool(hit)) for value, hit in zip(confidence, right, strict=True)
             if value is not None]  # fmt: skip
    for number in range(bins):
        inside = [
            (value, hit)
            for value, hit in known
            if min(bins - 1, max(0, int(np.ceil(value * bins)) - 1)) == number
        ]
        if inside:
            rows.append(
                {
                    "from": number / bins,
                    "to": (number + 1) / bins,
                    "count": len(inside),
                    "confidence": float(np.mean([value for value, _ in inside])),
                    "accuracy": float(np.mean([hit for _, hit in inside])),
                }
            )
    return rows
