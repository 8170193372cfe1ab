"""The box files that are JSON: plain, COCO, LabelMe and Label Studio, each read and written.

Reading takes a parsed document and gives `BoxEntry`s; writing takes images and gives a document.
How a document's format is recognised, and where files lie, is not known here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from regionqa.boxes.fields import (
    BoxEntry,
    ImageRegions,
    excerpt,
    four,
    member,
    optional_text,
    plain_number,
)
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox


# ---- plain ----
def plain_entries(
    document: object, path: Path, format: BoxFormat, units: BoxUnits
) -> list[BoxEntry]:
    """`{"image.jpg": [[x0, y0, x1, y1], ...]}`, in the convention the user says.

    A box may also be `{"box": [...], "label": "..."}`. A bare list of boxes, or a list under the
    only key `boxes`, is for any image.
    """
    if isinstance(document, dict) and set(document) == {"boxes"}:
        document = document["boxes"]
    if not isinstance(document, dict):
        return [BoxEntry.of(None, _plain_boxes(document, "", path, format, units))]
    return [
        BoxEntry.of(name, _plain_boxes(items, repr(name), path, format, units))
        for name, items in document.items()
    ]


def _plain_boxes(
    items: object, name: str, path: Path, format: BoxFormat, units: BoxUnits
) -> Iterator[WrittenBox]:
    if not isinstance(items, list):
        raise BoxFileError(
            f"{name or 'boxes'} of {path}: is {excerpt(items)}, "
            "but a list of boxes is due, like [[10, 20, 200, 300]]"
        )
    for index, item in enumerate(items):
        where = f"{name}[{index}] of {path}"
        values = member(item, "box", object, where) if isinstance(item, dict) else item
        label = optional_text(item, "label", where) or None
        yield WrittenBox(four(values, where), format, units, label)


def plain_document(images: Sequence[ImageRegions]) -> object:
    """The plain document: xyxy pixels, a labelled box as an object."""
    return {image.name: [_plain_box(region) for region in image.regions] for image in images}


def _plain_box(region: Region) -> object:
    values = [plain_number(value) for value in region.box.xyxy]
    return {"box": values, "label": region.label} if region.label else values
