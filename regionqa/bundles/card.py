"""Model cards: everything that differs between models, as data.

A card is a TOML file. Its tables become frozen values that check themselves; an unknown key is an
error. The runtime reads the card and never asks which family a model belongs to. This module does
not know where a bundle's files lie or whether they exist.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.errors import BundleError
from regionqa.images.preprocessing import Fit, Preprocessing
from regionqa.schema import from_table as from_table

OLD_KEYS = {"picture": "image", "picture_question": "image_question"}
"""Keys of cards written by version 0.1, and their names today."""


def check_inside(path: str) -> None:
    """ValueError where a path leads out of the bundle's folder: cards come from strangers too."""
    parts = PurePosixPath(path).parts
    # a backslash or a colon would mean something else on Windows
    if not parts or parts[0] == "/" or ".." in parts or set(path) & set("\\:\0"):
        raise ValueError(f"{path!r} is no path inside the model's folder")


@dataclass(frozen=True)
class VisionCard:
    """The graph that turns `pixel_values` into image tokens and feature maps."""

    graph: str
    """The ONNX file inside the bundle."""
    image_tokens: int
    """Language-model tokens that an image takes."""
    levels: tuple[str, ...] = ()
    """Names of the outputs that are feature maps, shallowest first."""

    def __post_init__(self) -> None:
        check_inside(self.graph)


@dataclass(frozen=True)
class RegionCard:
    """The graph that turns feature maps, or pixels of its own, and boxes into region tokens."""

    graph: str
    """The ONNX file inside the bundle."""
    tokens: int
    """Language-model tokens that a region takes."""
    image: Preprocessing | None = None
    """How an image becomes the graph's own pixels; None: it reads the vision encoder's maps."""

    def __post_init__(self) -> None:
        check_inside(self.graph)


class LanguageRuntime(StrEnum):
    """What runs the language model; both are torch and give the same tokens."""

    native = "native"
    """`LlamaDecoder`: the LLaMA architecture without transformers' start-up cost."""
    transformers = "transformers"
    """Any architecture that transformers knows."""


@dataclass(frozen=True)
class LanguageCard:
    """The causal language model and its tokenizer, in transformers' own format."""

    folder: str
    """The folder inside the bundle."""
    context: int
    """Positions the model was trained for; prompt and answer must fit."""
    max_new_tokens: int
    """Longest answer, where the user names no other."""
    stop: tuple[str, ...]
    """Tokens, or plain texts, that end an answer and are not part of it."""
    runtime: LanguageRuntime = LanguageRuntime.transformers
    """What runs it."""
    temperature: float = 0.0
    """How random an answer is, where the user does not say; 0: always the likeliest token."""
    top_k: int = 0
    """Tokens that are drawn from where it is random; 0: all."""

    def __post_init__(self) -> None:
        check_inside(self.folder)
        if not 0 <= self.temperature < float("inf") or self.top_k < 0:
            raise ValueError(
                f"temperature is {self.temperature} and top_k {self.top_k}; neither is below 0"
            )


@dataclass(frozen=True)
class ConfidenceCard:
    """How sure the model must be of an answer to give it; measured on answers known to be right or
    wrong, so it holds for these weights alone."""

    threshold: float
    """An answer less probable than this is held back."""
    temperature: float = 1.0
    """What logits are divided by before probabilities are made of them (Guo et al. 2017)."""
    longest: int | None = None
    """Answers of more tokens are descriptions, neither right nor wrong, and never held back; None:
    there are none such."""
    unsure: str = "I am not sure."
    """What is said instead."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, a probability from 0 to 1 is due")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, not above 0")

    def holds_back(self, confidence: float, tokens: int, unsure_below: float | None = None) -> bool:
        """Whether an answer of so many tokens is not sure enough; `unsure_below`: for `threshold`.

        confidence: its probability, from 0 to 1.
        """
        threshold = self.threshold if unsure_below is None else unsure_below
        describes = self.longest is not None and tokens > self.longest
        return not describes and confidence < threshold


@dataclass(frozen=True)
class FileSpec:
    """One file of a bundle, and what it must look like."""

    path: str
    """Relative to the bundle's folder."""
    sha256: str
    """Hex digest of the content."""
    size: int
    """Bytes."""

    def __post_init__(self) -> None:
        check_inside(self.path)


