"""`ask` and `caption`: parse, fill in `RunOptions`, run."""

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from regionqa.cli.options import (
    BatchSize,
    Boxes,
    BoxesFile,
    BoxForm,
    BoxUnit,
    Confidence,
    Debug,
    Device,
    DeviceChoice,
    Draw,
    Dtype,
    DtypeChoice,
    Format,
    Guess,
    Longest,
    Model,
    Out,
    OutFormat,
    Quantize,
    QuantizeChoice,
    Quiet,
    Resume,
    RetryErrors,
    Seed,
    Temperature,
    Timing,
    UnsureBelow,
)


def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="Images, folders, globs or - (stdin: paths, or JSON lines with their own "
            "questions); then the question, in which <region1> names the first box.",
        ),
    ],
    boxes: Boxes = None,
    boxfile: BoxesFile = None,
    box_format: BoxForm = None,
    box_units: BoxUnit = None,
    each: Annotated[bool, typer.Option("--each", help="Ask about every box on its own.")] = False,
    model: Model = "starter",
    format: OutFormat = Format.text,
    out: Out = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    draw: Draw = None,
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    timing: Timing = False,
    confidence: Confidence = False,
    guess: Guess = False,
    unsure_below: UnsureBelow = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Ask a question about an image, or about boxes in it.

    regionqa ask cat.jpg --box 10,20,200,300 "what is this?"
    """
    images, question = split_words(words)
    return answer(
        images=images, question=question, caption=False, each=each, model=model, boxes=boxes,
        boxfile=boxfile, box_format=box_format, box_units=box_units, format=format, out=out,
        resume=resume, retry_errors=retry_errors, draw=draw, device=device, dtype=dtype,
        quantize=quantize, batch_size=batch_size, max_new_tokens=max_new_tokens, timing=timing,
        quiet=quiet, confidence=confidence, guess=guess, unsure_below=unsure_below,
        temperature=temperature, seed=seed,
    )  # fmt: skip


def caption(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders, globs or - (stdin)."),
    ],
    boxes: Boxes = None,
    boxfile: BoxesFile = None,
    box_format: BoxForm = None,
    box_units: BoxUnit = None,
    model: Model = "starter",
    format: OutFormat = Format.text,
    out: Out = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    draw: Draw = None,
    device: Device = DeviceChoice.auto,
    dtype: Dtype = DtypeChoice.auto,
    quantize: Quantize = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Longest = None,
    timing: Timing = False,
    confidence: Confidence = False,
    guess: Guess = False,
    unsure_below: UnsureBelow = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Describe every box of a picture, or the whole picture where there is none.

    find photos -name '*.jpg' | regionqa caption - --boxes regions.json --format jsonl
    """
    return answer(
        images=images, question=None, caption=True, each=True, model=model, boxes=boxes,
        boxfile=boxfile, box_format=box_format, box_units=box_units, format=format, out=out,
        resume=resume, retry_errors=retry_errors, draw=draw, device=device, dtype=dtype,
        quantize=quantize, batch_size=batch_size, max_new_tokens=max_new_tokens, timing=timing,
        quiet=quiet, confidence=confidence, guess=guess, unsure_below=unsure_below,
        temperature=temperature, seed=seed,
    )  # fmt: skip


def answer(
    *,
    images: Sequence[str],
    boxes: Sequence[str] | None,
    format: Format,
    device: DeviceChoice,
    dtype: DtypeChoice,
    quantize: QuantizeChoice | None,
    **others: Any,
) -> int:
    """Turn what was parsed into `RunOptions`, and run."""
    from regionqa.pipeline.outputs import OutputFormat
    from regionqa.pipeline.run import RunOptions, run_requests

    return run_requests(
        RunOptions(
            images=tuple(images),
            boxes=tuple(boxes or ()),
            format=OutputFormat(format),
            device=str(device),
            dtype=str(dtype),
            quantize=str(quantize) if quantize else None,
            **others,
        )
    )


def split_words(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Images and question; only lines of stdin may go without a question."""
    from regionqa.errors import UsageError

    if list(words) == ["-"]:
        return ["-"], None
    *images, question = words
    if not images or os.path.lexists(question):  # unlike Path.exists it takes any text
        raise UsageError(
            f'the question is missing; add it last: regionqa ask {words[0]} "what is this?"'
        )
    return images, question
