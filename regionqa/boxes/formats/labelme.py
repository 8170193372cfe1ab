"""LabelMe: a JSON file per image, read and written."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    entry_per_file,
    file_per_image,
    score_field,
)
from regionqa.boxes.fields import (
    json_text,
    member,
    optional_text,
    plain_number,
    points_of,
    size_of,
)
from regionqa.boxes.remarks import Adjusted, LeftOut
from regionqa.boxes.shapes import FLAT, TURNED, bounding, has_area, is_upright
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Region, WrittenBox

TITLE = "LabelMe"
IMAGE_SUFFIX = ".json"
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False
_SKIPPED = {
    "point": "points",
    "points": "points",
    "line": "lines",
    "linestrip": "lines",
    "ellipse": "ellipses",
    "cuboid": "cuboids",
}
_CORNERS = ("rectangle", "mask")
"""Shapes of two opposite corners."""
_TURNED = ("rotation", "oriented_rectangle")
"""Shapes of four corners."""


def recognise(file: SourceFile) -> bool:
    """Whether the file is a JSON object with `shapes`."""
    return file.kind == ".json" and isinstance(file.document, dict) and "shapes" in file.document


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read rectangles, circles and polygons as the upright boxes around them, in pixels."""
    left_out: list[LeftOut] = []
    adjusted: list[Adjusted] = []
    entries = entry_per_file(files, lambda file: _entry(file, left_out, adjusted))
    return BoxContents(entries, tuple(left_out), adjusted=tuple(adjusted))


def _entry(file: SourceFile, left_out: list[LeftOut], adjusted: list[Adjusted]) -> BoxEntry:
    document, path = file.document, file.path
    if not isinstance(document, dict) or "shapes" not in document:
        raise BoxFileError(
            f"{path}: has no 'shapes', so it is not a LabelMe file; "
            "if it is about many images, give the file itself and not its folder"
        )
    shapes = member(document, "shapes", list, str(path))
    image = optional_text(document, "imagePath", str(path))
    size = size_of(document.get("imageWidth"), document.get("imageHeight"))
    return BoxEntry.of_file(file, image, _boxes(shapes, path, left_out, adjusted), size=size)


def _boxes(
    shapes: list[object], path: Path, left_out: list[LeftOut], adjusted: list[Adjusted]
) -> Iterator[WrittenBox]:
    for index, shape in enumerate(shapes):
        kind = optional_text(shape, "shape_type", f"shapes[{index}] of {path}") or "polygon"
        where = f"shapes[{index}] ({kind}) of {path}"
        if kind in _SKIPPED:
            left_out.append(LeftOut(where, _SKIPPED[kind]))
            continue
        if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
            raise BoxError(f"box in {where}: has no 'points'; add them, or export the file again")
        points = points_of(shape["points"], where)
        if kind == "circle" and len(points) == 2:  # the centre, and a point on the circle
            (x, y), radius = points[0], math.dist(*points)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        elif kind not in _CORNERS and len(points) != 2 and not has_area(points):
            left_out.append(LeftOut(where, FLAT))
            continue
        if kind in _TURNED and not is_upright(points):
            adjusted.append(Adjusted(where, TURNED))
        label = optional_text(shape, "label", where) or None
        yield WrittenBox(bounding(points, where), label=label)


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a file per image, which lies beside its image."""
    return file_per_image(images, IMAGE_SUFFIX, lambda image: json_text(_document(image)))


def _document(image: ImageRegions) -> object:
    return {
        "version": "5.0.1",
        "flags": {},
        "shapes": [_shape(region) for region in image.regions],
        "imagePath": PurePosixPath(image.name).name,
        "imageData": None,
        "imageHeight": image.height,
        "imageWidth": image.width,
    }


def _shape(region: Region) -> object:
    x0, y0, x1, y1 = map(plain_number, region.box.xyxy)
    return {
        "label": region.label or "",
        "points": [[x0, y0], [x1, y1]],
        "group_id": None,
        "shape_type": "rectangle",
        "flags": {},
        **score_field(region),
    }
