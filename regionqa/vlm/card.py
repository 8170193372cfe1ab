"""Cards of vision-language models: everything that differs between checkpoints, as data.

A card names the checkpoint and says how it is told a region. The conventions of a family are one
table, models/families/<model_type>.toml; a card replaces what its checkpoint does differently.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from regionqa.bundles.prompt_rules import check_pattern
from regionqa.options import RegionWay


class CoordinateUnit(StrEnum):
    """Unit of the numbers in a prompt."""

    thousand = "thousand"
    """Thousandths of the image's width and height, rounded: 0 to 1000."""
    resized_pixels = "resized-pixels"
    """Pixels of the image as it is resized for the model (Qwen2.5-VL)."""
    pixels = "pixels"
    """Pixels of the image as it is given."""
    fraction = "fraction"
    """Fractions of the image's width and height."""
    square_fraction = "square-fraction"
    """Fractions of the side of the square to which the image is padded (LLaVA)."""
    bins = "bins"
    """Number of the bin, rounded down, of as many bins as `bins` (Florence-2, PaliGemma)."""


class CoordinateOrder(StrEnum):
    """Order of the numbers in a prompt."""

    xyxy = "xyxy"
    yxyx = "yxyx"


class PrefixSharing(StrEnum):
    """What questions about one image share."""

    causal = "causal"
    """The state of the language model after everything up to the end of the image."""
    features = "features"
    """Only the image's features: image tokens attend to the question (PaliGemma, Florence-2)."""


@dataclass(frozen=True)
class RegionText:
    """Words for regions, in any way of telling them."""

    region: str
    """Replacement of `<regionK>`. Fields: `{number}`; `{box}` with coordinates; `{color}` with
    drawn boxes."""
    again: str | None = None
    """Replacement of further mentions of `<regionK>`; None: the same as the first."""
    introduction: str = "{regions}: "
    """Text before a question that does not mention all of its regions; `{regions}` are the others.
    An introduction without the field names none."""
    separator: str = ", "
    """Text between the regions of an introduction."""

    def __post_init__(self) -> None:
        known = {"number", "box", "color"}
        check_pattern(self.region, "region", known)
        check_pattern(self.again or "", "again", known)
        check_pattern(self.introduction, "introduction", {"regions"})


@dataclass(frozen=True)
class CoordinatesWay:
    """Regions as numbers in the prompt."""

    unit: CoordinateUnit
    """Unit of the numbers."""
    text: RegionText
    """Words for regions."""
    order: CoordinateOrder = CoordinateOrder.xyxy
    """Order of the numbers."""
    box: str = "{0}, {1}, {2}, {3}"
    """Text of the four numbers, in their order."""
    bins: int = 1000
    """Number of bins, with the unit `bins`."""
    digits: int = 0
    """Least number of digits of a whole number, padded with zeros."""
    decimals: int = 2
    """Decimals of a fraction."""
    system: str = ""
    """System prompt that the model needs to read coordinates; empty: the card's own."""

    def __post_init__(self) -> None:
        check_pattern(self.box, "box", set("0123"), required=set("0123"))
        if self.bins < 2 or self.decimals < 1 or self.digits < 0:
            raise ValueError(
                f"bins is {self.bins}, decimals {self.decimals}, digits {self.digits}; at least "
                "2, 1 and 0 are needed"
            )


@dataclass(frozen=True)
class CropWay:
    """Regions as further images, cut from the original pixels."""

    text: RegionText
    """Words for regions."""
    caption: str
    """Text before each crop; the field is `{number}`."""
    margin: float = 0.5
    """Context on each side, in sides of the box."""
    min_side: int = 48
    """Least side of a crop in pixels of the image; a smaller box gets more context."""
    enlarge_to: int = 448
    """A crop whose longer side is below this many pixels is enlarged to it."""

    def __post_init__(self) -> None:
        check_pattern(self.caption, "caption", {"number"})
        if self.margin < 0 or self.min_side < 1 or self.enlarge_to < 1:
            raise ValueError(
                f"margin is {self.margin}, min_side {self.min_side}, enlarge_to "
                f"{self.enlarge_to}; at least 0, 1 and 1 are needed"
            )


@dataclass(frozen=True)
class DrawnWay:
    """Regions as boxes drawn on the image."""

    text: RegionText
    """Words for regions."""
    colors: tuple[str, ...] = (
        "red",
        "lime",
        "blue",
        "yellow",
        "magenta",
        "cyan",
        "orange",
        "white",
    )
    """Names of colours that Pillow knows, one per region; they are also what the text says."""
    line: float = 0.008
    """Width of the line, as a fraction of the image's longer side."""

    def __post_init__(self) -> None:
        from PIL import ImageColor

        for color in self.colors:
            ImageColor.getrgb(color)  # ValueError if unknown
        if not self.colors or len(set(self.colors)) < len(self.colors) or not 0 < self.line < 1:
            raise ValueError("colors must be distinct and at least one, and line a fraction")


@dataclass(frozen=True)
class SmallRegions:
    """Another way for small regions."""

    below: float
    """Fraction of the image's area below which a region is small."""
    way: RegionWay
    """How it is told."""


