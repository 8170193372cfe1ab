"""Model cards: everything that differs between models, as data.

A card is a TOML file. Its tables become frozen dataclasses that validate themselves; an unknown key
is an error. No other code depends on the family of a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from regionqa.bundles.prompt_rules import PromptRules
from regionqa.errors import BundleError
from regionqa.files import LONGEST_NAME
from regionqa.images.preprocessing import EncoderPreprocessing, Fit, Preprocessing
from regionqa.schema import from_table, read_toml

OLD_KEYS = {"picture": "image", "picture_question": "image_question"}
"""Keys of cards written by version 0.1, and their names today."""


def check_inside(path: str) -> None:
    """ValueError if a path leads out of the bundle's folder; cards may come from strangers."""
    parts = PurePosixPath(path).parts
    # a backslash or a colon would mean something else on Windows
    odd = set(path) & set("\\:\0") or max(map(len, parts), default=0) > LONGEST_NAME
    if not parts or parts[0] == "/" or ".." in parts or odd:
        raise ValueError(f"{path!r} is not a path inside the model's folder")


@dataclass(frozen=True)
class VisionCard:
    """The graph that computes image tokens and feature maps from `pixel_values`."""

    graph: str
    """The ONNX file inside the bundle."""
    image_tokens: int
    """Number of language-model tokens per image."""
    levels: tuple[str, ...] = ()
    """Names of the outputs that are feature maps, shallowest first."""

    def __post_init__(self) -> None:
        check_inside(self.graph)


@dataclass(frozen=True)
class RegionCard:
    """The graph that computes region tokens from boxes and feature maps, or its own pixels."""

    graph: str
    """The ONNX file inside the bundle."""
    tokens: int
    """Number of language-model tokens per region."""
    image: Preprocessing | None = None
    """Preprocessing of the graph's own pixels; None: it reads the vision encoder's maps."""

    def __post_init__(self) -> None:
        check_inside(self.graph)


@dataclass(frozen=True)
class DetectorCard:
    """The graph that finds objects in the vision encoder's levels."""

    graph: str
    """The ONNX file inside the bundle."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the graph's scores."""
    min_score: float
    """Score that a box must exceed, where the user says nothing."""
    nms: float
    """Intersection over union above which the lower of two boxes of a class is left out."""

    def __post_init__(self) -> None:
        check_inside(self.graph)
        if not all(self.classes) or len({*self.classes}) != max(1, len(self.classes)):
            raise ValueError("classes: at least one name is expected, and each once")
        if not (0 <= self.min_score < 1 and 0 < self.nms <= 1):
            raise ValueError(
                f"min_score is {self.min_score} and nms {self.nms}; both are between 0 and 1"
            )


class LanguageRuntime(StrEnum):
    """The implementation that runs the language model; both are torch and agree on the tokens."""

    native = "native"
    """`LlamaDecoder`: the LLaMA architecture without transformers' start-up cost."""
    transformers = "transformers"
    """Any architecture that transformers supports."""


@dataclass(frozen=True)
class LanguageCard:
    """The causal language model and its tokenizer, in transformers' own format."""

    folder: str
    """The folder inside the bundle."""
    context: int
    """Positions for prompt and answer together, as in training."""
    max_new_tokens: int
    """Default length limit of an answer, in tokens."""
    stop: tuple[str, ...]
    """Tokens or texts that end an answer and are not part of it."""
    runtime: LanguageRuntime = LanguageRuntime.transformers
    """Its implementation."""
    temperature: float = 0.0
    """Default sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Number of likeliest tokens to sample from; 0: all."""

    def __post_init__(self) -> None:
        check_inside(self.folder)
        if not 0 <= self.temperature < float("inf") or self.top_k < 0:
            raise ValueError(
                f"temperature is {self.temperature} and top_k {self.top_k}; neither is below 0"
            )


