"""Options of commands and of the Python API, each defined once.

An option is a field of a dataclass, declared by `option` with its flag, help text and range. The
command line derives from the fields (`regionqa.cli.options`); instances check their values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from math import inf
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Self, TypeVar, get_args

from regionqa.errors import BoxError, UsageError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox, parse_box

Choice = TypeVar("Choice", bound=StrEnum)
FLAG = "regionqa flag"
"""Key of a field's metadata that holds its `Flag`."""


class Section(IntEnum):
    """Sections of `--help`, in order; within one, options are listed as they are declared."""

    subject = 0
    """Images, boxes, data."""
    model = 1
    method = 2
    """How questions are asked, answers judged, or a model trained."""
    result = 3
    """What is written, and where."""
    runtime = 4
    """Device, precision, sizes."""
    record = 5
    """What else is recorded."""
    answer = 6
    """How an answer is chosen."""
    general = 7


@dataclass(frozen=True)
class Flag:
    """How a field appears on the command line."""

    help: str
    names: tuple[str, ...] = ()
    """Flags; empty: `--` and the field's name."""
    section: Section = Section.subject
    metavar: str | None = None
    """Name of the value in the help text; None: its type."""
    min: float | None = None
    max: float | None = None
    """With `min` only."""
    parse: type | None = None
    """Type of the value on the command line, if it is not the field's."""


def flag(help: str, *names: str, **others: Any) -> Mapping[str, Flag]:
    """Metadata that makes a dataclass field an option; `others` are further fields of `Flag`."""
    return MappingProxyType({FLAG: Flag(help, names, **others)})


def option(default: Any, help: str, *names: str, **others: Any) -> Any:
    """Declare a dataclass field that is an option, with a default (tuples, not lists).

    Args:
        default: The default.
        help: A noun phrase or an imperative.
        names: Flags, such as `"--model", "-m"`. None: `--` and the field's name.
        others: Further fields of `Flag`.
    """
    return field(default=default, metadata=flag(help, *names, **others))


def flags_of(kind: type) -> dict[str, Flag]:
    """Return the flags of a dataclass by field name."""
    return {item.name: item.metadata[FLAG] for item in fields(kind) if FLAG in item.metadata}


def flag_names(name: str, flag: Flag) -> tuple[str, ...]:
    """Return the flags of a field, as a user types them."""
    return flag.names or (f"--{name.replace('_', '-')}",)


def parse_choice(kind: type[Choice], value: str, name: str) -> Choice:
    """Return the enum member of this value; UsageError, naming the option, if there is none."""
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{name} {value!r}: must be one of {', '.join(kind)}") from None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Options:
    """Base of the option groups: checks ranges, then what options mean together.

    `repr` and `==` are methods here: generating them for every group would take a fifth of the time
    of `regionqa --help`.
    """

    def __post_init__(self) -> None:
        for name, flag in flags_of(type(self)).items():
            value, low, high = getattr(self, name), flag.min, flag.max
            if value is None or low is None or low <= value <= (inf if high is None else high):
                continue
            allowed = f"{low:g} or more" if high is None else f"from {low:g} to {high:g}"
            raise UsageError(f"{flag_names(name, flag)[0]} {value:g}: must be {allowed}")
        self.check()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and _values(other) == _values(self)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in _values(self))})"

    def check(self) -> None:
        """Raise UsageError for options that contradict each other."""

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """Make an instance of plain values, as a Python caller or a JSON request gives them.

        Strings become members of enums and paths where the field is one.

        Raises:
            UsageError: An option is unknown, or its value is not possible.
        """
        known = {item.name: item for item in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UsageError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**{name: _converted(known[name], value) for name, value in values.items()})


def _values(options: Options) -> tuple[tuple[str, Any], ...]:
    """Names and values of all fields."""
    return tuple((item.name, getattr(options, item.name)) for item in fields(options))


def _converted(item: Any, value: Any) -> Any:
    """The value as the type of its field, if it is a string that stands for something else."""
    if not isinstance(value, str):
        return value
    for kind in get_args(item.type) if isinstance(item.type, UnionType) else (item.type,):
        if isinstance(kind, type) and issubclass(kind, StrEnum):
            return parse_choice(kind, value, item.name.replace("_", " "))
        if kind is Path:
            return Path(value)
    return value


# -- choices ---------------------------------------------------------------------------------------


class DeviceChoice(StrEnum):
    """Where to run; `auto` is CUDA if it can be used, else the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DtypeChoice(StrEnum):
    """Precision of the language model; `auto` depends on the model and the device."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Quantize(StrEnum):
    """bitsandbytes' ways to keep a language model's matrices in fewer bits."""

    eight = "8bit"
    four = "4bit"


