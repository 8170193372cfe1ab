"""The language model: its tokenizer, its untrained weights, and its training by `finetune`."""

import copy
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.starter.card import ANSWER, CONTEXT, START, STOP, starter_card
from recipes.starter.encoders import Scores, StarterEncoders
from recipes.starter.records.mixture import mixture, write_records
from recipes.starter.records.scenes import Scene, with_random_boxes
from regionqa.bundles.store import CARD, Bundle, open_bundle
from regionqa.export.bundle import write_bundle
from regionqa.export.modules.positions import PLACES
from regionqa.export.modules.timm_vision import TimmVision
from regionqa.finetune.config import (
    FinetuneSettings,
    RegionPart,
    Stages,
    StageSettings,
    TrainingPrecision,
)
from regionqa.finetune.finish import read_modules
from regionqa.finetune.model import lacks_bf16
from regionqa.finetune.run import finetune
from regionqa.language.tokenization import BundleTokenizer

log = logging.getLogger("recipes.starter")
GEOMETRY = {
    "relation": 0.34, "side": 0.15, "which": 0.36, "order": 0.05, "location": 0.05,
    "position": 0.05,
}  # fmt: skip
"""Shares of questions that are answered from boxes alone. They are learned first: among all others
they are asked too seldom for comparing to be found. "Which" takes the longest."""
COLOUR_STD = 0.1
"""Standard deviation of the untrained weights of colours in a region's token, which gives them
about the magnitude of names and places."""


@dataclass(frozen=True)
class DecoderSettings:
    """Settings of the language model and of its training."""

    layers: int = 4
    intermediate_size: int = 640
    vocabulary: int = 2048
    geometry_records: int = 120_000
    geometry_every: int = 5
    """Every so many-th view has random boxes that the first stage asks about."""
    records: int = 300_000
    held_out_records: int = 2_000
    geometry_steps: int = 3_500
    steps: int = 5_000
    batch: int = 96
    geometry_group: int = 8
    group: int = 2
    """Questions about one image that stand together. Eight share its encoding and train faster, but
    matching words and regions is then learned far later."""
    rate: float = 2e-3
    geometry_orthogonal_rate: float = 10.0
    orthogonal_rate: float = 2.5
    """Muon's learning rate for the layers' matrices, as a multiple of `rate`. At the higher one of
    the first stage, comparing is forgotten again."""
    projector_rate: float = 0.1
    """Learning rate of both projectors after the first stage, as a multiple of `rate`. They have
    many inputs, so that a step changes a token by much."""
    feature_noise: float = 0.5
    """In all stages. The encoders have memorized the photos that they learned from."""
    further_steps: int = 3_500
    further_rate: float = 8e-4
    """Of the third stage, which continues the second."""
    swapped_images: float = 0.0
    further_swapped_images: float = 0.5
    """Otherwise a box's name is read off the rest of the image."""
    class_balance: float = 0.5
    """A box is asked about by the frequency of its class to the power of minus this. Without, two
    in five questions of naming are about a person, and rare classes are hardly ever answered."""
    refused: float = 0.12
    """Share of the questions that are not taught, and are refused."""
    name_magnitude: float = 0.3
    """Of the classes' names in untrained tokens, about that of a box's place; see
    `name_projectors`."""
    seed: int = 0

    @property
    def geometry(self) -> "DecoderSettings":
        """The settings of the first stage."""
        return replace(
            self,
            steps=self.geometry_steps,
            group=self.geometry_group,
            orthogonal_rate=self.geometry_orthogonal_rate,
            projector_rate=1.0,
        )

    @property
    def further(self) -> "DecoderSettings":
        """The settings of the third stage."""
        return replace(
            self,
            steps=self.further_steps,
            rate=self.further_rate,
            swapped_images=self.further_swapped_images,
        )


def train_tokenizer(texts: Iterable[str], size: int, special: Sequence[str], path: Path) -> None:
    """Train a byte-level BPE in lower case, which encodes any text; written to `path`."""
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


