"""Requests of a command line to written answers: `ask` and `caption`."""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from regionqa.backends.base import ModelInfo, find_model
from regionqa.boxes.files import read_boxes
from regionqa.errors import ItemError, UsageError
from regionqa.images.reading import PixelBudget
from regionqa.options import BoxOptions, GenerationOptions, OutputOptions, RuntimeOptions
from regionqa.pipeline.console import Console
from regionqa.pipeline.drawing import check_drawing, draw_answers, save_drawing
from regionqa.pipeline.inputs import (
    STDIN,
    AskSettings,
    InputItem,
    find_images,
    is_one_image,
    make_requests,
)
from regionqa.pipeline.outputs import AnswerWriter, OutputSettings
from regionqa.pipeline.resume import resume
from regionqa.requests import Answer, Request

SOME_FAILED = 3
"""Exit status of a run in which some items failed."""


@dataclass(frozen=True)
class RunOptions:
    """What one run of `ask` or `caption` does."""

    images: tuple[str, ...]
    """Files, folders, globs, or `-` for stdin."""
    question: str | None = None
    """The question; None: with `caption` the card's, else that of each line of stdin."""
    caption: bool = False
    """Ask the card's own questions, of each region separately."""
    each: bool = False
    """Ask about each region separately."""
    boxes: BoxOptions = field(default_factory=BoxOptions)
    generation: GenerationOptions = field(default_factory=GenerationOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)


def run_requests(options: RunOptions) -> int:
    """Answer all questions and write the answers.

    Everything that can be refused is refused before the model is loaded.

    Returns:
        The exit status: 0, or `SOME_FAILED`.
    """
    from regionqa.engine import Engine

    items = find_images(options.images, sys.stdin)
    output, one = options.output, is_one_image(options.images)
    if output.draw:
        check_drawing(output.draw, several=not one)
    model = find_model(options.runtime.model)
    check_seed(options.generation, model.info)
    ask = _ask_settings(options, model.info, one)
    settings = _output_settings(options, model.info, one)
    finished = None
    if output.resume and output.out:
        finished = resume(output.out, settings, retry_errors=output.retry_errors)
        settings = finished.settings
    engine = Engine.load(model, options.runtime)
    settings = replace(settings, device=str(engine.device), dtype=str(engine.precision))
    with (
        Console(quiet=output.quiet) as console,
        AnswerWriter(settings, console.error, output.out, append=output.resume) as writer,
    ):
        if ask.boxfile is not None:
            for line in ask.boxfile.remarks:
                console.warn(line)
        requests = make_requests(_tracked(items, options, console), ask, console.warn)
        budget = PixelBudget()
        if output.draw:
            requests = _kept(requests, budget)
        if finished is not None:
            requests = (request for request in requests if not finished.skip(request))
        answers = engine.answer(requests, options.generation)
        if output.draw:
            answers = _draw(answers, output.draw, one, budget)
        for answer in answers:
            with console.paused():
                writer.write(answer)
    return SOME_FAILED if writer.failed or (finished and finished.failed) else 0


def check_seed(generation: GenerationOptions, model: ModelInfo) -> None:
    """Refuse a seed where nothing is drawn at random."""
    chosen = generation.temperature
    if generation.seed and not (model.temperature if chosen is None else chosen):
        raise UsageError(
            "--seed: has no effect at temperature 0, where answers are greedy; add --temperature, "
            "or drop it"
        )


def _ask_settings(options: RunOptions, model: ModelInfo, one: bool) -> AskSettings:
    boxes, boxfile = options.boxes, None
    if boxes.boxes:
        boxfile = read_boxes(boxes.boxes, format=boxes.box_format, units=boxes.box_units)
        if one:
            boxfile = boxfile.for_one_image()
    return AskSettings(
        question=model.image_question if options.caption else options.question,
        region_question=model.region_question if options.caption else None,
        boxes=boxes.written(),
        boxfile=boxfile,
        scale_boxes=boxes.scale_boxes,
        each=options.each or options.caption,
    )


def _output_settings(options: RunOptions, model: ModelInfo, one: bool) -> OutputSettings:
    boxes, each = options.boxes, options.each or options.caption
    return OutputSettings(
        format=options.output.format,
        model=model.name,
        revision=model.revision,
        device=options.runtime.device,
        dtype=options.runtime.dtype,
        timing=options.output.timing,
        confidence=options.output.confidence,
        bare=one and (len(boxes.box) <= 1 or not each) and boxes.boxes is None,
    )


def _tracked(
    items: Iterator[InputItem], options: RunOptions, console: Console
) -> Iterable[InputItem]:
    """Return the items, counted by the progress bar as they are taken."""
    if options.output.quiet or not sys.stderr.isatty() or STDIN in options.images:
        return console.track(items, "images")
    known = list(items)
    return console.track(known, "images", len(known))


# -- drawings --------------------------------------------------------------------------------------


def _kept(requests: Iterator[Request], budget: PixelBudget) -> Iterator[Request]:
    """Pass requests on, and keep the pixels of their images, once decoded, for the drawing."""
    for request in requests:
        if request.source is not None:
            budget.keep(request.source)
        yield request


def _draw(
    answers: Iterator[Answer], target: Path, one: bool, budget: PixelBudget
) -> Iterator[Answer]:
    """Pass answers on, and draw each image after its last answer."""
    used: set[Path] = set()
    for _, group in groupby(answers, key=lambda answer: id(answer.request.source)):
        drawn = []
        for answer in group:
            drawn.append(answer)
            yield answer
        request = drawn[0].request
        try:
            if request.source is None:
                continue
            pixels = request.source.load()
        except ItemError:
            continue  # reported with its answers
        path = target if one else _free_path(target, request, used)
        save_drawing(draw_answers(pixels, drawn), path)
        budget.release(request.source)


def _free_path(folder: Path, request: Request, used: set[Path]) -> Path:
    """`folder/name.png`, numbered if another image has that name."""
    stem = Path(request.image).stem
    path, number = folder / f"{stem}.png", 2
    while path in used:
        path, number = folder / f"{stem}-{number}.png", number + 1
    used.add(path)
    folder.mkdir(parents=True, exist_ok=True)
    return path