class OutputFormat(StrEnum):
    """Formats of answers."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


RESUMABLE = (OutputFormat.jsonl, OutputFormat.csv)
"""Formats in which every record is complete on its own."""


class RegionSource(StrEnum):
    """Input of a new region encoder."""

    levels = "levels"
    """Hidden states of the vision encoder (GPT4RoI)."""
    pixels = "pixels"
    """The image, at a higher resolution (PVIT)."""


# -- groups ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BoxOptions(Options):
    """Boxes to ask about, the same for every image or looked up in a file."""

    box: tuple[str, ...] = option(
        (), "Box; repeat for several.", "--box", "-b", metavar="X0,Y0,X1,Y1"
    )
    boxes: Path | None = option(
        None,
        "File or folder of boxes by image: COCO, Pascal VOC, YOLO, LabelMe, Label Studio, CSV or "
        "plain JSON.",
    )
    box_format: BoxFormat | None = option(
        None, "Meaning of a box's four numbers. Default: the file's, else xyxy."
    )
    box_units: BoxUnits | None = option(
        None, "Unit of a box's numbers. Default: the file's, else pixel."
    )

    def check(self) -> None:
        """Refuse two sources of boxes, and boxes that are not four numbers."""
        if self.box and self.boxes is not None:
            raise UsageError("--box and --boxes: give one of the two, not both")
        self.written()

    def written(self) -> tuple[WrittenBox, ...]:
        """Return the boxes of `--box`, in the convention they are written in."""
        try:
            return tuple(map(self.parse_box, self.box))
        except BoxError as error:  # wrong for every image, so it ends the command
            raise UsageError(f"--box: {error}") from None

    def parse_box(self, text: str) -> WrittenBox:
        """Parse a box in the convention of these options; BoxError if it is malformed."""
        form, units = self.box_format or BoxFormat.xyxy, self.box_units or BoxUnits.pixel
        return WrittenBox(parse_box(text), form, units)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RuntimeOptions(Options):
    """The model, and how it is run."""

    model: str = option(
        "starter",
        "Name of a shipped model, folder of a bundle, or OWNER/NAME on the Hub.",
        "--model",
        "-m",
        section=Section.model,
    )
    device: DeviceChoice = option(
        DeviceChoice.auto,
        "Device; cuda never falls back to the CPU.",
        section=Section.runtime,
    )
    dtype: DtypeChoice = option(
        DtypeChoice.auto,
        "Precision; auto is float32 for small models, half precision for large ones.",
        section=Section.runtime,
    )
    quantize: Quantize | None = option(
        None,
        "Quantize the language model; needs CUDA and the extra `quantize`.",
        section=Section.runtime,
    )
    batch_size: int = option(
        16,
        "Questions decoded together; 1 answers each line of stdin at once.",
        section=Section.runtime,
        min=1,
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class GenerationOptions(Options):
    """How answers are generated."""

    max_new_tokens: int | None = option(
        None,
        "Maximum length of an answer in tokens. Default: the model's.",
        section=Section.runtime,
        min=1,
    )
    guess: bool = option(False, "Answer even if the model is not sure.", section=Section.answer)
    unsure_below: float | None = option(
        None,
        "Confidence below which the model says that it is not sure. Default: the model's.",
        section=Section.answer,
        min=0,
        max=1,
    )
    temperature: float | None = option(
        None,
        "Sampling temperature; 0 is greedy. Default: the model's.",
        section=Section.answer,
        min=0,
    )
    seed: int = option(0, "Random seed.", section=Section.answer)

    def check(self) -> None:
        """Refuse a threshold together with --guess, which sets none."""
        if self.guess and self.unsure_below is not None:
            raise UsageError(
                "--guess: answers at any confidence, so --unsure-below has no effect; drop one"
            )

    @property
    def threshold(self) -> float | None:
        """Confidence below which answers are held back; 0: none is; None: the model's."""
        return 0.0 if self.guess else self.unsure_below


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class OutputOptions(Options):
    """What is written, where and how."""

    format: OutputFormat = option(
        OutputFormat.text, "Output format.", "--format", "-f", section=Section.result
    )
    out: Path | None = option(
        None, "Write to this file instead of stdout.", "--out", "-o", section=Section.result
    )
    resume: bool = option(
        False, "Continue --out where an earlier run stopped.", section=Section.result
    )
    retry_errors: bool = option(
        False, "With --resume: repeat requests that failed.", section=Section.result
    )
    draw: Path | None = option(
        None,
        "Draw boxes and answers: a .png, .jpg or .webp; a folder for several images.",
        section=Section.result,
    )
    timing: bool = option(
        False, "Write the time per answer (`ms`) in JSON and CSV.", section=Section.record
    )
    confidence: bool = option(
        False, "Write the confidence, 0 to 1, in JSON and CSV.", section=Section.record
    )
    quiet: bool = option(
        False, "No warnings, no progress.", "--quiet", "-q", section=Section.general
    )

    def check(self) -> None:
        """Refuse to resume what cannot be resumed."""
        if self.retry_errors and not self.resume:
            raise UsageError("--retry-errors: applies to --resume only; add --resume")
        if self.resume and self.out is None:
            raise UsageError("--resume: needs the file to continue; add --out FILE")
        if self.resume and self.format not in RESUMABLE:
            raise UsageError(f"--resume: {self.format} cannot be resumed; use --format jsonl")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ImageFolderOptions(Options):
    """Where the images named in a file lie."""

    images: Path | None = option(
        None, "Folder that image names are relative to. Default: the file's."
    )


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class EvaluationOptions(ImageFolderOptions):
    """What the commands of `eval` share."""

    compare: tuple[str, str] | None = option(
        None,
        "Compare two models instead of --model: results of both, and the difference.",
        metavar="A B",
        section=Section.model,
    )
    answers: Path | None = option(
        None,
        "Cache answers in this JSON-lines file; answers it holds are not generated again.",
        section=Section.result,
    )
    json: Path | None = option(None, "Write the results as JSON.", section=Section.result)
    plot: Path | None = option(
        None, "Plot the results: a .png, .svg or .pdf.", section=Section.result
    )
    limit: int | None = option(
        None,
        "Number of items to evaluate; the first ones are taken.",
        section=Section.result,
        min=1,
    )
    unsure_below: float | None = option(
        None,
        "Confidence below which an answer counts as not sure. Default: the model's.",
        section=Section.result,
        min=0,
        max=1,
    )