@dataclass(frozen=True)
class WaysCard:
    """The ways in which a model can be told a region."""

    default: RegionWay
    """The way that is used unless --way says otherwise."""
    ways: tuple[RegionWay, ...]
    """All ways that work with this model."""
    coordinates: CoordinatesWay | None = None
    """Convention for coordinates."""
    crop: CropWay | None = None
    """Settings of crops."""
    drawn: DrawnWay | None = None
    """Settings of drawn boxes."""
    small: SmallRegions | None = None
    """Another default for small regions; None: none."""
    measured: str = ""
    """What measurement chose the default; empty: it was not measured."""

    def __post_init__(self) -> None:
        tables = {
            RegionWay.coordinates: self.coordinates,
            RegionWay.crop: self.crop,
            RegionWay.crop_only: self.crop,
            RegionWay.drawn: self.drawn,
        }
        for way in self.ways:
            if tables[way] is None:
                raise ValueError(f"the way {way} is listed, but has no table of its settings")
        for way in (self.default, *([self.small.way] if self.small else [])):
            if way not in self.ways:
                raise ValueError(f"the way {way} is a default, but not listed in ways")


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint is published."""

    repo: str
    """OWNER/NAME on the Hub."""
    licence: str
    """Its licence, shown before the download."""
    revision: str = "main"
    """A branch, tag or commit."""
    size: int = 0
    """Estimated bytes to fetch; the Hub's list has precedence."""
    parameters: float = 0.0
    """Number of weights, in billions."""
    active: float | None = None
    """Weights used per token, in billions, of a mixture of experts."""
    gated: bool = False
    """Whether its terms must be accepted on the Hub first."""


@dataclass(frozen=True)
class ImageBudget:
    """Size of the images that a model sees: arguments of its image processor, by device."""

    cpu: Mapping[str, Any] = field(default_factory=dict)
    """On the CPU."""
    cuda: Mapping[str, Any] = field(default_factory=dict)
    """On CUDA."""
    square: bool = False
    """Whether an image is padded to a square, with the image processor's mean colour, before."""
    server_pixels: int = 1_048_576
    """Most pixels of an image that is sent to a server; a larger one is reduced to it. The server
    may reduce it further."""

    def __post_init__(self) -> None:
        if self.server_pixels < 1024:
            raise ValueError(f"server_pixels is {self.server_pixels}; at least 1024 are needed")


@dataclass(frozen=True)
class Task:
    """One fixed task of a model that takes no free questions (Florence-2)."""

    name: str
    """Name of the task, which is asked for as the question."""
    prompt: str
    """The prompt, with the field `{region}` if it is about a region."""
    questions: tuple[str, ...] = ()
    """Questions that ask for this task, without regard to case and final punctuation."""

    @property
    def about_region(self) -> bool:
        """Whether it is about one region; otherwise it is about the whole image."""
        return "{region}" in self.prompt


@dataclass(frozen=True)
class ChatCard:
    """What surrounds questions."""

    system: str = ""
    """System prompt; empty: none is given, and the chat template may have its own."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking`."""
    plain: str | None = None
    """The whole prompt, with `{question}`, of a model that has no chat template (PaliGemma)."""
    image_question: str = "Describe this image in one sentence."
    """`caption`'s question about a whole image."""
    region_question: str = "Describe <region1> in one short phrase."
    """`caption`'s question about a region."""
    multi_turn: bool = True
    """Whether a request may have a history."""
    multi_image: bool = True
    """Whether a prompt may hold several images."""
    tasks: tuple[Task, ...] = ()
    """Fixed tasks; empty: the model takes free questions."""

    def __post_init__(self) -> None:
        if self.plain is not None:
            check_pattern(self.plain, "plain", {"question"})


@dataclass(frozen=True)
class AnswerCard:
    """How answers are generated."""

    max_new_tokens: int = 128
    """Default length limit, in tokens."""
    temperature: float = 0.0
    """Default sampling temperature; 0 is greedy."""
    top_k: int = 0
    """Number of likeliest tokens to sample from; 0: all."""


@dataclass(frozen=True)
class VlmCard:
    """The card of one checkpoint."""

    name: str
    """Name on the command line."""
    family: str
    """The checkpoint's `model_type`; its table gives what the card does not."""
    summary: str
    """A one-line description."""
    regions: WaysCard
    """How regions are told."""
    source: CheckpointSource | None = None
    """Where it is published; None: a folder on this machine."""
    kind: str = "vlm"
    """The backend's; see `backends.base.KINDS`."""
    revision: str = "1"
    """Changes when answers do for a reason that is not in the card; see `identity`."""
    good_at: str = ""
    """What it is chosen for, in a few words."""
    recommended: str = ""
    """Why `models recommend` names it where it is the largest that fits; empty: it never does."""
    images: ImageBudget = ImageBudget()
    """Size of the images that the model sees."""
    chat: ChatCard = ChatCard()
    """What surrounds questions."""
    answers: AnswerCard = AnswerCard()
    """How answers are generated."""
    prefix: PrefixSharing = PrefixSharing.causal
    """What questions about one image share."""
    onnx_vision: bool = True
    """Whether the vision encoder is exported to ONNX."""
    max_regions: int = 8
    """Largest number of regions per question."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Sources of the conventions, for people."""

    @property
    def identity(self) -> str:
        """The revision, and a digest of what answers depend on, which users change in own cards."""
        regions = replace(self.regions, measured="")
        told = repr((self.family, regions, self.images, self.chat, self.answers))
        return f"{self.revision}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def __post_init__(self) -> None:
        ways: Sequence[RegionWay] = self.regions.ways
        if RegionWay.crop in ways and not self.chat.multi_image:
            raise ValueError("the way crop gives several images, but chat.multi_image is false")
        drawn = self.regions.drawn
        most = len(drawn.colors) if drawn and RegionWay.drawn in ways else self.max_regions
        if not 1 <= self.max_regions <= most:
            raise ValueError(
                f"max_regions is {self.max_regions}; it is at least 1, and at most the number of "
                "colors for drawn boxes"
            )
