"""Detected boxes as lines of text, JSON lines, or box files of every format."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, cast

from regionqa.boxes.entries import ImageRegions, name_parts
from regionqa.boxes.files import FORMATS, render_boxes, write_boxes
from regionqa.detection.options import DetectionFormat, DetectionOutputOptions
from regionqa.errors import ItemError, OutputError
from regionqa.files import write_whole
from regionqa.images.reading import InputImage
from regionqa.pipeline.console import printable
from regionqa.pipeline.items import InputItem
from regionqa.pipeline.outputs import (
    CARRIED,
    Layout,
    OutputSettings,
    RecordWriter,
    boxes_text,
    carried_text,
    rounded,
)
from regionqa.pipeline.resume import Key, WrittenRecord, record_key
from regionqa.regions import Region


@dataclass(frozen=True)
class DetectedImage:
    """What was found in one image, or why it failed."""

    item: InputItem
    image: InputImage | None
    """None only where there is an error."""
    regions: tuple[Region, ...] = ()
    error: ItemError | None = None

    @property
    def carried(self) -> dict[str, Any]:
        """`id` and `meta` of the item, without those that were not given."""
        both = {"id": self.item.id, "meta": self.item.meta}
        return {key: value for key, value in both.items() if value is not None}

    @property
    def error_line(self) -> str:
        """The error as one line that names the image."""
        message, name = str(self.error), self.item.image
        return printable(message if message.startswith(f"{name}:") else f"{name}: {message}")


def as_json_line(found: DetectedImage, settings: OutputSettings) -> str:
    """Format what was found in an image as a line; its keys and their order are an interface."""
    image = found.image
    record = {
        "image": found.item.image,
        "width": image.width if image else None,
        "height": image.height if image else None,
        "regions": [
            {
                "id": number,
                "box": [rounded(value) for value in region.box.xyxy],
                "label": region.label,
                "score": region.score,
            }
            for number, region in enumerate(found.regions, start=1)
        ],
        "model": settings.model,
        "revision": settings.revision,
        "device": settings.device,
        "dtype": settings.dtype,
        "error": None if found.error is None else str(found.error),
    }
    return json.dumps(record | found.carried, ensure_ascii=False) + "\n"


def as_text_lines(found: DetectedImage) -> str:
    """Format a line per box: image, box, label and score, separated by tabs."""
    lines = []
    for region in found.regions:
        fields = [found.item.image, boxes_text([region.box.xyxy]), region.label or ""]
        fields += ["" if region.score is None else f"{region.score:.4f}"]
        fields += [text for text in carried_text(found.carried) if text]
        lines.append("\t".join(map(printable, fields)) + "\n")
    return "".join(lines)


def key_of(item: InputItem, settings: OutputSettings) -> Key:
    """Return what identifies the record of an item."""
    carried = {"id": item.id, "meta": item.meta}
    return record_key(item.image, settings.model, settings.revision, *carried_text(carried))


def parse_line(line: bytes) -> WrittenRecord:
    """Parse a record; ValueError for broken JSON, other errors for JSON that is none."""
    fields = json.loads(line)
    if "answer" in fields:
        raise KeyError("answer")
    own = carried_text({key: fields[key] for key in CARRIED if key in fields})
    key = record_key(fields["image"], fields["model"], fields["revision"], *own)
    return WrittenRecord(key, str(len(fields["regions"])), fields["error"], len(line))


class DetectionWriter(RecordWriter):
    """Write what is found as soon as it is found: text or JSON lines."""

    def __init__(
        self,
        options: DetectionOutputOptions,
        settings: OutputSettings,
        report: Callable[[str], None],
    ) -> None:
        """Prepare to write.

        Args:
            options: Format and file.
            settings: Facts about the detector.
            report: Called with a line for each error, in the text format; a JSON line holds it.
        """
        lines = options.format is DetectionFormat.jsonl
        super().__init__(Layout(), options.out, append=options.resume, resumable=lines)
        self._settings, self._report, self._lines = settings, report, lines

    def write(self, found: DetectedImage) -> None:
        """Write what was found in an image; OutputError or BrokenPipeError if that fails."""
        self.failed += found.error is not None
        if self._lines:
            self.put_record(as_json_line(found, self._settings))
        elif found.error is not None:
            self._report(found.error_line)
        elif found.regions:
            self.put_record(as_text_lines(found))


@dataclass
class BoxFileWriter:
    """Collect what is found, and write a box file at the end."""

    options: DetectionOutputOptions
    report: Callable[[str], None]
    """Called with a line for each error, which a box file does not hold."""
    failed: int = 0
    """Number of errors so far."""
    _images: list[ImageRegions] = field(default_factory=list)
    _taken: set[PurePosixPath] = field(default_factory=set)

    def __enter__(self) -> "BoxFileWriter":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Write the file, unless the run failed."""
        if kind is not None:
            return
        name, out = self.options.format, self.options.out
        if self.options.is_folder:
            assert out is not None
            write_boxes(out, self._images, name)
            return
        text = render_boxes(self._images, name)[PurePosixPath()]
        if out is None:
            with RecordWriter(Layout()) as stdout:
                stdout.put_record(text)
            return
        with write_whole(out) as file:
            file.write(text.encode())

    def write(self, found: DetectedImage) -> None:
        """Keep what was found in an image, if the format can hold it; report it otherwise."""
        if found.error is None:
            try:
                self._keep(found)
            except ItemError as error:
                found = replace(found, error=error)
        if found.error is not None:
            self.failed += 1
            self.report(found.error_line)

    def _keep(self, found: DetectedImage) -> None:
        name, image = found.item.image, cast(InputImage, found.image)
        if found.carried:
            keys = " and ".join(found.carried)
            raise ItemError(f"{name}: has {keys}, which no box file holds; use --format jsonl")
        entry = ImageRegions(name, image.width, image.height, found.regions)
        try:
            render_boxes([entry], self.options.format)
        except OutputError as error:
            raise ItemError(str(error)) from None
        suffix = FORMATS[self.options.format].IMAGE_SUFFIX
        place = PurePosixPath(name)
        if suffix is not None:
            place = PurePosixPath(*name_parts(name)).with_suffix(suffix)
        if place in self._taken:
            what = f"its file {place} is another image's" if suffix else "is given twice"
            raise ItemError(f"{name}: {what}, and a box file holds an image once")
        self._taken.add(place)
        self._images.append(entry)