@dataclass(frozen=True)
class ConfidenceCard:
    """When an answer is held back as too uncertain.

    Calibrated on answers known to be right or wrong, so it is valid for these weights only.
    """

    threshold: float
    """An answer of lower confidence is held back."""
    temperature: float = 1.0
    """Divisor of the logits before the softmax (temperature scaling, Guo et al. 2017)."""
    longest: int | None = None
    """Answers of more tokens are descriptions, neither right nor wrong, and never held back; None:
    the model gives none."""
    unsure: str = "I am not sure."
    """The text in place of an answer that is held back, and of the model's own in other case."""
    number_threshold: float | None = None
    """The threshold of answers that are a number; None: as for all others. A number has neighbours
    that are nearly as probable, and is of use if it is off by one."""

    def __post_init__(self) -> None:
        for name in ("threshold", "number_threshold"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected a probability from 0 to 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, not above 0")

    def with_threshold(self, threshold: float) -> "ConfidenceCard":
        """Return the same rule with one threshold for all answers."""
        return replace(self, threshold=threshold, number_threshold=None)

    def holds_back(self, confidence: float, tokens: int, *, number: bool = False) -> bool:
        """Return whether an answer is held back.

        Args:
            confidence: Its probability, from 0 to 1.
            tokens: Its length.
            number: Whether it is a number and nothing else.
        """
        describes = self.longest is not None and tokens > self.longest
        threshold = self.threshold
        if number and self.number_threshold is not None:
            threshold = self.number_threshold
        return not describes and confidence < threshold

    def may_hold_back(self, tokens: int) -> bool:
        """Return whether an answer of this many tokens so far may still be held back."""
        return any(self.holds_back(0.0, tokens, number=number) for number in (False, True))

    def may_become_unsure(self, text: str) -> bool:
        """Return whether the model's answer is, or begins, the text for "unsure" in any case."""
        return self.unsure.casefold().startswith(text.strip().casefold())

    def is_unsure(self, text: str) -> bool:
        """Return whether the model itself answered with the text for "unsure", in any case."""
        return self.unsure.casefold() == text.strip().casefold()


@dataclass(frozen=True)
class FileSpec:
    """One file of a bundle with its digest and size."""

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
    """One published part of a model."""

    what: str
    """A one-line description."""
    licence: str
    """Its licence, shown before the download."""
    size: int
    """Estimated bytes to fetch; the Hub's list has precedence."""
    repo: str | None = None
    """OWNER/NAME on the Hub; None: it is published elsewhere, and the user provides a file."""
    revision: str = "main"
    """A branch, tag or commit."""
    page: str | None = None
    """The address of its page, if it is not on the Hub."""
    files: tuple[str, ...] = ()
    """Patterns of the files needed in addition to the weights."""
    weights: tuple[str, ...] = ("*.safetensors", "*.bin")
    """Patterns of the weights; the first one that matches a file is fetched."""
    mirrors: tuple[str, ...] = ()
    """Repositories with the same weights, for the case that this one is closed."""

    def __post_init__(self) -> None:
        if (self.repo is None) == (self.page is None):
            raise ValueError("a source has either a repo on the Hub or the page it is published on")


@dataclass(frozen=True)
class Sources:
    """What a published model is made from; see docs/guide/published-models.md."""

    delta: Source
    """Differences to the base's weights, and the weights that the base does not have."""
    base: Source
    """The language model to which the differences are added."""
    vision: Source
    """The vision tower."""
    parts: Mapping[str, Any]
    """Prefixes of the delta's other weights, and their prefixes in the torch encoders."""
    added: tuple[str, ...]
    """Tokens added to the base's vocabulary, by id; used if the delta does not list them."""
    region: Source | None = None
    """The region encoder's trunk, if it has one of its own."""

    @property
    def named(self) -> dict[str, Source]:
        """The parts by the command-line option that replaces them."""
        found = {"delta": self.delta, "base": self.base, "vision": self.vision}
        return {**found, "region": self.region} if self.region else found

    @property
    def size(self) -> int:
        """Estimated bytes of all parts."""
        return sum(source.size for source in self.named.values())


@dataclass(frozen=True)
class ModelCard:
    """The card of one model."""

    name: str
    """The name on the command line."""
    revision: str
    """Changes whenever an answer could change."""
    summary: str
    """A one-line description."""
    image: Preprocessing
    """Preprocessing of `pixel_values`."""
    vision: VisionCard
    """The vision encoder."""
    language: LanguageCard
    """The language model."""
    prompt: PromptRules
    """The prompt format."""
    kind: str = "bundle"
    """The backend's; see `backends.base.KINDS`."""
    region: RegionCard | None = None
    """The region encoder; None: regions are given as text, or not at all."""
    detector: DetectorCard | None = None
    """The detection head; None: the model finds no objects itself."""
    confidence: ConfidenceCard | None = None
    """When an answer is held back; None: not calibrated, the model always answers."""
    max_regions: int = 32
    """Largest number of regions per question."""
    untrained: tuple[str, ...] = ()
    """Parts with random weights, which must be trained before the model is of use."""
    files: tuple[FileSpec, ...] = ()
    """The bundle's files."""
    sources: Sources | None = None
    """The published parts from which it is converted, if it is a published model."""
    architecture: Mapping[str, Any] = field(default_factory=dict)
    """Configs of the torch definitions in export/modules, for export and training."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Data, licence and measured accuracy, for people."""

    @property
    def preprocessing(self) -> EncoderPreprocessing:
        """How images and boxes become the inputs of both encoders."""
        return EncoderPreprocessing(self.image, self.region.image if self.region else None)

    @property
    def is_converted(self) -> bool:
        """Whether the model has files; a published model has none before its conversion."""
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
        if self.detector and not self.vision.levels:
            raise BundleError(
                f"card of {self.name}: [detector] reads the vision encoder's maps, so "
                "vision.levels must be given"
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
    """Read a card; BundleError, with file and key, if it is invalid."""
    try:
        table = read_toml(path)
    except FileNotFoundError:
        raise BundleError(
            f"{path}: no such file; a model's folder has a card.toml, or the config.json of a "
            "vision-language model"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as a card: {error}") from error
    return from_table(ModelCard, table, str(path), renamed=OLD_KEYS)
