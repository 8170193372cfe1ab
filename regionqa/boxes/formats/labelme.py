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
    SourceFile,
    file_per_image,
)
from regionqa.boxes.fields import (
    bounding,
    json_text,
    member,
    optional_text,
    plain_number,
    points_of,
    size_of,
)
from regionqa.errors import BoxFileError
from regionqa.regions import Region, WrittenBox

TITLE = "LabelMe"
IMAGE_SUFFIX = ".json"


def recognise(file: SourceFile) -> bool:
    """Whether the file is a JSON object with `shapes`."""
    return file.kind == ".json" and isinstance(file.document, dict) and "shapes" in file.document


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read every shape as the upright box around its points, in pixels."""
    return BoxContents(tuple(map(_entry, files)))


def _entry(file: SourceFile) -> BoxEntry:
    document, path = file.document, file.path
    if not isinstance(document, dict) or "shapes" not in document:
        raise BoxFileError(
            f"{path}: has no 'shapes', so it is not a LabelMe file; "
            "if it is about many images, give the file itself and not its folder"
        )
    shapes = member(document, "shapes", list, str(path))
    image = optional_text(document, "imagePath", str(path))
    size = size_of(document.get("imageWidth"), document.get("imageHeight"))
    return BoxEntry.of_file(file, image, _boxes(shapes, path), size=size)


def _boxes(shapes: list[object], path: Path) -> Iterator[WrittenBox]:
    for index, shape in enumerate(shapes):
        kind = optional_text(shape, "shape_type", f"shapes[{index}] of {path}") or "polygon"
        where = f"shapes[{index}] ({kind}) of {path}"
        points = points_of(member(shape, "points", list, where), where)
        if kind == "circle" and len(points) == 2:  # the centre, and a point on the circle
            (x, y), radius = points[0], math.dist(*points)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
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
    }