@dataclass(frozen=True)
class Source:
    """One published part that a model is made from."""

    what: str
    """One line for people."""
    licence: str
    """Its terms, shown before the first byte arrives."""
    size: int
    """Bytes of what is fetched, as far as is known; the Hub's own list is what counts."""
    repo: str | None = None
    """OWNER/NAME on the Hub; None where it is published elsewhere, and the user names a file."""
    revision: str = "main"
    """A branch, tag or commit."""
    page: str | None = None
    """Where it is published, if not on the Hub."""
    files: tuple[str, ...] = ()
    """Patterns of what is needed beside the weights."""
    weights: tuple[str, ...] = ("*.safetensors", "*.bin")
    """Patterns of the weights; the first that matches anything is the one that is fetched."""

    def __post_init__(self) -> None:
        if (self.repo is None) == (self.page is None):
            raise ValueError("a source has either a repo on the Hub or the page it is published on")


@dataclass(frozen=True)
class Sources:
    """What a published model is made from; see docs/guide/published-models.md."""

    delta: Source
    """Differences to the base, and the parts that the base does not have."""
    base: Source
    """The language model that the differences are added to."""
    vision: Source
    """The vision tower."""
    parts: Mapping[str, Any]
    """Where the delta's further weights go: published prefix -> prefix in the torch encoders."""
    added: tuple[str, ...]
    """Tokens added to the base's, in the order of their ids; for deltas that list none."""
    region: Source | None = None
    """The region encoder's trunk, where it has one of its own."""

    @property
    def named(self) -> dict[str, Source]:
        """Every part by the option that replaces it."""
        found = {"delta": self.delta, "base": self.base, "vision": self.vision}
        return {**found, "region": self.region} if self.region else found

    @property
    def size(self) -> int:
        """Bytes of all parts, as far as is known."""
        return sum(source.size for source in self.named.values())


@dataclass(frozen=True)
class ModelCard:
    """All that is said about one model."""

    name: str
    """What the user calls it."""
    revision: str
    """Changes whenever an answer could."""
    summary: str
    """One line for people."""
    image: Preprocessing
    """How an image becomes `pixel_values`."""
    vision: VisionCard
    """The vision encoder."""
    language: LanguageCard
    """The language model."""
    prompt: PromptRules
    """How a question and its regions become text and slots."""
    region: RegionCard | None = None
    """The region encoder; None where regions are given as text, or not at all."""
    confidence: ConfidenceCard | None = None
    """When the model is not sure; None: nobody has measured it, so it always answers."""
    max_regions: int = 32
    """Regions that one question may have."""
    untrained: tuple[str, ...] = ()
    """Parts whose weights are new; until they are trained the answers mean nothing."""
    files: tuple[FileSpec, ...] = ()
    """The bundle's files."""
    sources: Sources | None = None
    """What it is converted from, where its weights are published by others."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the torch definitions under export/; the runtime does not read them."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Data, licence terms and measured accuracy, for people."""

    @property
    def is_converted(self) -> bool:
        """Whether there are files to it; without, it says how a published model is converted."""
        return self.sources is None or bool(self.files)

    def __post_init__(self) -> None:
        own_pixels = self.region.image if self.region else None
        if self.prompt.takes_features and not (self.region and (own_pixels or self.vision.levels)):
            raise BundleError(
                f"card of {self.name}: the prompt has region slots, so [region] must be given, "
                "and either vision.levels or [region.image]"
            )
        if own_pixels and self.vision.levels:
            raise BundleError(
                f"card of {self.name}: both vision.levels and [region.image] are given; "
                "a region encoder reads the maps or pixels of its own, so leave one out"
            )
        if self.image.fit is Fit.shortest:
            raise BundleError(
                f"card of {self.name}: [image] fit is shortest, but the vision encoder looks "
                "at squares; only [region.image] can be so"
            )
        if self.max_regions < 1:
            raise BundleError(
                f"card of {self.name}: max_regions is {self.max_regions}, not above 0"
            )


def read_card(path: Path) -> ModelCard:
    """The card in a TOML file; BundleError, naming file and key, where it is not one."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; a model's folder has a card.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BundleError(f"{path}: cannot be read as a card: {error}") from error
    return from_table(ModelCard, table, str(path), renamed=OLD_KEYS)
