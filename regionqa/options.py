"""Options of commands and of the Python API, each defined once.

An option is a field of a dataclass, declared by `regionqa.flags.option`.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from regionqa.errors import BoxError, UsageError
from regionqa.flags import Options, Reads, Section, Writes, option
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox, parse_box

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


class RegionWay(StrEnum):
    """How a vision-language model is told which region a question is about."""

    coordinates = "coordinates"
    """As text, in the unit that the model was trained with."""
    crop = "crop"
    """As a further image: the region, enlarged from the original pixels."""
    crop_only = "crop-only"
    """As the only image."""
    drawn = "drawn"
    """As a box drawn on the image."""


class VisionRuntime(StrEnum):
    """Where a vision-language model's vision encoder runs; `auto` is ONNX Runtime if exported."""

    auto = "auto"
    onnx = "onnx"
    torch = "torch"


class OutputFormat(StrEnum):
    """Formats of answers."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


RESUMABLE = (OutputFormat.jsonl, OutputFormat.csv)
"""Formats in which every record is complete on its own."""


CONCURRENCY = 8
"""Default of --server-concurrency."""


class RegionSource(StrEnum):
    """Input of a new region encoder."""

    levels = "levels"
    """Hidden states of the vision encoder (GPT4RoI)."""
    pixels = "pixels"
    """The image, at a higher resolution (PVIT)."""


# -- groups ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class InputOptions(Options):
    """How stdin is read."""

    null: bool = option(False, "Names on stdin end in NUL, as from find -print0.", "--null", "-0")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class BoxOptions(Options):
    """Boxes to ask about, the same for every image or looked up in a file."""

    box: tuple[str, ...] = option(
        (), "Box; repeat for several.", "--box", "-b", metavar="X0,Y0,X1,Y1"
    )
    boxes: Path | None = option(
        None,
        "File or folder of boxes by image: COCO, Pascal VOC, YOLO, CVAT, LabelMe, Label Studio, "
        "CSV, JSON and others (docs/guide/boxes.md); auto or auto:MODEL detects them.",
        role=Reads.data,
    )
    box_format: BoxFormat | None = option(
        None,
        "Meaning of a box's four numbers. Default: the file's, else xyxy.",
        needs=("box", "boxes"),
    )
    box_units: BoxUnits | None = option(
        None,
        "Unit of a box's numbers. Default: the file's, else pixel.",
        needs=("box", "boxes"),
    )

    scale_boxes: bool = option(
        False,
        "Scale boxes from the image's size that their file states to that of the image.",
        needs=("boxes",),
    )

    masks: bool = option(
        False,
        "Take the masks of --boxes too: of COCO, or of JSON as this program writes it.",
        needs=("boxes",),
        excludes=("scale_boxes",),
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
        "Name (regionqa models list), folder, or OWNER/NAME on the Hub.",
        "--model",
        "-m",
        section=Section.model,
        role=Reads.model,
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
    way: RegionWay | None = option(
        None,
        "How a vision-language model is told a region. Default: its card's.",
        section=Section.runtime,
    )
    vision_runtime: VisionRuntime = option(
        VisionRuntime.auto,
        "Where a vision-language model's vision encoder, or a detector, runs; auto is onnx if it "
        "was exported.",
        section=Section.runtime,
    )
    cache: Path | None = option(
        None,
        "Folder in which a vision-language model's encoded images are kept for further runs.",
        section=Section.runtime,
        role=Writes.shared,
    )
    cache_size: float = option(
        10.0,
        "Limit on --cache in GB; the images unused for longest are removed.",
        section=Section.runtime,
        needs=("cache",),
        min=0.001,
    )
    batch_size: int = option(
        16,
        "Questions decoded together; 1 answers each line of stdin at once.",
        section=Section.runtime,
        min=1,
    )
    server: str | None = option(
        None,
        "Ask a server that speaks OpenAI's chat protocol (docs/guide/servers.md); --model names "
        "the card of its model.",
        metavar="URL",
        section=Section.model,
    )
    server_model: str | None = option(
        None,
        "The server's name of its model. Default: the only one it has.",
        metavar="NAME",
        section=Section.model,
        needs=("server",),
    )
    server_concurrency: int = option(
        CONCURRENCY,
        "Questions that the server is asked at the same time, at most --batch-size.",
        section=Section.runtime,
        needs=("server",),
        min=1,
    )
    server_timeout: float = option(
        300.0,
        "Seconds to wait for the server to begin or continue an answer.",
        section=Section.runtime,
        needs=("server",),
        min=0.1,
    )

    def check(self) -> None:
        """Refuse what a server does not follow, and a server that is none."""
        if self.server is None:
            if self.server_model is not None:
                raise UsageError("--server-model: has no effect without --server; add it")
            return
        own = (self.device, self.dtype, self.quantize)
        if own != (DeviceChoice.auto, DtypeChoice.auto, None):
            raise UsageError(
                "--server: runs its model as it was started, so --device, --dtype and --quantize "
                "have no effect; drop them"
            )
        if self.vision_runtime is not VisionRuntime.auto or self.cache is not None:
            raise UsageError(
                "--server: encodes images itself, so --vision-runtime and --cache have no effect; "
                "drop them"
            )
        if self.server_concurrency > max(self.batch_size, CONCURRENCY):
            raise UsageError(
                f"--server-concurrency {self.server_concurrency}: at most --batch-size "
                f"({self.batch_size}) questions are asked together; raise --batch-size too"
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
    choices: tuple[str, ...] = option(
        (),
        "Allowed answers, separated by commas; the likeliest is given.",
        metavar="A,B,...",
        section=Section.answer,
        excludes=("schema", "temperature", "max_new_tokens"),
    )
    schema: Path | None = option(
        None,
        "JSON schema that every answer satisfies; for models that list structured answers.",
        section=Section.answer,
        role=Reads.data,
    )

    def check(self) -> None:
        """Refuse a threshold together with --guess, which sets none."""
        if self.guess and self.unsure_below is not None:
            raise UsageError(
                "--guess: answers at any confidence, so --unsure-below has no effect; drop one"
            )
        if any(not part for part in self._parts):
            raise UsageError(
                f"--choices {','.join(self.choices)}: has an empty answer; remove a comma, or use "
                "'choices' of a request for an answer that has commas"
            )
        if self.choices and len(self.allowed) < 2:
            raise UsageError("--choices: give at least two, separated by commas")

    @property
    def allowed(self) -> tuple[str, ...]:
        """The allowed answers, each once; empty: any answer is."""
        return tuple(dict.fromkeys(self._parts))

    @property
    def _parts(self) -> list[str]:
        return [part.strip() for text in self.choices for part in text.split(",")]

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
        None,
        "Write to this file instead of stdout.",
        "--out",
        "-o",
        section=Section.result,
        role=Writes.results,
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
        role=Writes.drawings,
    )
    overwrite: bool = option(False, "Replace existing output files.", section=Section.result)
    timing: bool = option(
        False, "Write the time per answer (`ms`) in JSON and CSV.", section=Section.record
    )
    confidence: bool = option(
        False, "Write the confidence, 0 to 1, in JSON and CSV.", section=Section.record
    )
    show_prompt: bool = option(
        False,
        "Print what the model is given, exactly, on stderr.",
        section=Section.record,
    )
    quiet: bool = option(
        False, "No warnings, no progress.", "--quiet", "-q", section=Section.general
    )

    def check(self) -> None:
        """Refuse to resume what cannot be resumed, and to write what a format does not hold."""
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite: contradict each other; drop one")
        if self.retry_errors and not self.resume:
            raise UsageError("--retry-errors: applies to --resume only; add --resume")
        if self.resume and self.out is None:
            raise UsageError("--resume: needs the file to continue; add --out FILE")
        if self.resume and self.format not in RESUMABLE:
            raise UsageError(f"--resume: {self.format} cannot be resumed; use --format jsonl")
        for flag, given in (("--timing", self.timing), ("--confidence", self.confidence)):
            if given and self.format is OutputFormat.text:
                raise UsageError(f"{flag}: is not written as text; add --format jsonl, json or csv")


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ImageFolderOptions(Options):
    """Where the images named in a file lie."""

    images: Path | None = option(
        None,
        "Folder that image names are relative to. Default: the file's.",
        role=Reads.images,
    )
