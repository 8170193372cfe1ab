"""`data convert` and `data kinds`: other data as training records."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.data.app import Convention, data_app, open_data
from regionqa.cli.options import only, with_options
from regionqa.data.sources.kinds import DatasetOptions
from regionqa.errors import UsageError
from regionqa.flags import Reads, Writes
from regionqa.options import ImageFolderOptions, OutputOptions

if TYPE_CHECKING:
    from regionqa.pipeline.console import Console


@data_app.command()
@with_options
def convert(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Training data, or boxes with labels, in any format; with --kind, the file or "
            "folder of a dataset.",
        ),
        Reads.data,
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="JSON-lines file to write."), Writes.results
    ],
    *,
    dataset: DatasetOptions,
    folder: ImageFolderOptions,
    boxes: Convention,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out instead of stopping.")
    ] = False,
    output: Annotated[OutputOptions, only("overwrite")],
) -> None:
    """Convert training data of any format, or a public dataset, to JSON lines.

    regionqa data convert instances.json --images photos --out mine.jsonl

    regionqa data convert "refs(unc).p" --kind refcoco --images train2014 --out refcoco.jsonl
    """
    from regionqa.data.convert import write_training_data
    from regionqa.data.english import counted
    from regionqa.data.streams.training import UsableRecords
    from regionqa.pipeline.console import Console

    console = Console()
    if dataset.kind is not None:
        convert_dataset(file, out, dataset, folder, boxes, skip_bad, console)
        return
    usable = UsableRecords(open_data(file, folder, boxes, console), dataset.part)
    with console:
        records = (record for _, record in usable.or_stop(skip_bad=skip_bad))
        write_training_data(out, console.track(records, "records"))
    if usable.counts.bad:
        console.error(f"{file}: {counted(usable.counts.bad, 'bad record')} left out")
    print(f"{counted(usable.counts.records, 'record')}{dataset.part.suffix} written to {out}")


@data_app.command()
@with_options
def kinds() -> None:
    """List the datasets that convert --kind reads, and the files that each needs.

    regionqa data kinds
    """
    from regionqa.data.sources.kinds import KINDS

    for kind, entry in KINDS.items():
        print(f"{kind}: {entry.help}")
        print(f"  FILE: {entry.file}")
        if entry.annotations:
            print(f"  --annotations: {entry.annotations}")


@data_app.command()
@with_options
def mixtures(
    name: Annotated[
        str | None, typer.Argument(help="Mixture to print. Default: list them.")
    ] = None,
) -> None:
    """Print a mixture of data files, as the papers train on it; finetune --mixture reads it.

    regionqa data mixtures gpt4roi > gpt4roi.toml
    """
    from regionqa.data.mixtures.reading import shipped_mixtures

    known = shipped_mixtures()
    if name is None:
        for each, text in known.items():
            print(f"{each}\t{text.partition(chr(10))[0].removeprefix('# ')}")
    elif name in known:
        print(known[name], end="")
    else:
        raise UsageError(f"data mixtures {name!r}: must be one of {', '.join(known)}")


def convert_dataset(
    file: Path,
    out: Path,
    options: DatasetOptions,
    folder: ImageFolderOptions,
    boxes: Convention,
    skip_bad: bool,
    console: "Console",
) -> None:
    """Convert a public dataset, and report what was left out."""
    from regionqa.boxes.entries import Convention as BoxConvention
    from regionqa.data.convert import write_training_data
    from regionqa.data.datasets import open_dataset
    from regionqa.data.english import counted

    conversion = open_dataset(
        file,
        options,
        folder.images,
        convention=BoxConvention(boxes.box_format, boxes.box_units),
        scale_boxes=boxes.scale_boxes,
    )
    with console:
        records = conversion.usable(skip_bad=skip_bad)
        write_training_data(out, console.track(records, f"{options.kind}"))
    for line in (*conversion.remarks, *conversion.sizes.summary):
        console.warn(line)
    for line in conversion.summary():
        console.warn(f"{file}: {line}")
    if conversion.bad:
        for problem in conversion.problems:
            console.error(str(problem))
        console.error(f"{file}: {counted(conversion.bad, 'bad record')} left out")
    regions = counted(conversion.regions, "region")
    told = f"{counted(conversion.records, 'record')} with {regions}{conversion.shard.suffix}"
    print(f"{told} written to {out}")
