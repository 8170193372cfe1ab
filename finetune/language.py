"""The language stage of the starter: tokenizer, decoder, and training on what frozen encoders saw.

What trains is the projector of the image tokens, what carries region vectors into the language
model, and the language model itself, in the loop of `regionqa finetune` (train.py), over questions
that are drawn anew in every step. It does not know how the encoders were made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from regionqa.cards import ModelCard
from regionqa.export.parts import RegionModule, VisionModule
from regionqa.finetune import checkpoints
from regionqa.finetune.batches import Collator
from regionqa.finetune.journal import Journal
from regionqa.finetune.model import RegionLanguageModel
from regionqa.finetune.pictures import PhotoSet
from regionqa.finetune.processes import Processes
from regionqa.finetune.questions import MIXTURE, WHERE, Mixture, draw_sample
from regionqa.finetune.samples import SampleMaker
from regionqa.finetune.scenes import whole_scene
from regionqa.finetune.stages import Precision, RegionPart, StageSettings
from regionqa.finetune.stopping import StopWatch
from regionqa.finetune.train import StageResult, StageRun, train_stages
from regionqa.finetune.views import Noise, QuestionOrder, SeenViews, View
from regionqa.tokenizer import BundleTokenizer

WORDS = StageSettings(
    learning_rate=2e-3,
    orthogonal_rate=10,
    steps=3000,
    batch=32,
    accumulate=3,
    region=RegionPart.carrier,
    projector=True,
    language=True,
    warm_up_steps=100,
    weight_decay=0.1,
    precision=Precision.fp32,
)
"""How the language stage runs; a step is 96 questions, the short ones apart from the long."""
PLACES_FIRST = replace(WORDS, steps=1000, projector=False)
"""How it runs before, on where boxes lie alone. Without a picture prompts are half as long, and
comparing two boxes is learned in half of the steps that it takes behind sixteen image tokens."""
STEADY = replace(WORDS, steps=800, learning_rate=7e-4, warm_up_steps=30)
"""How it runs at the end, on boxes in front of pictures of other photos too (elsewhere.py)."""
STAGES = ("where", "words", "steady")
NOISE = Noise(picture=0.5, region=0.5)
"""The encoders have learned from these very photos, and are surer of them than of any other. More
noise on regions, while pictures belong to them, makes names be read off the pictures."""
WHERE_NOISE = Noise(region=0.5)
"""What is in boxes that lie anywhere says nothing; it should not hide where they lie."""
STEADY_NOISE = Noise(picture=0.5, region=1.0)
"""As much as the probe of names has that regions begin with."""


@dataclass(frozen=True)
class LanguageSettings:
    """What the language stage makes."""

    stage: StageSettings = WORDS
    """How it trains on everything."""
    where: StageSettings = PLACES_FIRST
    """How it trains before, on where boxes lie."""
    steady: StageSettings = STEADY
    """How it trains after, on boxes that do not belong to their pictures."""
    layers: int = 4
    """Layers of the decoder."""
    vocabulary: int = 1800
    """Ids of the tokenizer."""
    held_out: int = 400
    """Questions about held-out photos that the curves show."""
    seed: int = 2
    """Seed of every random choice of the stage."""


LANGUAGE = LanguageSettings()


@dataclass(frozen=True)
class LanguageViews:
    """What the language stage asks about."""

    fresh: Sequence[View]
    """To learn from."""
    anywhere: Sequence[View]
    """Whose boxes lie anywhere (anywhere.py)."""
    elsewhere: Sequence[View]
    """Some of which have another photo's picture (elsewhere.py)."""
    held_out: Sequence[View]
    """To measure on."""
    exact: int
    """So many numbers at the end of a region's vector are known exactly: its place and colours."""


def new_language_model(
    vocabulary: int, hidden_size: int, context: int, stop: int, layers: int = 4
) -> LlamaForCausalLM:
    """A small untrained decoder: 4 heads, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=stop,
            pad_token_id=stop,
        )
    )


def train_tokenizer(texts: Iterator[str], size: int, special: Sequence[str], path: Path) -> None:
    """Byte-level BPE in lower case; any text can be encoded. Written to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def tokenizer_texts(photos: PhotoSet, seed: int) -> list[str]:
    """Captions and drawn questions with answers, for the tokenizer to learn from."""
    rng = np.random.default_rng(seed)
    texts = [caption for photo in photos.photos for caption in photo.captions]
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        scene = whole_scene(photo, photos.names)
        for _ in range(12):
            sample = draw_sample(scene, rng)
            texts += [sample.question, sample.answer]
    return texts


def held_out_questions(views: Sequence[View], count: int, seed: int) -> QuestionOrder:
    """Questions about whole photos that nothing is learned from; a step holds `count` of them."""
    whole = [view for view in views if view.scene.complete and view.name.suffix == ".0"]
    return QuestionOrder(whole, count, seed)


def train_language(
    card: ModelCard,
    tokenizer: BundleTokenizer,
    vision: VisionModule,
    region: RegionModule,
    language: LlamaForCausalLM,
    views: LanguageViews,
    settings: LanguageSettings,
    out: Path,
) -> StageResult:
    """Train projector, carrier and language model in place; a run that was stopped goes on.

    out: where log, curves and checkpoints go.
    """
    model = RegionLanguageModel(vision, region, language)
    folder = out / "checkpoints"
    resumed = checkpoints.newest(folder)
    torch.manual_seed(settings.seed)
    runs = stage_runs(card, tokenizer, views, settings, folder)
    processes = Processes("cpu")
    try:
        with StopWatch(None) as watch, Journal(out) as journal:
            return train_stages(runs, model, processes, journal, watch, resumed)
    finally:
        processes.close()


def stage_runs(
    card: ModelCard,
    tokenizer: BundleTokenizer,
    views: LanguageViews,
    settings: LanguageSettings,
    folder: Path,
) -> tuple[StageRun, StageRun, StageRun]:
    """How boxes lie that lie anywhere, without a picture's tokens; then everything, twice."""
    blind = replace(card, vision=replace(card.vision, image_tokens=0))
    held = held_out_questions(views.held_out, settings.held_out, settings.seed).step(0)

    def collator(card: ModelCard, asked: Sequence[View], noise: Noise) -> Collator:
        seen = SeenViews(asked, noise, views.exact, clear=views.held_out)
        return Collator(SampleMaker(card, tokenizer), seen, frozen_region=True)

    def order(
        stage: StageSettings, asked: Sequence[View], mixture: Mixture, seed: int = settings.seed
    ) -> QuestionOrder:
        return QuestionOrder(asked, stage.batch * stage.accumulate, seed, mixture)

    where = StageRun(
        name=STAGES[0],
        number=1,
        settings=settings.where,
        order=order(settings.where, views.anywhere, WHERE),
        held_out=(),
        collator=collator(blind, views.anywhere, WHERE_NOISE),
        evaluate_every=500,
        save_every=250,
        folder=folder,
    )
    words = replace(
        where,
        name=STAGES[1],
        number=2,
        settings=settings.stage,
        order=order(settings.stage, views.fresh, MIXTURE),
        held_out=[drawn.record for drawn in held],
        collator=collator(card, views.fresh, NOISE),
    )
    steady = replace(
        words,
        name=STAGES[2],
        number=3,
        settings=settings.steady,
        order=order(settings.steady, views.elsewhere, MIXTURE, settings.seed + 1),
        collator=collator(card, views.elsewhere, STEADY_NOISE),
    )
    return where, words, steady