def texts_of(records: Path, scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield questions, answers and captions, for the tokenizer."""
    with records.open(encoding="utf-8") as file:
        for line in file:
            for message in json.loads(line)["conversations"]:
                yield message["value"]
    for scene in scenes:
        yield from scene.captions


def new_language_model(
    vocabulary: int,
    hidden_size: int,
    context: int,
    stop: int,
    layers: int = 4,
    intermediate_size: int = 512,
) -> LlamaForCausalLM:
    """Create a small untrained LLaMA: 4 heads, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=stop,
            pad_token_id=stop,
        )
    )


@torch.no_grad()
def name_projectors(
    encoders: StarterEncoders,
    words: BundleTokenizer,
    language: LlamaForCausalLM,
    names: Sequence[str],
    predicted: Sequence[Scores],
    magnitude: float,
) -> None:
    """Let untrained projectors write what the heads predict, in the directions of the names.

    A class is added to a token in the direction of its name's embeddings, as much as its logit lies
    above its mean. The language model then finds likely names in the embeddings that it writes and
    reads them with, instead of learning 80 directions from examples.

    Args:
        encoders: With trained heads; their projectors are changed.
        words: The tokenizer.
        language: The untrained language model.
        names: Of the classes.
        predicted: The heads' predictions for some photos.
        magnitude: Root mean square of what is added to a token's values.
    """
    embeddings = language.get_input_embeddings().weight
    directions = [embeddings[words.encode(name)].mean(0) for name in names]
    rows = F.normalize(torch.stack(directions), dim=1)  # (C, H)
    classes = torch.cat([scores.classes for scores in predicted])  # (N, C)
    presence = torch.stack([scores.presence for scores in predicted])  # (V, C)
    regions, images = encoders.region.carry_linear, encoders.vision.projector
    assert isinstance(images, nn.Linear)
    width = encoders.settings.width
    classes -= classes.mean(1, keepdim=True)  # which softmax leaves open
    add_names(regions, rows, centred(encoders.classes), classes, magnitude)
    add_names(images, rows, encoders.presence, presence, magnitude)
    nn.init.normal_(regions.weight[:, width + PLACES :], std=COLOUR_STD)


@torch.no_grad()
def add_names(
    projector: nn.Linear, rows: Tensor, head: nn.Linear, logits: Tensor, magnitude: float
) -> None:
    """Add to a projector a head's logits in directions (C, H), of zero mean.

    logits: (N, C) that the head predicts.
    """
    mean = logits.mean(0)  # (C,)
    scale = magnitude / ((logits - mean) @ rows).square().mean().sqrt()
    projector.weight[:, : head.in_features] += scale * rows.T @ head.weight
    projector.bias.add_(scale * rows.T @ (head.bias - mean))


@torch.no_grad()
def centred(head: nn.Linear) -> nn.Linear:
    """Copy a head such that its logits have the mean zero over the classes."""
    copied = copy.deepcopy(head)
    copied.weight.sub_(head.weight.mean(0))
    copied.bias.sub_(head.bias.mean())
    return copied


def write_all_records(
    scenes: Sequence[Scene], held_out: Sequence[Scene], settings: DecoderSettings, folder: Path
) -> None:
    """Write the records of both stages, and of held-out photos; finished files are kept."""
    shares = mixture(settings.refused)
    rng = np.random.default_rng(settings.seed)
    scattered = [with_random_boxes(each, rng) for each in scenes[:: settings.geometry_every]]
    files = {
        "geometry": (scattered, GEOMETRY, settings.geometry_records, 0),
        "records": (scenes, shares, settings.records, 1),
        "held-out": (held_out, shares, settings.held_out_records, 2),
    }
    for name, (asked, wanted, count, number) in files.items():
        path = folder / f"{name}.jsonl"
        if not path.exists():
            seed = settings.seed * 10 + number
            written = write_records(asked, wanted, count, seed, path)
            log.info("%s: %s", path.name, dict(written))


