"""CVAT's XML of images and of videos, read; that of images written."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from xml.etree import ElementTree

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
)
from regionqa.boxes.fields import Numbers, numbers_of, plain_number, size_of
from regionqa.boxes.remarks import Adjusted, LeftOut
from regionqa.boxes.shapes import FLAT, TURNED, bounding, centre_of, has_area, pairs, turned_box
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import WrittenBox

TITLE = "CVAT XML"
IMAGE_SUFFIX = None
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False
FRAME_NAME = "frame_{:06d}"
"""CVAT's name of a video's frame, without suffix."""
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_SKIPPED = {
    "ellipse": "ellipses",
    "points": "points",
    "polyline": "lines",
    "cuboid": "cuboids",
    "skeleton": "skeletons",
}
_SHAPES = ("box", "polygon", "mask")
_Shape = tuple[str, str | None, ElementTree.Element]
"""Place, label and element."""


def recognise(file: SourceFile) -> bool:
    """Whether the file is XML that begins with `<annotations>`."""
    return file.kind == ".xml" and file.xml.tag == "annotations"


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read boxes, polygons and masks as upright boxes in pixels, and classes from the labels.

    The boxes of a video's tracks belong to its frames, which are images called `frame_000000` and
    so on; a frame in which an object is outside has no box of it.
    """
    entries: list[BoxEntry] = []
    left_out: list[LeftOut] = []
    adjusted: list[Adjusted] = []
    classes: list[str] = []
    for file in files:
        root = file.xml
        classes += (name.text or "" for name in root.iterfind("meta//label/name"))
        for number, image in enumerate(root.iterfind("image")):
            name = image.get("name")
            if not name:
                raise BoxFileError(f"image {number} of {file.path}: has no name; export it again")
            shapes = _of_image(image, f"image {name} of {file.path}")
            boxes = _boxes(shapes, left_out, adjusted)
            size = size_of(image.get("width"), image.get("height"))
            entries.append(BoxEntry.of(name, boxes, size=size))
        size = size_of(
            root.findtext("meta//original_size/width"), root.findtext("meta//original_size/height")
        )
        for frame, shapes in sorted(_frames(root, file).items()):
            boxes = _boxes(shapes, left_out, adjusted)
            entries.append(BoxEntry.of(FRAME_NAME.format(frame), boxes, by_stem=True, size=size))
    return BoxContents(
        tuple(entries), tuple(left_out), tuple(dict.fromkeys(classes)) or None, tuple(adjusted)
    )


def _of_image(image: ElementTree.Element, where: str) -> list[_Shape]:
    return [
        (f"<{shape.tag}> {number} of {where}", shape.get("label"), shape)
        for number, shape in enumerate(image, 1)
    ]


def _frames(root: ElementTree.Element, file: SourceFile) -> dict[int, list[_Shape]]:
    """Return the shapes of a video's tracks by frame."""
    frames: dict[int, list[_Shape]] = {}
    for track in root.iterfind("track"):
        for shape in track:
            number = shape.get("frame", "")
            where = f"frame {number} of track {track.get('id')} of {file.path}"
            if not re.fullmatch(r"\d{1,9}", number):
                raise BoxFileError(f"{where}: has no frame number; export it again")
            shapes = frames.setdefault(int(number), [])
            if shape.get("outside") != "1":
                shapes.append((where, track.get("label"), shape))
    return frames


def _boxes(
    shapes: list[_Shape], left_out: list[LeftOut], adjusted: list[Adjusted]
) -> Iterator[WrittenBox]:
    for where, label, shape in shapes:
        kind = shape.tag
        if kind in _SKIPPED:
            left_out.append(LeftOut(where, _SKIPPED[kind]))
        elif kind in _SHAPES:
            box = _box(shape, where)
            if box is None:
                left_out.append(LeftOut(where, FLAT))
                continue
            if turn := _number(shape, "rotation", where, "0"):
                box = turned_box(box, turn, centre_of(box))
                adjusted.append(Adjusted(where, TURNED))
            yield WrittenBox(box, label=label or None)
        elif kind != "tag":  # which is about the whole image
            left_out.append(LeftOut(where, f"shapes of kind {kind}"))


def _box(shape: ElementTree.Element, where: str) -> Numbers | None:
    if shape.tag == "box":
        x0, y0, x1, y1 = (_number(shape, name, where) for name in _CORNERS)
        return (x0, y0, x1, y1)
    if shape.tag == "mask":
        x, y, width, height = (
            _number(shape, name, where) for name in ("left", "top", "width", "height")
        )
        return (x, y, x + width, y + height)
    texts = [text for pair in shape.get("points", "").split(";") for text in pair.split(",")]
    points = pairs(numbers_of(texts, where), where)
    return bounding(points, where) if has_area(points) else None


def _number(shape: ElementTree.Element, name: str, where: str, default: str = "") -> float:
    text = shape.get(name, default)
    if not text:
        raise BoxError(f"box in {where}: has no {name}; export it again")
    return numbers_of([text], where)[0]


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a document of images."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, image in enumerate(images):
        size = {"width": str(image.width), "height": str(image.height)}
        attributes = {"id": str(number), "name": image.name, **size}
        element = ElementTree.SubElement(root, "image", attributes)
        for region in image.regions:
            corners = {
                name: str(plain_number(value))
                for name, value in zip(_CORNERS, region.box.xyxy, strict=True)
            }
            box = ElementTree.SubElement(element, "box", {"label": region.label or "", **corners})
            if region.score is not None:
                score = ElementTree.SubElement(box, "attribute", {"name": "score"})
                score.text = str(plain_number(region.score))
    ElementTree.indent(root)
    return {PurePosixPath(): ElementTree.tostring(root, encoding="unicode") + "\n"}
