"""Requests of a command line to written answers: `ask` and `caption`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from regionqa.backends.base import ModelInfo, configured_model
from regionqa.backends.structured import check_schema
from regionqa.boxes.files import read_boxes
from regionqa.data.english import counted
from regionqa.detection.options import DetectionOptions, detector_of
from regionqa.errors import SOME_FAILED, ItemError, UsageError
from regionqa.images.reading import InputImage, PixelBudget
from regionqa.language.answer_schemas import short_digest
from regionqa.options import (
    BoxOptions,
    GenerationOptions,
    InputOptions,
    OutputOptions,
    RegionWay,
    RuntimeOptions,
)
from regionqa.pipeline.console import Console
from regionqa.pipeline.draw_files import DrawingFolder, check_drawing
from regionqa.pipeline.drawing import draw_answers
from regionqa.pipeline.inputs import AskSettings, make_requests
from regionqa.pipeline.items import STDIN, InputItem, find_images, is_one_image
from regionqa.pipeline.outputs import AnswerWriter, OutputSettings, prompt_heading
from regionqa.pipeline.resume import FinishedRequests, answer_missing, resume
from regionqa.requests import Answer, Request
from regionqa.segmentation.options import MarkOptions

if TYPE_CHECKING:
    from regionqa.detection.detector import ObjectDetector
    from regionqa.segmentation.marks import MarkedRegions


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
    inputs: InputOptions = field(default_factory=InputOptions)
    boxes: BoxOptions = field(default_factory=BoxOptions)
    marks: MarkOptions = field(default_factory=MarkOptions)
    detection: DetectionOptions = field(default_factory=DetectionOptions)
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

    output, one = options.output, is_one_image(options.images)
    console = Console(quiet=output.quiet)
    items = find_images(options.images, sys.stdin, console.warn, null=options.inputs.null)
    if output.draw:
        check_drawing(output.draw, several=not one)
    model = configured_model(options.runtime.model, options.runtime)
    if model.info.note:
        console.warn(model.info.note)
    ask = _ask_settings(options, model.info, one)
    settings = _output_settings(options, model.info, one)
    finished = None
    if output.resume and output.out:
        finished = resume(output.out, settings, retry_errors=output.retry_errors)
        settings = finished.settings
    with ExitStack() as stack:
        stack.enter_context(console)
        if ask.boxfile is not None:
            for line in ask.boxfile.remarks:
                console.warn(line)
        drawings = _drawings(options, one, console)
        if drawings and not output.resume and STDIN not in options.images:
            items = iter(known := list(items))
            drawings.refuse_existing(known)
        engine = Engine.load(model, options.runtime)
        settings = replace(settings, device=str(engine.device), dtype=str(engine.precision))
        writer = stack.enter_context(
            AnswerWriter(settings, console.error, output.out, append=output.resume)
        )
        items = iter(_tracked(items, options, console))
        show = partial(show_prompt, console) if output.show_prompt else None
        ask_engine = partial(engine.answer, options=options.generation, on_prompt=show)
        if drawings:
            stack.enter_context(drawings)
            requests = make_requests(drawings.named(items), ask, console.warn)
            answers = _drawn_answers(requests, finished, ask_engine, drawings)
        else:
            requests = make_requests(items, ask, console.warn)
            answers = ask_engine(_unfinished(requests, finished))
        for answer in answers:
            with console.paused():
                writer.write(answer)
            source = answer.request.source
            for warning in source.take_warnings() if source else ():
                console.warn(warning)
        for line in engine.take_notes():
            console.note(line)
    if masks := writer.masks_left_out:
        console.warn(f"{counted(masks, 'mask')} left out: CSV holds boxes only, JSON lines both")
    failed = writer.failed or (finished and finished.failed) or (drawings and drawings.failed)
    return SOME_FAILED if failed else 0


def show_prompt(console: Console, request: Request, lines: Sequence[str]) -> None:
    """Print what the model is given for one request."""
    console.show(prompt_heading(request), lines)


def _ask_settings(options: RunOptions, model: ModelInfo, one: bool) -> AskSettings:
    boxes, boxfile = options.boxes, None
    detector = detector_of(boxes, options.detection)
    if boxes.boxes and detector is None:
        boxfile = read_boxes(
            boxes.boxes, format=boxes.box_format, units=boxes.box_units, masks=boxes.masks
        )
        if one:
            boxfile = boxfile.for_one_image()
    return AskSettings(
        question=model.image_question if options.caption else options.question,
        region_question=model.region_question if options.caption else None,
        boxes=boxes.written(),
        marks=_marked_regions(options) if options.marks.given else None,
        fade=_fade(options),
        detector=None if detector is None else _load_detector(detector, options),
        boxfile=boxfile,
        scale_boxes=boxes.scale_boxes,
        each=options.each or options.caption,
    )


def _load_detector(name: str, options: RunOptions) -> "ObjectDetector":
    from regionqa.detection.detector import load_detector

    runtime = options.runtime
    return load_detector(
        name,
        options.detection,
        device=runtime.device,
        vision_runtime=runtime.vision_runtime,
        asked="" if runtime.server else runtime.model,
    )


def _marked_regions(options: RunOptions) -> "MarkedRegions":
    from regionqa.images.reading import read_mask
    from regionqa.segmentation.marks import MarkedRegions, load_segmenter

    marks, runtime = options.marks, options.runtime
    try:
        masks = [read_mask(path) for path in marks.mask]
    except ItemError as error:  # wrong for every image, so it ends the command
        raise UsageError(f"--mask: {error}") from None
    segmenter = None
    if marks.point:
        segmenter = load_segmenter(
            marks.segmenter or "", device=runtime.device, vision_runtime=runtime.vision_runtime
        )
    return MarkedRegions(options.boxes.written(), marks.points, masks, segmenter)


def _fade(options: RunOptions) -> float:
    """Return the value of --fade; UsageError if no crop is shown."""
    fade, way = options.marks.fade, options.runtime.way
    if fade and way not in (RegionWay.crop, RegionWay.crop_only):
        raise UsageError("--fade: fades crops; add --way crop or --way crop-only")
    return fade


def _output_settings(options: RunOptions, model: ModelInfo, one: bool) -> OutputSettings:
    boxes, each = options.boxes, options.each or options.caption
    schema = check_schema(options.generation.schema, model)
    allowed = options.generation.allowed
    limits = [schema.digest] if schema else [short_digest("\n".join(allowed))] if allowed else []
    limits += [f"fade{options.marks.fade:g}"] if options.marks.fade else []
    return OutputSettings(
        format=options.output.format,
        model=model.name,
        # what limits answers, or changes them, is part of the revision, so that --resume mixes none
        revision="+".join([model.revision, *limits]),
        device=options.runtime.device,
        dtype=options.runtime.dtype,
        timing=options.output.timing,
        confidence=options.output.confidence,
        bare=one
        and (len(boxes.box) + options.marks.given <= 1 or not each)
        and boxes.boxes is None
        and not options.detection.find,
    )


def _unfinished(
    requests: Iterator[Request], finished: FinishedRequests | None
) -> Iterator[Request]:
    """Return the requests that the output file does not answer."""
    return (each for each in requests if finished is None or finished.find(each) is None)


def _tracked(
    items: Iterator[InputItem], options: RunOptions, console: Console
) -> Iterable[InputItem]:
    """Return the items, counted by the progress bar as they are taken."""
    if options.output.quiet or not sys.stderr.isatty() or STDIN in options.images:
        return console.track(items, "images")
    known = list(items)
    return console.track(known, "images", len(known))


# -- drawings --------------------------------------------------------------------------------------


def _drawings(options: RunOptions, one: bool, console: Console) -> DrawingFolder | None:
    if options.output.draw is None:
        return None
    return DrawingFolder(
        options.output.draw,
        console.error,
        one=one,
        overwrite=options.output.overwrite,
        from_stdin=STDIN in options.images,
    )


def _drawn_answers(
    requests: Iterator[Request],
    finished: FinishedRequests | None,
    ask: Callable[[Iterator[Request]], Iterator[Answer]],
    drawings: DrawingFolder,
) -> Iterator[Answer]:
    """Yield new answers, and draw each image after its last one.

    A drawing shows all answers about its image, also those of an earlier run.
    """
    budget = PixelBudget()
    paths: WeakKeyDictionary[InputImage, Path] = WeakKeyDictionary()

    def find(request: Request) -> Answer | None:
        return finished.find(request) if finished else None

    def undone() -> Iterator[Request]:
        """Leave out what is answered and drawn; keep the decoded pixels of the other images."""
        for request in requests:
            if request.source is not None:
                path = paths.setdefault(request.source, drawings.path)
                if finished and path.exists() and find(request):
                    continue
                budget.keep(request.source)
            yield request

    def draw(answers: list[Answer]) -> None:
        image = answers[0].request.source
        assert image is not None
        with suppress(ItemError):  # reported with its answers
            drawings.save(draw_answers(image.load(), answers), paths[image])
        budget.release(image)

    shown: list[Answer] = []
    for answer, is_new in answer_missing(undone(), find, ask):
        image = answer.request.source
        if image is not None:
            if shown and shown[0].request.source is not image:
                draw(shown)
                shown = []
            shown.append(answer)
        if is_new:
            yield answer
    if shown:
        draw(shown)
