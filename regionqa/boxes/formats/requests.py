"""Requests and answers of this program, as JSON lines or as a JSON array, read and written."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    Size,
    mask_field,
    score_field,
)
from regionqa.boxes.fields import excerpt, plain_number, size_of
from regionqa.boxes.objects import misspelt, read_box, refuse_unknown, with_mask
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Region, WrittenBox

TITLE = 'JSON lines like {"image": "a.jpg", "regions": [[x0, y0, x1, y1]]}'
IMAGE_SUFFIX = None
OWN_CONVENTION = False
ABSENT_IS_EMPTY = False
_REGIONS = "regions"
_MEANT = {"boxes": _REGIONS, "bbox": _REGIONS, "bboxes": _REGIONS, "box": _REGIONS}
"""Keys that stand for `regions` elsewhere."""
_REVISION = "revision"
"""Key of answers, which resembles `regions`."""
_OWN = frozenset({_REGIONS, "question", "answer", "conversations", "captions"})


def recognise(file: SourceFile) -> bool:
    """Whether the records have an `image`, and regions, a question or an answer."""
    if file.kind not in (".json", ".jsonl"):
        return False
    keys = file.keys
    if "image" not in keys or not isinstance(_image(file), str):
        return False
    return bool(keys & _OWN or keys & _MEANT.keys() or any(misspelt(keys, [_REGIONS])))


def _image(file: SourceFile) -> object:
    if file.kind == ".json" and not file.is_array:
        return file.document.get("image") if isinstance(file.document, dict) else None
    return file.first.get("image") if isinstance(file.first, dict) else None


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read `regions` in pixels; records about one image are put together.

    Several answers about the same region give it once.
    """
    return BoxContents(tuple(entry for file in files for entry in _entries(file, convention)))


def _entries(file: SourceFile, convention: Convention) -> Iterator[BoxEntry]:
    images: dict[str, list[tuple[str, object]]] = {}
    sizes: dict[str, Size | None] = {}
    for where, record in _records(file):
        if not isinstance(record, dict):
            raise BoxFileError(f"{where}: is {excerpt(record)}; write an object with an image")
        for key, meant in _MEANT.items():
            if key in record:
                raise BoxFileError(f"{where}: unknown key {key!r}; did you mean {meant!r}?")
        for key, meant in misspelt(record.keys() - {_REVISION}, (_REGIONS, "image")):
            raise BoxFileError(f"{where}: unknown key {excerpt(key)}; did you mean {meant!r}?")
        name = record.get("image")
        if not isinstance(name, str) or not name:
            raise BoxFileError(f"{where}: has no 'image'; write the image's name")
        images.setdefault(name, []).append((where, record.get(_REGIONS)))
        sizes[name] = sizes.get(name) or size_of(record.get("width"), record.get("height"))
    for name, records in images.items():
        yield BoxEntry.of(name, _distinct(_boxes(records, convention)), size=sizes[name])


def _distinct(boxes: Iterable[WrittenBox]) -> Iterator[WrittenBox]:
    """Yield each box once, one at a time, because they may raise BoxError while they are read."""
    seen = set[WrittenBox]()
    for box in boxes:
        if box not in seen:
            seen.add(box)
            yield box


def _records(file: SourceFile) -> Iterator[tuple[str, object]]:
    if file.kind == ".jsonl":
        for number, record in file.lines():
            yield f"line {number} of {file.path}", record
        return
    document = file.document
    for index, record in enumerate(document if isinstance(document, list) else [document]):
        yield f"record {index + 1} of {file.path}", record


def _boxes(records: list[tuple[str, object]], convention: Convention) -> Iterator[WrittenBox]:
    for where, regions in records:
        if regions is None:
            continue
        if not isinstance(regions, list):
            raise BoxError(f"box in {where}: 'regions' is {excerpt(regions)}; write a list")
        for index, region in enumerate(regions):
            place = f"regions[{index}] of {where}"
            refuse_unknown(region, place)
            box = read_box(region, place, convention)
            yield with_mask(box, region, place) if convention.masks else box


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a line per image."""
    lines = (
        json.dumps(
            {"image": image.name, _REGIONS: [_region(region) for region in image.regions]},
            ensure_ascii=False,
        )
        for image in images
    )
    return {PurePosixPath(): "".join(f"{line}\n" for line in lines)}


def _region(region: Region) -> object:
    box = [plain_number(value) for value in region.box.xyxy]
    label = {"label": region.label} if region.label else {}
    fields = label | mask_field(region) | score_field(region)
    return {"box": box, **fields} if fields else box
