"""`batch`: many requests on local disk or object storage, answered by Ray."""

from typing import TYPE_CHECKING, Annotated

import typer

from regionqa.batch.options import BatchOptions
from regionqa.cli.options import BATCH, require, with_options, without
from regionqa.flags import Reads, Writes
from regionqa.options import BoxOptions, GenerationOptions, RuntimeOptions

if TYPE_CHECKING:
    from regionqa.batch.run import Stages


@with_options
def batch(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Folder or glob of images; JSON lines, CSV or Parquet of requests; COCO; or "
            "webdataset. A path, or a URL like s3://bucket/folder.",
        ),
        Reads.images,
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT", help="Folder or URL of the parts; finished ones are kept."
        ),
        Writes.folder,
    ],
    *,
    options: BatchOptions,
    boxes: Annotated[BoxOptions, without("boxes", "scale_boxes", "masks")],
    runtime: Annotated[RuntimeOptions, without("cache", "cache_size")],
    generation: Annotated[GenerationOptions, without("schema")],
) -> int:
    """Answer millions of requests on one machine or a Ray cluster, and resume where it stopped.

    regionqa batch s3://bucket/photos s3://bucket/captions --actors 8
    """
    if not options.dry_run:
        require("regionqa batch", "batch", BATCH)
    from regionqa.batch.run import BatchRun, run_batch

    run = BatchRun(input, output, boxes, generation, runtime, options)
    return run_batch(run, _on_ray(options), print)


def _on_ray(options: BatchOptions) -> "Stages":
    from regionqa.batch.cluster import RayStages

    return lambda settings, console, parts: RayStages(settings, options, console).answered(parts)
