"""How sure a finished language model may say it is: the card's [confidence] table, from answers.

Questions about views that nothing was learned from are asked at several temperatures. The one at
which probabilities tell best which answers are right is kept, and the threshold below which the
model had better say that it is not sure. It does not know about files of boxes or commands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regionqa.bundles import Bundle
from regionqa.cards import ConfidenceCard
from regionqa.devices import Device
from regionqa.export.parts import RegionModule, VisionModule
from regionqa.finetune.saving import Log
from regionqa.finetune.scenes import Sample
from regionqa.finetune.views import QuestionOrder, View
from regionqa.finetune.wording import with_article
from regionqa.language import LanguageModel, SplicedPrompt
from regionqa.promptids import tokenize
from regionqa.prompts import render
from regionqa.requests import NAMING_QUESTION
from regionqa.tokenizer import BundleTokenizer

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
TEMPERATURES = (0.8, 1.0, 1.3, 1.7, 2.2)
LONGEST = 8
"""Answers of more tokens are descriptions."""
COVERAGE = 0.8
"""Share of the answers to "what is this?" that are given rather than held back."""
QUESTIONS = 800
"""How many are asked of the mixture; boxes of every view are to be named besides."""
SMALLEST = 0.1
"""Shorter side, as a share of the picture's, of boxes that are to be named."""
AT_ONCE = 64


@dataclass(frozen=True)
class Asked:
    """Questions as the language model reads them, and what is right."""

    prompts: list[SplicedPrompt]
    answers: list[str]
    naming: int
    """So many of the first ask for names."""


def calibrate(
    bundle: Bundle, vision: VisionModule, region: RegionModule, views: Sequence[View], log: Log
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
    bundle: Bundle, vision: VisionModule, region: RegionModule, views: Sequence[View]
) -> Asked:
    """Every large box of whole views to be named, then a draw of all kinds of questions."""
    tokenizer = BundleTokenizer(bundle.file(f"{bundle.card.language.folder}/tokenizer.json"))
    whole = [view for view in views if view.name.suffix == ".0"]
    pairs = []
    for number, view in enumerate(whole):
        sides = (view.scene.boxes[:, 2:] - view.scene.boxes[:, :2]).min(axis=1)  # (N,)
        for row in np.flatnonzero(sides >= SMALLEST).tolist():
            answer = f"{with_article(view.scene.name(row))}."
            pairs.append((number, Sample((row,), NAMING_QUESTION, answer)))
    naming = len(pairs)
    pairs += QuestionOrder(whole, QUESTIONS, seed=0).samples(0)
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
    return Asked(prompts, [sample.answer for _, sample in pairs], naming)


def answered(bundle: Bundle, temperature: float, asked: Asked) -> tuple[Floats, Bools, Bools]:
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


def calibration_error(sure: Floats, right: Bools, bins: int = 10) -> float:
    """Expected calibration error: over bins of confidence, the gap to the share that is right,
    weighted by how many answers lie there (Guo et al. 2017)."""
    place = np.minimum((sure * bins).astype(int), bins - 1)  # (Q,)
    gaps = [
        (place == number).mean() * abs(sure[place == number].mean() - right[place == number].mean())
        for number in range(bins)
        if (place == number).any()
    ]
    return float(sum(gaps))
