"""Plain JSON: `{"image.jpg": [[x0, y0, x1, y1], ...]}`, read and written."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    SourceFile,
)
from regionqa.boxes.fields import excerpt, four, json_text, member, optional_text, plain_number
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, Region, WrittenBox

TITLE = 'JSON like {"image.jpg": [[x0, y0, x1, y1]]}'
IMAGE_SUFFIX = None


def recognise(file: SourceFile) -> bool:
    """Whether the file is JSON in which some value looks like a list of boxes, or empty."""
    if file.kind != ".json":
        return False
    document = file.document
    values = document.values() if isinstance(document, dict) else [document]
    return document == {} or any(map(_holds_boxes, values))


def _holds_boxes(value: object) -> bool:
    return value == [] or (
        isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value)
    )


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read boxes by image, in the convention stated by the user.

    A box may also be `{"box": [...], "label": "..."}`. A bare list of boxes, or a list under the
    only key `boxes`, applies to any image.
    """
    return BoxContents(tuple(entry for file in files for entry in _entries(file, convention)))


def _entries(file: SourceFile, convention: Convention) -> Iterator[BoxEntry]:
    document = file.document
    if isinstance(document, dict) and set(document) == {"boxes"}:
        document = document["boxes"]
    if not isinstance(document, dict):
        yield BoxEntry.of(None, _boxes(document, "", file.path, convention))
        return
    for name, items in document.items():
        yield BoxEntry.of(name, _boxes(items, repr(name), file.path, convention))


def _boxes(items: object, name: str, path: Path, convention: Convention) -> Iterator[WrittenBox]:
    if not isinstance(items, list):
        raise BoxFileError(
            f"{name or 'boxes'} of {path}: is {excerpt(items)}; "
            "write a list of boxes, like [[10, 20, 200, 300]]"
        )
    format = convention.format or BoxFormat.xyxy
    for index, item in enumerate(items):
        where = f"{name}[{index}] of {path}"
        values = member(item, "box", object, where) if isinstance(item, dict) else item
        label = optional_text(item, "label", where) or None
        yield WrittenBox(four(values, where), format, convention.units, label)


def write(images: Sequence[ImageRegions]) -> Files:
    """Render boxes by image, xyxy in pixels; a labelled box as an object."""
    document = {image.name: [_box(region) for region in image.regions] for image in images}
    return {PurePosixPath(): json_text(document)}


def _box(region: Region) -> object:
    values = [plain_number(value) for value in region.box.xyxy]
    return {"box": values, "label": region.label} if region.label else values