def write_base(
    encoders: StarterEncoders,
    scenes: Sequence[Scene],
    predicted: Sequence[Scores],
    settings: DecoderSettings,
    folder: Path,
    base: Path,
) -> None:
    """Write a bundle to `base` whose decoder has learned how boxes lie, from files in `folder`.

    It learns that from prompts with one image token: the others between question and boxes would
    double the number of steps in which comparing is learned.
    """
    tokenizer = folder / "tokenizer.json"
    texts = texts_of(folder / "records.jsonl", scenes)
    train_tokenizer(texts, settings.vocabulary, (START, STOP, ANSWER), tokenizer)
    words = BundleTokenizer(tokenizer)
    torch.manual_seed(settings.seed)
    language = new_language_model(
        words.size, encoders.settings.hidden_size, CONTEXT, words.token_id(STOP),
        settings.layers, settings.intermediate_size,
    )  # fmt: skip
    names = scenes[0].names
    name_projectors(encoders, words, language, names, predicted, settings.name_magnitude)
    vision, region = encoders.vision, encoders.region
    short = TimmVision(replace(vision.config, token_grid=1, scene_token=False))
    short.load_state_dict(vision.state_dict(), strict=False)
    start = folder / "untrained"
    write_bundle(start, starter_card(short, region), short, region, language, tokenizer)
    run = decoder_run(start, settings.geometry, folder / "geometry.jsonl")
    learned = read_modules(finished(finetune(run, folder / "geometry", resume=True, device="cpu")))
    assert learned.region is not None
    card = starter_card(vision, region)
    write_bundle(base, card, vision, learned.region, learned.language, tokenizer)


def train_decoder(base: Path, settings: DecoderSettings, folder: Path) -> Bundle:
    """Train projectors and language model on everything, then with swapped images; average both."""
    records, held_out = folder / "records.jsonl", folder / "held-out.jsonl"
    run = decoder_run(base, settings, records, held_out)
    second = finished(finetune(run, folder / "trained", resume=True, device="cpu"))
    further = decoder_run(second.root, settings.further, records, held_out)
    third = finished(finetune(further, folder / "further", resume=True, device="cpu"))
    return write_average(second, third, folder / "averaged")


@torch.no_grad()
def write_average(first: Bundle, second: Bundle, folder: Path) -> Bundle:
    """Write a bundle whose weights are the mean of those before and after further training.

    It keeps most of what either does better (Wortsman et al. 2022, arXiv 2109.01903). A finished
    bundle is kept.
    """
    if (folder / CARD).exists():
        return open_bundle(folder)
    modules, others = read_modules(first), read_modules(second)
    assert modules.region is not None and others.region is not None
    for mine, other in (
        (modules.vision, others.vision),
        (modules.region, others.region),
        (modules.language, others.language),
    ):  # whose parameters, unlike state_dict(), hold tied embeddings once
        for weight, further in zip(mine.parameters(), other.parameters(), strict=True):
            weight.lerp_(further, 0.5)
    card = starter_card(modules.vision, modules.region)
    tokenizer = first.file(f"{first.card.language.folder}/tokenizer.json")
    bundle, _ = write_bundle(
        folder, card, modules.vision, modules.region, modules.language, tokenizer
    )
    return bundle


def finished(bundle: Bundle | None) -> Bundle:
    """Return the bundle of a run in one process."""
    assert bundle is not None
    return bundle


def decoder_run(
    model: Path, settings: DecoderSettings, data: Path, held_out: Path | None = None
) -> FinetuneSettings:
    """Settings of a run that trains projectors and language model."""
    is_slow = lacks_bf16(torch.device("cpu"))
    stage = StageSettings(
        learning_rate=settings.rate,
        orthogonal_rate=settings.orthogonal_rate,
        steps=settings.steps,
        batch=settings.batch,
        group=settings.group,
        precision=TrainingPrecision.fp32 if is_slow else TrainingPrecision.bf16,
        region=RegionPart.projector,
        region_rate=settings.projector_rate,
        projector=True,
        projector_rate=settings.projector_rate,
        feature_noise=settings.feature_noise,
        swapped_images=settings.swapped_images,
        language=True,
        warm_up=0.05,
        weight_decay=0.1,
    )
    return FinetuneSettings(
        data=(str(data),),
        held_out=str(held_out) if held_out else None,
        model=str(model),
        stages=Stages(align=stage, instruct=stage),
        run=("instruct",),
        rehearse=0,
        evaluate_every=200,
        save_every=100,
        seed=settings.seed,
    )
