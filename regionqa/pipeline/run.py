"""From a command's options to written answers: what `ask` and `caption` share.

Puts inputs, engine, outputs, drawing and progress together. It does not parse a command line.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from regionqa.boxes.files import read_boxes
from regionqa.bundles.store import find_bundle
from regionqa.errors import BoxError, ItemError, UsageError
from regionqa.pipeline.drawing import check_drawing, draw_answers, save_drawing
from regionqa.pipeline.inputs import (
    STDIN,
    AskSettings,
    InputItem,
    find_images,
    is_one_image,
    make_requests,
)
from regionqa.pipeline.outputs import AnswerWriter, OutputFormat, OutputSettings
from regionqa.pipeline.resume import resume
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox, parse_box
from regionqa.requests import Answer, Request

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class RunOptions:
    """What a command was told."""

    images: tuple[str, ...]
    """Files, folders, globs, or `-`."""
    question: str | None
    """What to ask; None: what the model's card says of captions, or each line of stdin itself."""
    caption: bool = False
    """Whether to ask the card's own questions, of each region alone."""
    each: bool = False
    """Whether to ask about every region alone."""
    model: str = "starter"
    """A shipped name, or a bundle's folder."""
    boxes: tuple[str, ...] = ()
    """Boxes as text."""
    boxfile: Path | None = None
    """A file or folder of boxes."""
    box_format: BoxFormat | None = None
    """What four numbers mean; None: xyxy, or what the file says."""
    box_units: BoxUnits | None = None
    """What one unit is; None: pixels, or what the file says."""
    format: OutputFormat = OutputFormat.text
    """How answers are written."""
    out: Path | None = None
    """Where to; None: stdout."""
    resume: bool = False
    """Whether to go on with `out`."""
    retry_errors: bool = False
    """Whether to ask again what failed before."""
    draw: Path | None = None
    """Where to draw: an image file, or a folder for several images."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """auto, float32, float16 or bfloat16."""
    quantize: str | None = None
    """8bit or 4bit; None: every weight in `dtype`."""
    batch_size: int = 16
    """Questions decoded together."""
    max_new_tokens: int | None = None
    """Longest answer; None: what the card says."""
    timing: bool = False
    """Whether JSON and CSV say how long an answer took."""
    confidence: bool = False
    """Whether JSON and CSV say how sure the model is."""
    guess: bool = False
    """Whether answers are given that the model is not sure of."""
    unsure_below: float | None = None
    """The probability below which it is not sure; None: what the card says."""
    temperature: float | None = None
    """How random answers are; None: as the card says."""
    seed: int = 0
    """Of what is random."""
    quiet: bool = False
    """No warnings and no progress."""


def run_requests(options: RunOptions) -> int:
    """Answer everything that was asked; the exit status: 0, or 3 where some items failed.

    Everything that can be refused is refused before the model is loaded.
    """
    items = find_images(options.images, sys.stdin)
    one = is_one_image(options.images)
    if options.draw:
        check_drawing(options.draw, several=not one)
    if options.retry_errors and not options.resume:
        raise UsageError("--retry-errors: says what --resume asks again; add --resume")
    if options.guess and options.unsure_below is not None:
        raise UsageError("--guess: holds no answer back, so --unsure-below means nothing; drop one")
    bundle = find_bundle(options.model)
    prompt = bundle.card.prompt
    asking = _asking(options)
    if options.caption:
        asking = replace(
            asking, question=prompt.image_question, region_question=prompt.region_question
        )
    settings = OutputSettings(
        format=options.format,
        model=bundle.card.name,
        revision=bundle.card.revision,
        device=options.device,
        dtype=options.dtype,
        timing=options.timing,
        confidence=options.confidence,
        bare=one and (len(options.boxes) <= 1 or not asking.each) and options.boxfile is None,
    )
    finished = None
    if options.resume:
        finished = resume(options.out, settings, retry_errors=options.retry_errors)
    from regionqa.engine import Engine

    engine = Engine.load(
        bundle,
        device=options.device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        quantize=options.quantize,
    )
    settings = replace(settings, device=str(engine.device), dtype=str(engine.precision))
    with ExitStack() as stack:
        screen = stack.enter_context(_screen(options))
        writer = stack.enter_context(
            AnswerWriter(settings, screen.error, options.out, append=options.resume)
        )
        requests = make_requests(screen.follow(items, options), asking, screen.warn)
        left = (r for r in requests if finished is None or not finished.skip(r))
        answers = engine.answer(
            left,
            max_new_tokens=options.max_new_tokens,
            unsure_below=0.0 if options.guess else options.unsure_below,
            temperature=options.temperature,
            seed=options.seed,
        )
        for answer in _drawn(answers, options.draw, one, screen) if options.draw else answers:
            with screen.aside():
                writer.write(answer)
    return 3 if writer.failed or (finished and finished.failed) else 0


def _asking(options: RunOptions) -> AskSettings:
    form = options.box_format or BoxFormat.xyxy
    units = options.box_units or BoxUnits.pixel
    boxfile = None
    if options.boxfile:
        boxfile = read_boxes(options.boxfile, format=options.box_format, units=options.box_units)
    try:
        boxes = tuple(WrittenBox(parse_box(text), form, units) for text in options.boxes)
    except BoxError as error:  # of every image alike, so it is the command that is wrong
        raise UsageError(f"--box: {error}") from None
    return AskSettings(
        question=options.question,
        boxes=boxes,
        boxfile=boxfile,
        each=options.each or options.caption,
    )


# -- what the user sees besides answers ------------------------------------------------------------


class StatusReporter:
    """stderr: warnings, errors of items, and a progress bar where it is a terminal."""

    def __init__(self, quiet: bool, progress: "Progress | None") -> None:
        self._quiet = quiet
        self._progress = progress

    def error(self, line: str) -> None:
        """Say why an item has no answer."""
        self._say(f"regionqa: {line}")

    def warn(self, line: str) -> None:
        """Say what the user may want to know."""
        if not self._quiet:
            self._say(f"regionqa: warning: {line}")

    def aside(self) -> AbstractContextManager[None]:
        """The bar out of the way while stdout, perhaps the same terminal, is written to."""
        return _paused(self._progress) if self._progress else nullcontext()

    def follow(self, items: Iterator[InputItem], options: RunOptions) -> Iterable[InputItem]:
        """The items, counted by the bar as they are taken."""
        if self._progress is None:
            return items
        total = None
        if STDIN not in options.images:
            items = iter(known := list(items))
            total = len(known)
        return self._progress.track(items, total=total, description="images")

    def _say(self, line: str) -> None:
        with self.aside():
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _screen(options: RunOptions) -> AbstractContextManager[StatusReporter]:
    if options.quiet or not sys.stderr.isatty():
        return nullcontext(StatusReporter(options.quiet, None))
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    return _shown(Progress(*columns, TimeElapsedColumn(), console=console, transient=True))


@contextmanager
def _shown(progress: "Progress") -> Iterator[StatusReporter]:
    with progress:
        yield StatusReporter(False, progress)


@contextmanager
def _paused(progress: "Progress") -> Iterator[None]:
    progress.stop()
    try:
        yield
    finally:
        progress.start()


# -- drawings --------------------------------------------------------------------------------------


def _drawn(
    answers: Iterator[Answer], target: Path, one: bool, screen: StatusReporter
) -> Iterator[Answer]:
    """Pass answers on, and draw each image once all its answers are there."""
    taken: set[Path] = set()
    for _, group in groupby(answers, key=lambda answer: id(answer.request.source)):
        kept = []
        for answer in group:
            kept.append(answer)
            yield answer
        request = kept[0].request
        try:
            if request.source is None:
                continue
            pixels = request.source.load()
        except ItemError:
            continue  # its answers have said so
        path = target if one else _own_path(target, request, taken)
        save_drawing(draw_answers(pixels, kept), path)


def _own_path(folder: Path, request: Request, taken: set[Path]) -> Path:
    """`folder/name.png`, numbered where another image has that name."""
    stem = Path(request.image).stem
    path, number = folder / f"{stem}.png", 2
    while path in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    taken.add(path)
    folder.mkdir(parents=True, exist_ok=True)
    return path
