"""Calibration of a model's confidence: temperature, and the threshold for holding answers back.

The same questions are answered at several temperatures. The temperature whose probabilities best
predict which answers are right is kept (Guo et al. 2017, arXiv 1706.04599), with a threshold that
lets a fixed share of the answers through.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from regionqa.evaluation.metrics.calibration import calibration_error

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

TEMPERATURES = (0.8, 1.0, 1.3, 1.7, 2.2)
"""Temperatures that are compared."""
LONGEST = 8
"""Answers of more tokens are descriptions, which are neither right nor wrong."""
COVERAGE = 0.85
"""Share of the answers that are given rather than held back."""
ENOUGH = 100
"""Fewest answers from which a table is computed. At a coverage of 0.85, fifteen of them lie below
the threshold; with fewer it would follow single answers."""


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers to Q questions at one temperature.

    Attributes:
        confidence: (Q,) probabilities from 0 to 1.
        right: (Q,) whether each answer is right.
        lengths: (Q,) tokens of each answer.
        numbers: (Q,) whether each answer is a number and nothing else.
    """

    confidence: Floats
    right: Bools
    lengths: Ints
    numbers: Bools

    def short(self, longest: int | None) -> Bools:
        """(Q,) which answers have at most `longest` tokens; None: all of them."""
        return self.lengths <= (np.inf if longest is None else longest)


def calibrate(
    answers: Mapping[float, ScoredAnswers],
    log: Callable[[str], None],
    *,
    longest: int | None = LONGEST,
) -> dict[str, Any]:
    """Compute the [confidence] table of a card.

    Args:
        answers: The answers to the same questions by temperature.
        log: Receives a line for each temperature.
        longest: Tokens of the longest answer that is no description; None: none is.

    Returns:
        Keys `temperature`, `threshold`, `number_threshold` where there are ENOUGH numbers and
        ENOUGH other answers, and, unless None, `longest`. Where no answer is short enough, the
        model has not learned to stop: temperature 1 and threshold 0.
    """
    best, table = np.inf, dict[str, Any](temperature=1.0, threshold=0.0)
    for temperature, each in answers.items():
        short = each.short(longest)
        if not short.any():
            continue
        loss = log_loss(each.confidence[short], each.right[short])
        thresholds = thresholds_of(each, short)
        others = short if len(thresholds) == 1 else short & ~each.numbers
        threshold, right = thresholds["threshold"], each.right[others]
        sure = each.confidence[others] >= threshold
        error = calibration_error(each.confidence[short], each.right[short])
        log(
            f"temperature {temperature}: log loss {loss:.4f}, calibration error {error:.3f}; "
            f"{right.mean():.3f} right, {right[sure].mean():.3f} of those from {threshold:.3f} up"
        )
        if loss < best:
            best, table = loss, {"temperature": temperature, **thresholds}
    table = {name: round(value, 3) for name, value in table.items()}
    return table if longest is None else {**table, "longest": longest}


def thresholds_of(answers: ScoredAnswers, short: Bools) -> dict[str, float]:
    """Return the thresholds, each of which a share COVERAGE of its answers reaches.

    Numbers have one of their own, if there are enough: their probability is spread over neighbours,
    so that hardly one would reach that of other answers.

    Args:
        answers: All answers.
        short: (Q,) which of them are no descriptions.
    """
    numbers, others = short & answers.numbers, short & ~answers.numbers
    if min(numbers.sum(), others.sum()) < ENOUGH:
        return {"threshold": threshold_at(COVERAGE, answers.confidence[short])}
    return {
        "threshold": threshold_at(COVERAGE, answers.confidence[others]),
        "number_threshold": threshold_at(COVERAGE, answers.confidence[numbers]),
    }


def log_loss(confidence: Floats, right: Bools) -> float:
    """Return the mean negative log-likelihood, in nats, of which answers are right.

    Probabilities are clipped at 0.001, so that a single sure error does not decide.
    """
    likelihood = np.clip(np.where(right, confidence, 1 - confidence), 1e-3, 1)
    return float(-np.log(likelihood).mean())


def threshold_at(coverage: float, confidence: Floats) -> float:
    """Return the confidence that a share `coverage` of the answers reaches."""
    return float(np.quantile(confidence, 1 - coverage))
