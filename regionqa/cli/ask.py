"""`ask`, `caption` and `detect`."""

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from regionqa.cli.options import DetectorName, only, with_options, without
from regionqa.detection.options import DetectionOptions, DetectionOutputOptions
from regionqa.errors import UsageError
from regionqa.flags import Reads
from regionqa.options import (
    BoxOptions,
    GenerationOptions,
    InputOptions,
    OutputOptions,
    RuntimeOptions,
)
from regionqa.segmentation.options import MarkOptions


@with_options
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Images, folders, globs or - (stdin: paths, or JSON lines that may hold their "
            "own questions); then the question, in which <region1> is the first box.",
        ),
        Reads.request,
    ],
    *,
    inputs: InputOptions,
    boxes: BoxOptions,
    marks: MarkOptions,
    detection: DetectionOptions,
    each: Annotated[bool, typer.Option("--each", help="Ask about each box separately.")] = False,
    runtime: RuntimeOptions,
    generation: GenerationOptions,
    output: OutputOptions,
) -> int:
    """Ask a question about an image, or about boxes in it.

    regionqa ask cat.jpg --box 10,20,200,300 "what is this?"
    """
    from regionqa.pipeline.items import STDIN
    from regionqa.pipeline.run import RunOptions, run_requests

    images, question = split_words(words)
    has_boxes = boxes.box or boxes.boxes is not None or detection.find or marks.given
    if each and not has_boxes and STDIN not in images:
        raise UsageError(
            "--each: has no effect without boxes; add --box, --boxes or --point, or drop it"
        )
    return run_requests(
        RunOptions(
            images=tuple(images),
            question=question,
            each=each,
            inputs=inputs,
            boxes=boxes,
            marks=marks,
            detection=detection,
            generation=generation,
            runtime=runtime,
            output=output,
        )
    )


@with_options
def caption(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders, globs or - (stdin)."),
        Reads.images,
    ],
    *,
    inputs: InputOptions,
    boxes: BoxOptions,
    marks: MarkOptions,
    detection: DetectionOptions,
    runtime: RuntimeOptions,
    generation: GenerationOptions,
    output: OutputOptions,
) -> int:
    """Describe each box of an image, or the whole image if there is none.

    find photos -name '*.jpg' | regionqa caption - --boxes regions.json --format jsonl
    """
    from regionqa.pipeline.run import RunOptions, run_requests

    return run_requests(
        RunOptions(
            images=tuple(images),
            caption=True,
            inputs=inputs,
            boxes=boxes,
            marks=marks,
            detection=detection,
            generation=generation,
            runtime=runtime,
            output=output,
        )
    )


@with_options
def detect(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders, globs or - (stdin)."),
        Reads.images,
    ],
    model: DetectorName = None,
    *,
    inputs: InputOptions,
    detection: DetectionOptions,
    runtime: Annotated[RuntimeOptions, only("device", "vision_runtime")],
    output: Annotated[DetectionOutputOptions, without("timing", "confidence", "show_prompt")],
) -> int:
    """Find objects and write their boxes, with labels and scores.

    regionqa detect photos --format coco --out boxes.json

    regionqa detect photo.jpg --find "red cup" --draw found.png
    """
    from regionqa.pipeline.detection.run import DetectRunOptions, run_detection

    return run_detection(
        DetectRunOptions(
            images=tuple(images),
            model=model or "",
            inputs=inputs,
            detection=detection,
            runtime=runtime,
            output=output,
        )
    )


def split_words(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Split arguments into images and a question, which only lines of stdin may do without."""
    if list(words) == ["-"]:
        return ["-"], None
    *images, question = words
    if not images or os.path.lexists(question):  # unlike Path.exists it takes any text
        raise UsageError(
            f'the question is missing; add it last: regionqa ask {words[0]} "what is this?"'
        )
    return images, question
