"""The language stage of the starter: training on what frozen encoders saw.

What trains is the projector of the image tokens, that of region vectors into the language
model, and the language model itself, in the loop of `regionqa finetune` (train.py), over questions
that are drawn anew in every step: where boxes lie, then everything, then two rounds of several runs
whose mean is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from recipes.starter.language.averaging import average_weights
from recipes.starter.language.features import (
    CachedFeatures,
    FeatureNoise,
    ImageView,
    QuestionSampler,
)
from recipes.starter.questions.mixture import (
    EVEN_NUMBERS,
    MIXTURE,
    MORE_NAMES,
    REGIONS,
    WHERE,
    Mixture,
)
from regionqa.bundles.card import ModelCard
from regionqa.data.records import Record
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.collate import Collator
from regionqa.finetune.config import RegionPart, StageSettings, TrainingPrecision
from regionqa.finetune.dataset import SampleBuilder
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.model import RegionLanguageModel
from regionqa.finetune.run import CHECKPOINTS
from regionqa.finetune.schedule.signals import StopSignal
from regionqa.finetune.tracking import TrainingLog
from regionqa.finetune.trainer import StageRun, train_stages
from regionqa.language.tokenization import BundleTokenizer

LANGUAGE_STAGE = StageSettings(
    learning_rate=2e-3,
    orthogonal_rate=10,
    steps=3600,
    batch=32,
    accumulate=3,
    region=RegionPart.projector,
    projector=True,
    language=True,
    warm_up_steps=100,
    weight_decay=0.1,
    precision=TrainingPrecision.fp32,
)
"""How the language stage runs; a step is 96 questions, the short ones apart from the long."""
POSITION_STAGE = replace(LANGUAGE_STAGE, steps=1000, projector=False)
"""How it runs before, on where boxes lie alone. Without a picture prompts are half as long, and
comparing two boxes is learned in half of the steps that it takes behind sixteen image tokens."""
FIRST_ROUND_STAGE = replace(LANGUAGE_STAGE, steps=600, learning_rate=7e-4, warm_up_steps=30)
"""How each run of the first round goes on from there."""
SECOND_ROUND_STAGE = replace(LANGUAGE_STAGE, steps=300, learning_rate=5e-4, warm_up_steps=20)
"""And each of the second."""
NOISE = FeatureNoise(image=0.5, region=1.0)
"""The encoders have learned from these very photos, and are surer of them than of any other."""
WHERE_NOISE = FeatureNoise(region=0.5)
"""What is in boxes that lie anywhere says nothing; it should not hide where they lie."""


@dataclass(frozen=True)
class RoundMember:
    """A run of a round."""

    mixture: Mixture
    share: float = 1
    """What its weights count in the mean, up to a common factor."""


@dataclass(frozen=True)
class Round:
    """Runs that go on from the same weights; the mean of theirs is kept (averaging.py).

    Those of the same questions differ by their seed, which is worth several points of one thing or
    another; the mean is near the best of them at everything.
    """

    stage: StageSettings
    members: tuple[RoundMember, ...]


ROUNDS = (
    Round(FIRST_ROUND_STAGE, (*[RoundMember(MORE_NAMES, 0.15)] * 5, RoundMember(REGIONS, 0.25))),
    Round(SECOND_ROUND_STAGE, (RoundMember(EVEN_NUMBERS),) * 4),
)
"""A run that is asked about regions alone forgets what whole pictures show, and was the surest of a
cat; in the mean both are kept. Numbers come last: evenly from the first step on, cats were lost."""
NUMBERS_APART = 10
"""Runs of the first round are numbered from 1, of the second from 11; a round has at most so many.
Their seeds follow, so that a run more in one round leaves those of the next as they are."""


@dataclass(frozen=True)
class LanguageSettings:
    """What the language stage makes."""

    stage: StageSettings = LANGUAGE_STAGE
    """How it trains on everything."""
    where: StageSettings = POSITION_STAGE
    """How it trains before, on where boxes lie."""
    rounds: tuple[Round, ...] = ROUNDS
    """How it trains after, each from the mean that the one before it left."""
    layers: int = 4
    """Layers of the decoder."""
    vocabulary: int = 1800
    """Ids of the tokenizer."""
    held_out: int = 400
    """Questions about held-out photos that the curves show."""
    seed: int = 2
    """Seed of every random choice of the stage."""


LANGUAGE_SETTINGS = LanguageSettings()


@dataclass(frozen=True)
class LanguageFeatures:
    """What the language stage asks about."""

    fresh: Sequence[ImageView]
    """To learn from, crops with other photos' pictures."""
    anywhere: Sequence[ImageView]
    """Whose boxes lie anywhere."""
    swapped: Sequence[ImageView]
    """For the last runs: whole photos with other photos' pictures as well."""
    held_out: Sequence[ImageView]
    """To measure on."""
    exact: int
    """So many numbers at the end of a region's vector are known exactly: its place and colours."""


