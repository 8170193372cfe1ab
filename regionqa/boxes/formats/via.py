"""VGG Image Annotator (VIA), versions 1 and 2: JSON or CSV of images, read; JSON written."""

import csv
import io
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
from regionqa.boxes.fields import (
    excerpt,
    four,
    json_text,
    member,
    optional_text,
    parse_json,
    plain_number,
)
from regionqa.boxes.objects import LABELS
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.shapes import FLAT, bounding, finite, has_area
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Region, WrittenBox

TITLE = "VIA"
IMAGE_SUFFIX = None
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False
_IMAGES = "_via_img_metadata"
_SHAPE, _ATTRIBUTES = "region_shape_attributes", "region_attributes"
_SKIPPED = {"ellipse": "ellipses", "point": "points", "polyline": "lines", "line": "lines"}
_Shape = tuple[str, object, object]
"""Place, `shape_attributes` and `region_attributes`."""


def recognise(file: SourceFile) -> bool:
    """Whether the file is a project or an export of VIA: its keys, or its columns."""
    if file.kind in (".csv", ".txt", ""):
        return _SHAPE in file.text.partition("\n")[0]
    if file.kind != ".json" or file.is_array:
        return False
    first = file.first
    return _IMAGES in file.keys or (
        isinstance(first, dict) and {"filename", "regions"} <= first.keys()
    )


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read rectangles, circles and polygons as the upright boxes around them, in pixels.

    The label is the attribute `label`, `class` or `name`, or the only attribute there is.
    """
    entries: list[BoxEntry] = []
    left_out: list[LeftOut] = []
    for file in files:
        images = _images(file) if file.kind == ".json" else _table(file)
        entries += (BoxEntry.of(name, _boxes(shapes, left_out)) for name, shapes in images)
    return BoxContents(tuple(entries), tuple(left_out))


def _images(file: SourceFile) -> Iterator[tuple[str, list[_Shape]]]:
    document = file.document
    if isinstance(document, dict) and _IMAGES in document:
        document = member(document, _IMAGES, dict, str(file.path))
    assert isinstance(document, dict)
    for key, image in document.items():
        where = f"{key!r} of {file.path}"
        name = member(image, "filename", str, where)
        regions = image.get("regions", [])
        if isinstance(regions, dict):  # version 1 numbers them by keys
            regions = list(regions.values())
        if not isinstance(regions, list):
            raise BoxFileError(f"{where}: 'regions' is {excerpt(regions)}; write a list")
        places = [f"regions[{index}] of {where}" for index in range(len(regions))]
        yield (
            name,
            [
                (place, member(region, "shape_attributes", dict, place), _attributes(region))
                for place, region in zip(places, regions, strict=True)
            ],
        )


def _attributes(region: object) -> object:
    return region.get(_ATTRIBUTES) if isinstance(region, dict) else None


def _table(file: SourceFile) -> Iterator[tuple[str, list[_Shape]]]:
    images: dict[str, list[_Shape]] = {}
    reader = csv.DictReader(io.StringIO(file.text))
    try:
        for row in reader:
            where = f"line {reader.line_num} of {file.path}"
            name = row.get("filename") or row.get("#filename")
            if not name:
                raise BoxFileError(f"{where}: names no image; fill its column filename")
            shapes = images.setdefault(name, [])
            shape = _cell(row.get(_SHAPE), where)
            if shape:
                shapes.append((where, shape, _cell(row.get(_ATTRIBUTES), where)))
    except csv.Error as error:
        raise BoxFileError(f"line {reader.line_num} of {file.path}: is not CSV: {error}") from None
    yield from images.items()


def _cell(text: str | None, where: str) -> object:
    try:
        return parse_json(text or "")
    except ValueError:
        raise BoxFileError(
            f"{where}: {excerpt(text)} is not JSON; the file seems cut, export it again"
        ) from None


def _boxes(shapes: list[_Shape], left_out: list[LeftOut]) -> Iterator[WrittenBox]:
    for where, shape, attributes in shapes:
        kind = member(shape, "name", str, where)
        if kind in _SKIPPED:
            left_out.append(LeftOut(where, _SKIPPED[kind]))
            continue
        box = _box(shape, kind, where)
        if box is None:
            left_out.append(LeftOut(where, FLAT))
        else:
            yield WrittenBox(box, label=_label(attributes, where))


def _box(shape: object, kind: str, where: str) -> tuple[float, float, float, float] | None:
    assert isinstance(shape, dict)
    if kind == "rect":
        x, y, width, height = four([shape.get(key) for key in ("x", "y", "width", "height")], where)
        return (x, y, x + width, y + height)
    if kind == "circle":
        x, y, radius = finite([shape.get(key) for key in ("cx", "cy", "r")], where)
        return (x - radius, y - radius, x + radius, y + radius)
    if kind == "polygon":
        xs = finite(shape.get("all_points_x"), where)
        ys = finite(shape.get("all_points_y"), where)
        try:
            points = list(zip(xs, ys, strict=True))
        except ValueError:
            raise BoxError(f"box in {where}: its points have more x than y, or less") from None
        return bounding(points, where) if has_area(points) else None
    raise BoxError(f"box in {where}: {excerpt(kind)} is not a shape of VIA; export it again")


def _label(attributes: object, where: str) -> str | None:
    if not isinstance(attributes, dict):
        return None
    texts = {key: value for key, value in attributes.items() if isinstance(value, (str, int))}
    key = next((key for key in LABELS if key in texts), None)
    if key is None and len(texts) == 1:
        (key,) = texts
    return (optional_text(texts, key, where) or None) if key else None


def write(images: Sequence[ImageRegions]) -> Files:
    """Render an export of all images."""
    document = {
        image.name: {
            "filename": image.name,
            "size": -1,
            "regions": [_region(region) for region in image.regions],
            "file_attributes": {},
        }
        for image in images
    }
    return {PurePosixPath(): json_text({_IMAGES: document})}


def _region(region: Region) -> object:
    box = region.box
    numbers = map(plain_number, (box.x0, box.y0, box.width, box.height))
    shape = dict(zip(("x", "y", "width", "height"), numbers, strict=True))
    attributes = ({"label": region.label} if region.label else {}) | score_field(region)
    return {"shape_attributes": {"name": "rect", **shape}, "region_attributes": attributes}
