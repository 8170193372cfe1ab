"""Options that several commands share, each written once."""

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from regionqa.errors import UsageError
from regionqa.regions import BoxFormat, BoxUnits


class DeviceChoice(StrEnum):
    """Values of --device."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DtypeChoice(StrEnum):
    """Values of --dtype."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class QuantizeChoice(StrEnum):
    """Values of --quantize, the same as `precision.Quantize`."""

    eight = "8bit"
    four = "4bit"


class Format(StrEnum):
    """Values of --format, the same as `outputs.OutputFormat`."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A shipped model, a bundle's folder, or OWNER/NAME on the Hub."
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", "-b", metavar="X0,Y0,X1,Y1", help="A box; repeat for more."),
]
BoxesFile = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        help="Boxes of many images: COCO, Pascal VOC, YOLO, LabelMe, Label Studio, CSV or plain "
        "JSON; a file, or a folder of files.",
    ),
]
BoxForm = Annotated[
    BoxFormat | None, typer.Option("--box-format", help="What four numbers mean; xyxy if not said.")
]
BoxUnit = Annotated[
    BoxUnits | None, typer.Option("--box-units", help="What one unit is; pixel if not said.")
]
OutFormat = Annotated[Format, typer.Option("--format", "-f", help="How answers are written.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write to this file, not stdout.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with --out where an earlier run ended.")
]
RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="With --resume: ask again what failed.")
]
Draw = Annotated[
    Path | None,
    typer.Option(help="Draw boxes and answers: a .png, .jpg or .webp; a folder for many images."),
]
Device = Annotated[DeviceChoice, typer.Option(help="Where to run; cuda never falls back.")]
Dtype = Annotated[
    DtypeChoice,
    typer.Option(help="Precision; auto: float32 for small models, half of it for large ones."),
]
Quantize = Annotated[
    QuantizeChoice | None,
    typer.Option(help="Language model in fewer bits; on CUDA, with the extra `quantize`."),
]
BatchSize = Annotated[
    int,
    typer.Option(min=1, help="Questions decoded together; 1 answers each line of stdin at once."),
]
Longest = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
Timing = Annotated[bool, typer.Option("--timing", help="Fill in `ms` in JSON and CSV.")]
Confidence = Annotated[
    bool, typer.Option("--confidence", help="Tell in JSON and CSV how sure the model is, 0 to 1.")
]
Guess = Annotated[bool, typer.Option("--guess", help="Answer also where the model is not sure.")]
UnsureBelow = Annotated[
    float | None,
    typer.Option(
        "--unsure-below",
        min=0,
        max=1,
        help="Say so, rather than guess, where an answer is less probable than this.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(min=0, help="How random answers are; 0: not at all. The model knows its own."),
]
Seed = Annotated[
    int, typer.Option(help="Of what is random; the same seed and question, the same answer.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No warnings, no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]


EXPORT = ("onnxscript", "tomli_w")
FINETUNE = (*EXPORT, "accelerate", "peft", "tensorboard", "matplotlib")
PLOT = ("matplotlib",)
EVAL = (*PLOT, "sentence_transformers")
"""Packages of the extras in pyproject.toml, by the names they are imported as."""


def require(command: str, extra: str, packages: tuple[str, ...]) -> None:
    """UsageError, naming the extra, where a command's packages are not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"{command} needs {missing[0]}, which is not installed: pip install 'regionqa[{extra}]'"
        )
