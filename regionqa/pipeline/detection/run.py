"""Images of a command line to detected boxes."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from regionqa.data.english import counted
from regionqa.detection.detector import ObjectDetector, load_detector
from regionqa.detection.options import DetectionFormat, DetectionOptions, DetectionOutputOptions
from regionqa.errors import SOME_FAILED, ItemError
from regionqa.images.reading import InputImage, open_image
from regionqa.options import InputOptions, OutputFormat, RuntimeOptions
from regionqa.pipeline.console import Console
from regionqa.pipeline.detection.outputs import (
    BoxFileWriter,
    DetectedImage,
    DetectionWriter,
    key_of,
    parse_line,
)
from regionqa.pipeline.draw_files import DrawingFolder, check_drawing
from regionqa.pipeline.drawing import draw_answers
from regionqa.pipeline.items import STDIN, InputItem, find_images, is_one_image
from regionqa.pipeline.outputs import OutputSettings
from regionqa.pipeline.resume import FinishedRequests, resume
from regionqa.requests import Answer, Request


@dataclass(frozen=True)
class DetectRunOptions:
    """What one run of `detect` does."""

    images: tuple[str, ...]
    """Files, folders, globs, or `-` for stdin."""
    model: str = ""
    """The detector; empty: the default one."""
    inputs: InputOptions = field(default_factory=InputOptions)
    detection: DetectionOptions = field(default_factory=DetectionOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    """Of these, `device` and `vision_runtime` apply."""
    output: DetectionOutputOptions = field(default_factory=DetectionOutputOptions)


def run_detection(options: DetectRunOptions) -> int:
    """Find the boxes of all images and write them.

    Everything that can be refused is refused before the detector is loaded.

    Returns:
        The exit status: 0, or `SOME_FAILED`.
    """
    output, one = options.output, is_one_image(options.images)
    console = Console(quiet=output.quiet)
    items = find_images(options.images, sys.stdin, console.warn, null=options.inputs.null)
    drawings = None
    if output.draw:
        check_drawing(output.draw, several=not one)
        drawings = DrawingFolder(
            output.draw, console.error, one=one, overwrite=output.overwrite,
            from_stdin=STDIN in options.images,
        )  # fmt: skip
        if not output.resume and STDIN not in options.images:
            items = iter(known := list(items))
            drawings.refuse_existing(known)
    detector = load_detector(
        options.model,
        options.detection,
        device=options.runtime.device,
        vision_runtime=options.runtime.vision_runtime,
    )
    settings = OutputSettings(
        OutputFormat.jsonl, detector.info.name, detector.revision, detector.info.device, "float32"
    )
    finished = None
    if output.resume and output.out:
        finished = resume(output.out, settings, retry_errors=output.retry_errors, parse=parse_line)
    with ExitStack() as stack:
        stack.enter_context(console)
        writer: DetectionWriter | BoxFileWriter
        if output.format in (DetectionFormat.text, DetectionFormat.jsonl):
            writer = DetectionWriter(output, settings, console.error)
        else:
            writer = BoxFileWriter(output, console.error)
        stack.enter_context(writer)
        if drawings:
            stack.enter_context(drawings)
        run = DetectionRun(detector, settings, console, drawings, finished)
        for found in run.detect(_tracked(items, options, console)):
            with console.paused():
                writer.write(found)
        run.report()
    failed = writer.failed or (finished and finished.failed) or (drawings and drawings.failed)
    return SOME_FAILED if failed else 0


def _tracked(
    items: Iterator[InputItem], options: DetectRunOptions, console: Console
) -> Iterable[InputItem]:
    """Return the items, counted by the progress bar as they are taken."""
    if options.output.quiet or not sys.stderr.isatty() or STDIN in options.images:
        return console.track(items, "images")
    known = list(items)
    return console.track(known, "images", len(known))


class DetectionRun:
    """Finds the boxes of items, draws them, and counts what is left out."""

    def __init__(
        self,
        detector: ObjectDetector,
        settings: OutputSettings,
        console: Console,
        drawings: DrawingFolder | None,
        finished: FinishedRequests | None,
    ) -> None:
        self._detector, self._settings = detector, settings
        self._console, self._drawings, self._finished = console, drawings, finished
        self._without: list[str] = []

    def detect(self, items: Iterable[InputItem]) -> Iterator[DetectedImage]:
        """Yield what is found in each item that is not finished, in their order."""
        for item in self._drawings.named(items) if self._drawings else items:
            path = self._drawings.path if self._drawings else None
            is_done = self._finished and self._finished.take(key_of(item, self._settings))
            if is_done and (path is None or path.exists() or is_done.failed):
                continue
            found = self._find(item)
            if path is not None and found.image is not None and found.error is None:
                self._draw(found, found.image, path)
            if not is_done:
                yield found

    def report(self) -> None:
        """Tell what was left out, and which images have no boxes."""
        info = self._detector.info
        if self._without:
            self._console.note(
                f"{info.name} found nothing in {counted(len(self._without), 'image')}; the first "
                f"is {self._without[0]}; --min-score finds more"
            )
        if self._detector.empty:
            boxes = counted(self._detector.empty, "box")
            self._console.warn(f"{boxes} left out, which had no area inside the image")

    def _find(self, item: InputItem) -> DetectedImage:
        image = None
        try:
            if item.error is not None:
                raise item.error
            if item.boxes is not None or item.question or item.choices:
                raise ItemError(
                    f"{item.image}: its line has regions or a question, which detect does not "
                    "use; leave them out"
                )
            image = open_image(item.image)
            regions = self._detector.find(image).regions
            for warning in image.take_warnings():
                self._console.warn(warning)
        except ItemError as error:
            return DetectedImage(item, image, error=error)
        if not regions:
            self._without.append(item.image)
        return DetectedImage(item, image, regions)

    def _draw(self, found: DetectedImage, image: InputImage, path: Path) -> None:
        assert self._drawings is not None
        answers = [
            Answer(Request(image.name, "", (region,), image), f"{region.label} {region.score:.2f}")
            for region in found.regions
        ]
        answers = answers or [Answer(Request(image.name, "", (), image), "nothing was found")]
        self._drawings.save(draw_answers(image.load(), answers), path)
