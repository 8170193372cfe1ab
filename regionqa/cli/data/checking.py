"""`data check`, `data stats` and `data look`: what is in training data."""

from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.data.app import DATA_HELP, Convention, DataFile, data_app, open_data, read_data
from regionqa.cli.finetune import is_checkpoint
from regionqa.cli.options import only, with_options
from regionqa.errors import SOME_FAILED, UsageError
from regionqa.flags import Reads, Writes
from regionqa.options import ImageFolderOptions, OutputOptions, RuntimeOptions


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
    from regionqa.finetune.batches.dataset import FitsRecords, sample_builder
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
def stats(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help=f"Files to count together, each {DATA_HELP}"),
        Reads.data,
    ],
    *,
    folder: ImageFolderOptions,
    boxes: Convention,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures as JSON."), Writes.results
    ] = None,
    output: Annotated[OutputOptions, only("overwrite", "quiet")],
) -> int:
    """Count what files hold: sizes, kinds, lengths, words, duplicates; exit status 3 if some
    records are bad.

    regionqa data stats refcoco.jsonl gqa.jsonl
    """
    import json

    from regionqa.data.overview.statistics import DataStatistics
    from regionqa.files import write_whole
    from regionqa.pipeline.console import Console

    found = DataStatistics()
    with Console(quiet=output.quiet) as console:
        for file in console.track(files, "files", len(files)):
            found.add_file(open_data(file, folder, boxes, console))
        for line in found.remarks():
            console.note(line)
    if not found.records:
        for counts, file in zip(found.problems, files, strict=True):
            counts.or_stop(file, skip_bad=True)
    if json_file is not None:
        with write_whole(json_file) as out:
            out.write((json.dumps(found.document(), indent=1, ensure_ascii=False) + "\n").encode())
    for line in found.lines():
        print(line)
    return SOME_FAILED if found.bad else 0


@data_app.command()
@with_options
def look(
    file: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write."), Writes.results],
    *,
    folder: ImageFolderOptions,
    boxes: Convention,
    count: Annotated[int, typer.Option(min=1, help="Number of records to show.")] = 24,
    seed: Annotated[int, typer.Option(help="Random seed of the records drawn.")] = 0,
    output: Annotated[OutputOptions, only("overwrite", "quiet")],
) -> int:
    """Show records with their boxes and texts on one HTML page, as many of each kind.

    Exit status 3 if an image cannot be decoded.

    regionqa data look mine.jsonl --out look.html
    """
    from regionqa.data.english import counted
    from regionqa.data.overview.samples import sample_records
    from regionqa.pipeline.console import Console
    from regionqa.pipeline.contact_sheet import write_contact_sheet

    failed: list[str] = []
    console = Console(quiet=output.quiet)
    sample = sample_records(open_data(file, folder, boxes, console), count, seed)
    if sample.counts.bad:
        console.note(
            f"{file}: {counted(sample.counts.bad, 'bad record')} left out, the first "
            f"{sample.counts.first[0]}"
        )
    sample.counts.or_stop(file, skip_bad=True)
    written = write_contact_sheet(out, sample, failed.append)
    for message in failed:
        console.error(message)
    print(f"{counted(written, 'record')} shown in {out}")
    return SOME_FAILED if failed else 0
