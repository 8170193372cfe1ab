"""`data`: training data looked at before anything trains on it, and converted."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.options import with_options

SOME_FAILED = 3

data_app = typer.Typer(help="Training data: check it, convert it.", no_args_is_help=True)

DataFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="JSON lines of image, regions and conversations; a JSON array of LLaVA or PVIT; or "
        "COCO instances.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(help="The folder that names of images start from; the file's own if not said."),
]


@data_app.command()
@with_options
def check(
    file: DataFile,
    images: Images = None,
    show: Annotated[int, typer.Option(min=0, help="Problems that are listed; 0: all.")] = 20,
    draw: Annotated[
        int, typer.Option(min=0, help="Draw this many images with their regions and turns.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --draw: the folder.")
    ] = None,
) -> int:
    """Say what a file holds and all that is wrong with it; 3 where some records are bad.

    regionqa data check mine.jsonl --draw 10 --out drawn
    """
    from regionqa.data.check import summarise
    from regionqa.data.english import counted
    from regionqa.data.files import read_training_data
    from regionqa.errors import UsageError
    from regionqa.pipeline.draw_records import draw_examples

    if bool(draw) != (out is not None):
        raise UsageError("--draw and --out go together: --draw 10 --out FOLDER")
    data = read_training_data(file, images)
    for line in summarise(data).lines(show):
        print(line)
    data.or_stop(skip_bad=True)
    broken: list[str] = []
    if out is not None:
        written = draw_examples(data, draw, out, broken.append)
        print(f"\n{counted(len(written), 'image')} drawn in {out}")
    for message in broken:
        print(f"regionqa: {message}", file=sys.stderr)
    return SOME_FAILED if data.problems or broken else 0


@data_app.command()
@with_options
def convert(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of JSON lines to write.")],
    images: Images = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out, rather than stop.")
    ] = False,
) -> None:
    """Write training data of any format as JSON lines, the format to edit and to keep.

    regionqa data convert instances.json --images photos --out mine.jsonl
    """
    from regionqa.data.convert import write_training_data
    from regionqa.data.english import counted
    from regionqa.data.files import read_training_data
    from regionqa.errors import UsageError

    if out.exists() and file.exists() and out.samefile(file):
        raise UsageError(f"--out {out}: is the file to be read; name another")
    data = read_training_data(file, images).or_stop(skip_bad=skip_bad)
    write_training_data(out, data.records)
    if data.bad:
        print(f"regionqa: {file}: {counted(data.bad, 'bad record')} left out", file=sys.stderr)
    print(f"{counted(len(data.records), 'record')} written to {out}")
