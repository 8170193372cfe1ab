"""How sure a finished language model may say it is: the card's [confidence] table, from answers.

Questions about views that nothing was learned from are asked at several temperatures. The one at
which probabilities tell best which answers are right is kept, and the threshold below which the
model had better say that it is not sure. It does not know about files of boxes or commands.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.runtime.devices import Device

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
TEMPERATURES = (0.8, 1.0, 1.3, 1.7, 2.2)
LONGEST = 8
"""Answers of more tokens are descriptions."""
COVERAGE = 0.8
"""Share of the answers to "what is this?" that are given rather than held back."""


AT_ONCE = 64


@dataclass(frozen=True)
class CalibrationQuestions:
    """Questions as the language model reads them, and what is right."""

    prompts: list[SplicedPrompt]
    answers: list[str]
    naming: int
    """So many of the first ask for names."""


def answered(
    bundle: Bundle, temperature: float, asked: CalibrationQuestions
) -> tuple[Floats, Bools, Bools]:
    """How sure the model is of each answer, whether it is right, whether it is short."""
    rule = ConfidenceCard(threshold=0.0, temperature=temperature)
    model = LanguageModel(Bundle(replace(bundle.card, confidence=rule), bundle.root), Device.cpu)
    answers = [
        answer
        for start in range(0, len(asked.prompts), AT_ONCE)
        for answer in model.generate(asked.prompts[start : start + AT_ONCE], 2 * LONGEST)
    ]
    return (
        np.array([answer.confidence for answer in answers]),
        np.array([a.text == text for a, text in zip(answers, asked.answers, strict=True)]),
        np.array([len(answer.ids) <= LONGEST for answer in answers]),
    )


def log_loss(sure: Floats, right: Bools) -> float:
    """Mean surprise at which answers are right, in nats."""
    chance = np.clip(np.where(right, sure, 1 - sure), 1e-3, 1)
    return float(-np.log(chance).mean())
