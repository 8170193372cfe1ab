"""Pascal VOC: an XML file per image, read and written."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    entry_per_file,
    file_per_image,
)
from regionqa.boxes.fields import Numbers, four, numbers_of, plain_number, size_of
from regionqa.boxes.remarks import Adjusted, LeftOut
from regionqa.boxes.shapes import (
    FLAT,
    TURNED,
    bounding,
    centre_of,
    has_area,
    pairs,
    turned_box,
)
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import WrittenBox

TITLE = "Pascal VOC"
IMAGE_SUFFIX = ".xml"
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("cx", "cy", "w", "h", "angle")


def recognise(file: SourceFile) -> bool:
    """Whether the file is XML; those of other formats are recognised before."""
    return file.kind == ".xml"


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read `xmin, ymin, xmax, ymax` in pixels.

    The numbers are taken as half-open xyxy, as nearly every tool writes them today. The original
    VOC data counts pixels from 1 and includes the last, which differs by at most one pixel. A box
    that roLabelImg or CVAT turned is read as the upright box around it, and an object without a box
    as that around its polygon.
    """
    left_out: list[LeftOut] = []
    adjusted: list[Adjusted] = []
    entries = entry_per_file(files, lambda file: _entry(file, left_out, adjusted))
    return BoxContents(entries, tuple(left_out), adjusted=tuple(adjusted))


def _entry(file: SourceFile, left_out: list[LeftOut], adjusted: list[Adjusted]) -> BoxEntry:
    path, root = file.path, file.xml
    if root.tag == "annotations":
        raise BoxFileError(f"{path}: is CVAT's XML of many images; give the file, not its folder")
    if root.tag != "annotation":
        raise BoxFileError(f"{path}: begins with <{root.tag}>, not with VOC's <annotation>")
    name = (root.findtext("filename") or "").strip()
    size = size_of(root.findtext("size/width"), root.findtext("size/height"))
    return BoxEntry.of_file(file, name, _boxes(root, path, left_out, adjusted), size=size)


def _boxes(
    root: ElementTree.Element, path: Path, left_out: list[LeftOut], adjusted: list[Adjusted]
) -> Iterator[WrittenBox]:
    for number, element in enumerate(root.findall("object"), 1):
        where = f"object {number} of {path}"
        label = (element.findtext("name") or "").strip() or None
        values, turn = _corners(element, where)
        if values is None:
            left_out.append(LeftOut(where, _outline(element)))
            continue
        if turn:
            values = turned_box(values, turn, centre_of(values))
            adjusted.append(Adjusted(where, TURNED))
        yield WrittenBox(values, label=label)


def _corners(element: ElementTree.Element, where: str) -> tuple[Numbers | None, float]:
    """Return the box of an object, and by how many degrees it is turned."""
    corners, robot = element.find("bndbox"), element.find("robndbox")
    if corners is not None:
        values = four(numbers_of(_texts(corners, _CORNERS), where), where)
        turns = (
            attribute.findtext("value") or ""
            for attribute in element.iterfind("attributes/attribute")
            if attribute.findtext("name") == "rotation"
        )
        (turn,) = numbers_of([next(turns, "0")], where)
        return values, turn
    if robot is not None:  # roLabelImg: the centre, and an angle in radians
        x, y, width, height, angle = numbers_of(_texts(robot, _TURNED), where)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return box, math.degrees(angle)
    polygon = element.find("polygon")
    if polygon is not None:
        return _around(polygon, where), 0.0
    if any(element.find(name) is not None for name in ("line", "point", "ellipse")):
        return None, 0.0
    raise BoxError(f"box in {where}: has no <bndbox>; add it, or export the file again")


def _texts(element: ElementTree.Element, names: tuple[str, ...]) -> Iterator[str]:
    return (element.findtext(name) or "" for name in names)


def _around(polygon: ElementTree.Element, where: str) -> Numbers | None:
    """Return the box around a polygon of <pt> elements, or of x1, y1, x2 and so on."""
    texts = [text for point in polygon.iterfind("pt") for text in _texts(point, ("x", "y"))]
    if not texts:
        texts = [child.text or "" for child in polygon if re.fullmatch(r"[xy]\d+", child.tag)]
    points = pairs(numbers_of(texts, where), where)
    return bounding(points, where) if has_area(points) else None


def _outline(element: ElementTree.Element) -> str:
    kinds = {"line": "lines", "point": "points", "ellipse": "ellipses"}
    return next((text for tag, text in kinds.items() if element.find(tag) is not None), FLAT)


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a document per image."""
    return file_per_image(images, IMAGE_SUFFIX, _text)


def _text(image: ImageRegions) -> str:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = PurePosixPath(image.name).name
    size = ElementTree.SubElement(root, "size")
    for name, length in (("width", image.width), ("height", image.height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(length)
    for region in image.regions:
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = region.label
        corners = ElementTree.SubElement(element, "bndbox")
        for name, value in zip(_CORNERS, region.box.xyxy, strict=True):
            ElementTree.SubElement(corners, name).text = str(plain_number(value))
        if region.score is not None:
            ElementTree.SubElement(element, "score").text = str(plain_number(region.score))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
