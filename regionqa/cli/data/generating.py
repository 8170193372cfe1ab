"""`data generate`: training data written by a language model."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.cli.data.app import Convention, DataFile, data_app, open_data
from regionqa.cli.options import GENERATE, only, require, with_options
from regionqa.errors import SOME_FAILED, UsageError
from regionqa.flags import Reads, Writes
from regionqa.generation.options import DataGenerationOptions
from regionqa.options import ImageFolderOptions, OutputOptions, RuntimeOptions

if TYPE_CHECKING:
    from regionqa.engine import Engine
    from regionqa.generation.run import GenerationSummary
    from regionqa.generation.sources import ReplySource
    from regionqa.generation.tasks import TaskPlan
    from regionqa.pipeline.console import Console


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
    from regionqa.data.streams.disk_index import RecordsByImage
    from regionqa.data.streams.training import UsableRecords
    from regionqa.generation.annotations import annotated_images
    from regionqa.generation.tasks import TaskPlan
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
        stream = open_data(file, folder, boxes, console)
        usable = UsableRecords(stream)
        with closing(RecordsByImage(stream)) as images:
            for key, record in console.track(usable.or_stop(skip_bad=skip_bad), "records"):
                images.add(key, record.image)
            if usable.counts.bad:
                console.error(f"{file}: {counted(usable.counts.bad, 'bad record')} left out")
            plan = TaskPlan(
                annotated_images(images, stream.source),
                options.chosen_kinds,
                options.per_image,
                options.seed,
                options.part,
            )
            summary = _generated(plan, source, options, runtime, console)
        for line in summary.remarks():
            console.note(line)
    for line in summary.lines(options):
        print(line)
    return SOME_FAILED if summary.failed else 0


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


def _vision_model(name: str, runtime: RuntimeOptions) -> "Engine":
    """Load the model that looks at regions, on this machine."""
    from regionqa.engine import Engine

    return Engine.load(
        options=RuntimeOptions(model=name, device=runtime.device, dtype=runtime.dtype)
    )


def _generated(
    plan: "TaskPlan",
    source: "ReplySource",
    options: DataGenerationOptions,
    runtime: RuntimeOptions,
    console: "Console",
) -> "GenerationSummary":
    """Carry out a plan, with a vision model if there is one, and close what it needs."""
    from regionqa.files import is_filled
    from regionqa.generation.looking import RegionLooker
    from regionqa.generation.run import generate_data
    from regionqa.generation.sources import ReplyJournal

    if options.resume and is_filled(options.out) and not is_filled(options.replies_file):
        raise UsageError(
            f"{options.replies_file}: is missing or empty, and holds the replies of {options.out}; "
            "restore it, or start anew with --overwrite instead of --resume"
        )
    journal = ReplyJournal(options.replies_file, resume=options.resume)
    try:
        looker = None
        if options.look_with is not None:
            looker = RegionLooker(_vision_model(options.look_with, runtime), journal)
            plan.look = looker.look
        summary = generate_data(
            plan, source, options, journal, lambda made: console.track(made, "tasks")
        )
        for line in looker.remarks() if looker else ():
            console.note(line)
        return summary
    finally:
        source.close()
        journal.close()
