"""`data`: check, convert and generate training data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.finetune import is_checkpoint
from regionqa.cli.options import GENERATE, only, require, with_options
from regionqa.data.sources.kinds import DatasetOptions
from regionqa.errors import SOME_FAILED, UsageError
from regionqa.flags import Reads, Writes
from regionqa.generation.options import DataGenerationOptions
from regionqa.options import BoxOptions, ImageFolderOptions, OutputOptions, RuntimeOptions

if TYPE_CHECKING:
    from regionqa.data.records import TrainingData
    from regionqa.generation.run import GenerationSummary
    from regionqa.generation.sources import ReplySource
    from regionqa.generation.tasks import TaskPlan
    from regionqa.pipeline.console import Console


data_app = typer.Typer(help="Check, convert and generate training data.", no_args_is_help=True)

Convention = Annotated[BoxOptions, only("box_format", "box_units", "scale_boxes")]
DataFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="JSON lines of image, regions and conversations, a JSON array of LLaVA or PVIT, or "
        "boxes with labels in any format that `ask --boxes` reads.",
    ),
    Reads.data,
]


@data_app.command()
@with_options
def check(
    file: DataFile,
    *,
    folder: ImageFolderOptions,
    boxes: Convention,
    runtime: Annotated[RuntimeOptions, only("model")],
    fast: Annotated[
        bool, typer.Option("--fast", help="Read only the headers of images instead of decoding.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Number of problems to list; 0 is all.")] = 20,
    draw: Annotated[
        int, typer.Option(min=0, help="Number of images to draw, with regions and turns.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="With --draw: folder of the drawings."),
        Writes.drawings,
    ] = None,
    output: Annotated[OutputOptions, only("overwrite")],
) -> int:
    """Summarise a file and list its problems; exit status 3 if some records are bad.

    A record is bad if finetune cannot train --model on it, as where it is too long.

    regionqa data check mine.jsonl --draw 10 --out drawn
    """
    from regionqa.bundles.store import find_bundle
    from regionqa.data.check import decoded, summarise
    from regionqa.data.english import counted
    from regionqa.finetune.dataset import FitsRecords, sample_builder
    from regionqa.pipeline.console import Console
    from regionqa.pipeline.draw_records import draw_examples

    if bool(draw) != (out is not None):
        raise UsageError("--draw and --out go together: --draw 10 --out FOLDER")
    failed: list[str] = []
    console = Console()
    builder: FitsRecords
    if is_checkpoint(runtime.model):
        from regionqa.finetune.vlm.base import builder_of

        builder = builder_of(runtime.model)
    else:
        builder = sample_builder(find_bundle(runtime.model))
    data = read_data(file, folder, boxes, console)
    if not fast:
        data = decoded(data, console.warn)
    data = data.with_problems(builder.fitting(data.records)[1])
    for line in summarise(data).lines(show):
        print(line)
    data.or_stop(skip_bad=True)
    if out is not None:
        written = draw_examples(data, draw, out, failed.append, overwrite=output.overwrite)
        print(f"\n{counted(len(written), 'image')} drawn in {out}")
    for message in failed:
        console.error(message)
    return SOME_FAILED if data.problems or failed else 0


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
    from regionqa.pipeline.console import Console

    console = Console()
    if dataset.kind is not None:
        convert_dataset(file, out, dataset, folder, boxes, skip_bad, console)
        return
    data = read_data(file, folder, boxes, console)
    data = data.or_stop(skip_bad=skip_bad)
    write_training_data(out, data.records)
    if data.bad:
        console.error(f"{file}: {counted(data.bad, 'bad record')} left out")
    print(f"{counted(len(data.records), 'record')} written to {out}")


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
    print(f"{counted(conversion.records, 'record')} with {regions} written to {out}")


@data_app.command()
@with_options
def generate(
    file: DataFile,
    *,
    folder: ImageFolderOptions,
    boxes: Convention,
    runtime: Annotated[
        RuntimeOptions, only("server", "server_model", "server_timeout", "device", "dtype")
    ],
    options: DataGenerationOptions,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad records out instead of stopping.")
    ] = False,
    output: Annotated[OutputOptions, only("overwrite", "quiet")],
) -> int:
    """Generate conversations about regions from annotations, by a language model.

    Exit status 3 if some requests had no reply.

    regionqa data generate instances.json --images photos --server http://localhost:8000 --out
    generated.jsonl --judge
    """
    from regionqa.data.english import counted
    from regionqa.generation.annotations import annotated_images
    from regionqa.generation.tasks import plan_tasks
    from regionqa.pipeline.console import Console
    from regionqa.pipeline.guard import NamedFiles, guarded

    reads = NamedFiles("FILE", Reads.data, (str(file),))
    derived = [NamedFiles("replies beside --out", Writes.results, (str(options.replies_file),))]
    if options.rejected is None:
        name = str(options.rejected_file)
        derived.append(NamedFiles("--rejected", Writes.results, (name,)))
    with (
        guarded([reads, *derived], resume=options.resume, overwrite=output.overwrite),
        Console(quiet=output.quiet) as console,
    ):
        source = _source(runtime, options)
        data = read_data(file, folder, boxes, console).or_stop(skip_bad=skip_bad)
        if data.bad:
            console.error(f"{file}: {counted(data.bad, 'bad record')} left out")
        plan = plan_tasks(
            annotated_images(data),
            options.chosen_kinds,
            options.per_image,
            options.seed,
            options.part,
        )
        summary = _generated(plan, source, options, console)
        for line in summary.remarks():
            console.note(line)
    for line in summary.lines(options):
        print(line)
    return SOME_FAILED if summary.failed else 0


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


def _source(runtime: RuntimeOptions, options: DataGenerationOptions) -> "ReplySource":
    """Find the language model: a server's, or one on this machine."""
    from regionqa.backends.server.client import only_model, read_address
    from regionqa.bundles.hub import local_or_hub
    from regionqa.generation.local import LocalSource
    from regionqa.generation.sources import ServerSource

    if runtime.server is None and options.text_model is None:
        raise UsageError(
            "data generate: name a server of a language model with --server URL, or a model on "
            "this machine with --text-model (docs/guide/data.md)"
        )
    require("data generate", "generate", GENERATE)
    if runtime.server is None:
        name = str(options.text_model)
        return LocalSource(name, local_or_hub(name), runtime.device, runtime.dtype)
    address = read_address(runtime.server)
    model = runtime.server_model or only_model(address, runtime.server_timeout)
    return ServerSource(address, model, runtime.server_timeout, options.server_concurrency)


def _generated(
    plan: "TaskPlan", source: "ReplySource", options: DataGenerationOptions, console: "Console"
) -> "GenerationSummary":
    """Carry out a plan, and close what it needs."""
    from regionqa.files import is_filled
    from regionqa.generation.run import generate_data
    from regionqa.generation.sources import ReplyJournal

    if options.resume and is_filled(options.out) and not is_filled(options.replies_file):
        raise UsageError(
            f"{options.replies_file}: is missing or empty, and holds the replies of {options.out}; "
            "restore it, or start anew with --overwrite instead of --resume"
        )
    journal = ReplyJournal(options.replies_file, resume=options.resume)
    try:
        return generate_data(
            plan,
            source,
            options,
            journal,
            lambda made: console.track(made, "tasks", len(plan.tasks)),
        )
    finally:
        source.close()
        journal.close()
