"""How sure a finished language model may say it is: the card's [confidence] table, from answers.

Questions about views that nothing was learned from are asked at several temperatures. The one at
which probabilities tell best which answers are right is kept, and the threshold below which the
model had better say that it is not sure. It does not know about files of boxes or commands.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from recipes.starter.language.features import ImageView, QuestionSampler
from recipes.starter.questions.scenes import QuestionSample
from recipes.starter.saving import Log
from regionqa.bundles.store import Bundle
from regionqa.data.english import with_article
from regionqa.evaluation.metrics.calibration import calibration_error
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.finetune.calibrate import (
    COVERAGE,
    LONGEST,
    TEMPERATURES,
    CalibrationQuestions,
    answered,
    log_loss,
)
from regionqa.language.generation import SplicedPrompt
from regionqa.language.prompts import render
from regionqa.language.tokenization import BundleTokenizer, tokenize
from regionqa.requests import NAMING_QUESTION

QUESTIONS = 800
"""How many are asked of the mixture; boxes of every view are to be named besides."""
SMALLEST = 0.1
"""Shorter side, as a share of the picture's, of boxes that are to be named."""


def calibrate(
    bundle: Bundle, vision: VisionModule, region: RegionModule, views: Sequence[ImageView], log: Log
) -> dict[str, Any]:
    """The [confidence] table of a bundle; vision and region are its encoders."""
    asked = questions(bundle, vision, region, views)
    best = (np.inf, 1.0, 0.0)
    for temperature in TEMPERATURES:
        sure, right, short = answered(bundle, temperature, asked)
        if not short.any():
            continue  # it has hardly learned anything, not even to stop
        loss = log_loss(sure[short], right[short])
        error = calibration_error(sure[short], right[short])
        named = sure[: asked.naming]
        threshold = float(np.quantile(named, 1 - COVERAGE))
        kept = named >= threshold
        share, among = right[: asked.naming].mean(), right[: asked.naming][kept].mean()
        log(
            f"temperature {temperature}: log loss {loss:.4f}, calibration error {error:.3f}; "
            f"names right {share:.3f}, of those above {threshold:.3f}: {among:.3f}"
        )
        best = min(best, (loss, temperature, threshold))
    _, temperature, threshold = best
    return {"temperature": temperature, "threshold": round(threshold, 3), "longest": LONGEST}


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
        carried = region.carry(
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
