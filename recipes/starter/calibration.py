"""Calibration of the starter on views of held-out photos: the card's [confidence] table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recipes.starter.language.features import ImageView, QuestionSampler
from recipes.starter.questions.scenes import QuestionSample
from recipes.starter.saving import Log
from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle
from regionqa.data.english import with_article
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.finetune.calibrate import LONGEST, TEMPERATURES, ScoredAnswers, calibrate
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.language.prompts import render
from regionqa.language.tokenization import BundleTokenizer, tokenize
from regionqa.requests import NAMING_QUESTION
from regionqa.runtime.devices import Device

QUESTIONS = 800
"""How many are asked of the mixture; boxes of every view are to be named besides."""
SMALLEST = 0.1
"""Shorter side, as a share of the picture's, of boxes that are to be named."""


BATCH = 64
"""Questions that are decoded together."""


@dataclass(frozen=True)
class CalibrationQuestions:
    """Questions as the language model reads them, with their right answers."""

    prompts: list[SplicedPrompt]
    answers: list[str]
    naming: int
    """How many of the first ask for names."""


def calibrate_starter(
    bundle: Bundle, vision: VisionModule, region: RegionModule, views: Sequence[ImageView], log: Log
) -> dict[str, Any]:
    """Compute the [confidence] table of a bundle; vision and region are its encoders."""
    asked = questions(bundle, vision, region, views)
    answers = {temperature: answer_all(bundle, temperature, asked) for temperature in TEMPERATURES}
    naming = np.arange(len(asked.prompts)) < asked.naming
    return calibrate(answers, log, threshold_on=naming)


def answer_all(bundle: Bundle, temperature: float, asked: CalibrationQuestions) -> ScoredAnswers:
    """Answer the questions, with confidences at a temperature."""
    rule = ConfidenceCard(threshold=0.0, temperature=temperature)
    model = LanguageModel(Bundle(replace(bundle.card, confidence=rule), bundle.root), Device.cpu)
    answers = [
        answer
        for start in range(0, len(asked.prompts), BATCH)
        for answer in model.generate(asked.prompts[start : start + BATCH], 2 * LONGEST)
    ]
    return ScoredAnswers(
        np.array([answer.confidence for answer in answers]),
        np.array([a.text == text for a, text in zip(answers, asked.answers, strict=True)]),
        np.array([len(answer.ids) for answer in answers]),
    )


@torch.no_grad()
def questions(
    bundle: Bundle, vision: VisionModule, region: RegionModule, views: Sequence[ImageView]
) -> CalibrationQuestions:
    """Every large box of whole views to be named, then a draw of all kinds of questions."""
    tokenizer = BundleTokenizer(bundle.file(f"{bundle.card.language.folder}/tokenizer.json"))
    whole = [view for view in views if view.name.suffix == ".0"]
    pairs = []
    for number, view in enumerate(whole):
        sides = (view.scene.boxes[:, 2:] - view.scene.boxes[:, :2]).min(axis=1)  # (N,)
        for row in np.flatnonzero(sides >= SMALLEST).tolist():
            answer = f"{with_article(view.scene.name(row))}."
            pairs.append((number, QuestionSample((row,), NAMING_QUESTION, answer)))
    naming = len(pairs)
    pairs += QuestionSampler(whole, QUESTIONS, seed=0).samples(0)
    prompts = []
    for number, sample in pairs:
        view = whole[number]
        boxes = view.scene.boxes[list(sample.regions)]  # (R, 4)
        fractions = [tuple(box) for box in boxes.tolist()]
        pieces = render(bundle.card.prompt, sample.question, fractions, tokenizer.special_tokens)
        carried = region.project(
            view.vectors[list(sample.regions)].float(), torch.from_numpy(boxes).reshape(-1, 4)
        )
        prompts.append(
            SplicedPrompt(
                tokenize(pieces, tokenizer, vision.image_tokens, region.tokens),
                number,
                vision.projector(view.image.float()).numpy(),
                carried.numpy(),
            )
        )
    return CalibrationQuestions(prompts, [sample.answer for _, sample in pairs], naming)
