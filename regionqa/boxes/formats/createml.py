"""CreateML: a JSON list of images with annotations, read and written."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    score_field,
)
from regionqa.boxes.fields import four, json_text, member, optional_text, plain_number
from regionqa.boxes.source import SourceFile
from regionqa.regions import BoxFormat, Region, WrittenBox

TITLE = "CreateML"
IMAGE_SUFFIX = None
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False
_NAMES = ("image", "imagefilename", "imageFilename", "filename")
_LISTS = ("annotations", "annotation")
_NUMBERS = ("x", "y", "width", "height")


def recognise(file: SourceFile) -> bool:
    """Whether the file is an array of objects with an image's name and a list of annotations."""
    if file.kind != ".json" or not file.is_array:
        return False
    first = file.first
    return (
        isinstance(first, dict)
        and any(isinstance(first.get(key), str) for key in _NAMES)
        and any(isinstance(first.get(key), list) for key in _LISTS)
    )


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read `coordinates`: the centre, width and height in pixels."""
    entries: list[BoxEntry] = []
    for file in files:
        document = file.document
        assert isinstance(document, list)
        for index, image in enumerate(document):
            where = f"[{index}] of {file.path}"
            name = member(image, _key(image, _NAMES), str, where)
            items = member(image, _key(image, _LISTS), list, where)
            entries.append(BoxEntry.of(name, _boxes(items, where)))
    return BoxContents(tuple(entries))


def _key(item: object, keys: tuple[str, ...]) -> str:
    known = item if isinstance(item, dict) else {}
    return next((key for key in keys if key in known), keys[0])


def _boxes(items: list[object], image: str) -> Iterator[WrittenBox]:
    for index, item in enumerate(items):
        where = f"annotations[{index}] of {image}"
        numbers = member(item, "coordinates", dict, where)
        values = four([numbers.get(key) for key in _NUMBERS], where)
        yield WrittenBox(
            values, BoxFormat.cxcywh, label=optional_text(item, "label", where) or None
        )


def write(images: Sequence[ImageRegions]) -> Files:
    """Render the list of images; a region without label has no `label`."""
    document = [
        {"image": image.name, "annotations": [_annotation(region) for region in image.regions]}
        for image in images
    ]
    return {PurePosixPath(): json_text(document)}


def _annotation(region: Region) -> object:
    box = region.box
    centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    numbers = map(plain_number, (*centre, box.width, box.height))
    label = {"label": region.label} if region.label else {}
    coordinates = {"coordinates": dict(zip(_NUMBERS, numbers, strict=True))}
    return label | coordinates | score_field(region, "confidence")
