"""Labelled boxes of a file as requests, one per box that is large enough."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from regionqa.boxes.files import BoxFile
from regionqa.boxes.images import ImageFolders
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.sizes import SizeCheck
from regionqa.errors import DataError, ItemError
from regionqa.images.reading import open_image
from regionqa.regions import WrittenBox, clip_all
from regionqa.requests import NAMING_QUESTION, Request

MIN_SIDE = 32.0
"""Default minimum of a box's shorter side, in pixels."""


def box_requests(
    boxfile: BoxFile,
    folder: Path,
    min_side: float = MIN_SIDE,
    question: str = NAMING_QUESTION,
    left_out: list[LeftOut] | None = None,
    sizes: SizeCheck | None = None,
) -> Iterator[Request]:
    """Yield a request per labelled box that is large enough; one that fails carries its error.

    COCO's crowd annotations show no single object and are left out, as in training. What is left
    out is appended to `left_out`. `sizes` compares images with the sizes that the file states.
    """
    left_out = [] if left_out is None else left_out
    folders = ImageFolders(boxfile.source, [folder], deep=True)
    sizes = sizes or SizeCheck(boxfile.source)
    for entry in boxfile.entries:
        if entry.name is None:
            continue
        name = entry.name
        try:
            boxes = entry.checked_boxes()
            left_out += (LeftOut(name, reason) for box in boxes if (reason := _why_left_out(box)))
            entry = replace(entry, boxes=tuple(box for box in boxes if not _why_left_out(box)))
            if not entry.boxes:
                continue
            image = open_image(folders.find(entry))
            size = (image.width, image.height)
            boxes = sizes.fit(entry, name, size)
        except ItemError as error:
            yield Request(name, question, error=error)
            continue
        for written in boxes:
            try:
                region = written.resolve(*size)
                if min(region.box.width, region.box.height) >= min_side:
                    yield Request(name, question, clip_all((region,), *size)[0], image)
                else:
                    left_out.append(LeftOut(name, f"boxes with a side below {min_side:g} pixels"))
            except ItemError as error:
                yield Request(name, question, source=image, error=error)


def _why_left_out(box: WrittenBox) -> str | None:
    if box.is_crowd:
        return "crowds"
    return None if box.label else "boxes without a label"


def class_list(boxfile: BoxFile) -> list[str]:
    """Return the classes of a file, sorted: COCO's categories, else the labels of its boxes."""
    if boxfile.classes is not None:
        return sorted(set(boxfile.classes))
    return sorted({box.label for entry in boxfile.entries for box in entry.boxes if box.label})


def require_boxes(items: Sequence[object], boxfile: BoxFile, min_side: float) -> None:
    """Raise DataError if there are no items, because no box of the file qualifies."""
    if not items:
        raise DataError(
            f"{boxfile.source}: no labelled box of {min_side:g} pixels or more; "
            "lower --min-side, or give boxes with labels"
        )