@dataclass(frozen=True)
class LanguagePlan:
    """Every run of the language stage, made from the same things."""

    card: ModelCard
    tokenizer: BundleTokenizer
    views: LanguageFeatures
    settings: LanguageSettings

    def where(self, out: Path) -> StageRun:
        """How boxes lie that lie anywhere, without a picture's tokens."""
        blind = replace(self.card, vision=replace(self.card.vision, image_tokens=0))
        order = self.order(self.settings.where, self.views.anywhere, WHERE, 0)
        return self.run("where", out, self.settings.where, order, blind, WHERE_NOISE)

    def words(self, out: Path) -> StageRun:
        """Everything; `out` as of `where`, which comes before."""
        order = self.order(self.settings.stage, self.views.fresh, MIXTURE, 0)
        run = self.run("words", out, self.settings.stage, order, self.card, NOISE)
        return replace(run, number=2, held_out=self.held_out)

    def last(self, out: Path, stage: StageSettings, mixture: Mixture, number: int) -> StageRun:
        """A run of a round; its number tells it from those of all rounds."""
        order = self.order(stage, self.views.swapped, mixture, number)
        run = self.run(f"member {number}", out, stage, order, self.card, NOISE)
        return replace(run, held_out=self.held_out)

    def run(
        self,
        name: str,
        out: Path,
        stage: StageSettings,
        order: QuestionSampler,
        card: ModelCard,
        noise: FeatureNoise,
    ) -> StageRun:
        """A first stage in a folder, without held-out questions."""
        seen = CachedFeatures(order.views, noise, self.views.exact, clear=self.views.held_out)
        return StageRun(
            name=name,
            number=1,
            settings=stage,
            sampler=order,
            held_out=(),
            collator=Collator(SampleBuilder(card, self.tokenizer), seen, frozen_region=True),
            evaluate_every=500,
            save_every=250,
            folder=out / CHECKPOINTS,
        )

    def order(
        self, stage: StageSettings, views: Sequence[ImageView], mixture: Mixture, number: int
    ) -> QuestionSampler:
        """What a run asks; other runs' numbers draw other questions."""
        effective_batch = stage.batch * stage.accumulate
        return QuestionSampler(views, effective_batch, self.settings.seed + number, mixture)

    @cached_property
    def held_out(self) -> list[Record]:
        """The same questions for every run; they get no noise."""
        settings = self.settings
        order = held_out_questions(self.views.held_out, settings.held_out, settings.seed)
        return [drawn.record for drawn in order.step(0)]


def held_out_questions(views: Sequence[ImageView], count: int, seed: int) -> QuestionSampler:
    """Questions about whole photos that nothing is learned from; a step holds `count` of them."""
    whole = [view for view in views if view.scene.complete and view.name.suffix == ".0"]
    return QuestionSampler(whole, count, seed)


def train_language(plan: LanguagePlan, model: RegionLanguageModel, out: Path) -> None:
    """Train both projectors and the language model in place; interrupted runs continue.

    out: where logs, curves and checkpoints go, those of every member into its own folder.
    """
    torch.manual_seed(plan.settings.seed)
    trained = train_run((plan.where(out), plan.words(out)), model, out)
    for first, each in zip(count(1, NUMBERS_APART), plan.settings.rounds, strict=False):
        begun, ends = weights(model, trained), []
        for number, member in enumerate(each.members, first):
            model.load_state_dict(begun, strict=False)
            folder = out / f"member-{number}"
            train_run((plan.last(folder, each.stage, member.mixture, number),), model, folder)
            ends.append(weights(model, trained))
        shares = [member.share for member in each.members]
        model.load_state_dict(average_weights(ends, shares), strict=False)


def train_run(runs: Sequence[StageRun], model: RegionLanguageModel, out: Path) -> tuple[str, ...]:
    """Train, or go on with, runs that follow each other; the names of what was trained."""
    processes = ProcessGroup("cpu")
    resumed = checkpoints.newest(out / CHECKPOINTS)
    try:
        with StopSignal(None) as stop, TrainingLog(out, processes) as log:
            return train_stages(runs, model, processes, log, stop, resumed).trained
    finally:
        processes.close()


def weights(model: RegionLanguageModel, names: Sequence[str]) -> dict[str, Tensor]:
    """A copy of the weights of these names."""
    chosen = set(names)
    return {n: p.detach().clone() for n, p in model.named_parameters() if n in chosen}
