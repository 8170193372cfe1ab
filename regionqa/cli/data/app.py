"""The group of commands `data`, and the arguments that they share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.options import only
from regionqa.flags import Reads
from regionqa.options import BoxOptions, ImageFolderOptions

if TYPE_CHECKING:
    from regionqa.data.records import TrainingData
    from regionqa.data.streams.training import TrainingStream
    from regionqa.pipeline.console import Console


data_app = typer.Typer(
    help="Check, look at, convert and generate training data.", no_args_is_help=True
)

Convention = Annotated[BoxOptions, only("box_format", "box_units", "scale_boxes")]
DATA_HELP = (
    "JSON lines of image, regions and conversations, a JSON array of LLaVA or PVIT, or "
    "boxes with labels in any format that `ask --boxes` reads."
)
DataFile = Annotated[Path, typer.Argument(metavar="FILE", help=DATA_HELP), Reads.data]


def read_data(
    file: Path, folder: ImageFolderOptions, boxes: Convention, console: "Console"
) -> "TrainingData":
    """Read training data as the options say, and warn of its remarks."""
    from regionqa.data.files import read_training_data

    data = read_training_data(
        file,
        folder.images,
        format=boxes.box_format,
        units=boxes.box_units,
        scale_boxes=boxes.scale_boxes,
    )
    for line in data.remarks:
        console.warn(line)
    return data


def open_data(
    file: Path, folder: ImageFolderOptions, boxes: Convention, console: "Console"
) -> "TrainingStream":
    """Open training data as the options say, to read it record by record."""
    from regionqa.data.streams.training import open_training_stream

    stream = open_training_stream(
        file,
        folder.images,
        format=boxes.box_format,
        units=boxes.box_units,
        scale_boxes=boxes.scale_boxes,
    )
    for line in stream.remarks:
        console.warn(line)
    return stream
