"""The box files that are JSON: plain, COCO, LabelMe and Label Studio, each read and written.

Reading takes a parsed document and gives `BoxEntry`s; writing takes images and gives a document.
How a document's format is recognised, and where files lie, is not known here.
"""

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from regionqa.boxes.fields import (
    BoxEntry,
    ImageRegions,
    bounding,
    member,
    optional_text,
    plain_number,
    points_of,
)
from regionqa.errors import BoxFileError
from regionqa.regions import Region, WrittenBox


# ---- LabelMe ----
def labelme_entry(document: object, path: Path) -> BoxEntry:
    """A LabelMe file: every shape counts, as the upright box around its points, in pixels."""
    if not isinstance(document, dict) or "shapes" not in document:
        raise BoxFileError(
            f"{path}: has no 'shapes', as a LabelMe file must; "
            "if it is about many images, give it itself and not its folder"
        )
    shapes = member(document, "shapes", list, str(path))
    image = optional_text(document, "imagePath", str(path))
    return BoxEntry.of_file(path, image, _labelme_boxes(shapes, path))


def _labelme_boxes(shapes: list[object], path: Path) -> Iterator[WrittenBox]:
    for index, shape in enumerate(shapes):
        kind = optional_text(shape, "shape_type", f"shapes[{index}] of {path}") or "polygon"
        where = f"shapes[{index}] ({kind}) of {path}"
        points = points_of(member(shape, "points", list, where), where)
        if kind == "circle" and len(points) == 2:  # its centre, and a point of its rim
            (x, y), radius = points[0], math.dist(*points)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        label = optional_text(shape, "label", where) or None
        yield WrittenBox(bounding(points, where), label=label)


def labelme_document(image: ImageRegions) -> object:
    """The LabelMe document of one image, which lies beside the file."""
    return {
        "version": "5.0.1",
        "flags": {},
        "shapes": [_labelme_shape(region) for region in image.regions],
        "imagePath": PurePosixPath(image.name).name,
        "imageData": None,
        "imageHeight": image.height,
        "imageWidth": image.width,
    }


def _labelme_shape(region: Region) -> object:
    x0, y0, x1, y1 = map(plain_number, region.box.xyxy)
    return {
        "label": region.label or "",
        "points": [[x0, y0], [x1, y1]],
        "group_id": None,
        "shape_type": "rectangle",
        "flags": {},
    }
