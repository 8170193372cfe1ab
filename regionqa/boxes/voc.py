"""The box files that are not JSON: Pascal VOC, YOLO and CSV, each read and written.

Reading takes a path and gives `BoxEntry`s; writing takes images and gives text. How a file's format
is recognised, and where files lie, is not known here.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from regionqa.boxes.fields import BoxEntry, ImageRegions, four, numbers_of, plain_number
from regionqa.errors import BoxFileError
from regionqa.regions import WrittenBox

# ---- Pascal VOC ----
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _PlainTree(ElementTree.TreeBuilder):
    """A tree without a document type: entities declared there can grow to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ElementTree.ParseError(f"it declares a document type, {name}; remove the <!DOCTYPE>")


def voc_entry(path: Path) -> BoxEntry:
    """A Pascal VOC file: `xmin, ymin, xmax, ymax` in pixels.

    The numbers are taken for plain xyxy, as nearly every tool writes them today; the first VOC data
    counted pixels from one and included the last, which differs by one pixel at most.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BoxFileError(f"{path}: is not XML that can be read: {error}") from None
    if root.tag != "annotation":
        raise BoxFileError(f"{path}: begins with <{root.tag}>, but VOC's <annotation> is due")
    return BoxEntry.of_file(path, (root.findtext("filename") or "").strip(), _voc_boxes(root, path))


def _voc_boxes(root: ElementTree.Element, path: Path) -> Iterator[WrittenBox]:
    for number, thing in enumerate(root.findall("object"), 1):
        where = f"object {number} of {path}"
        corners = thing.find("bndbox")
        if corners is None:
            raise BoxFileError(f"{where}: has no <bndbox>; add it, or export the file again")
        values = numbers_of((corners.findtext(name) or "" for name in _CORNERS), where)
        label = (thing.findtext("name") or "").strip() or None
        yield WrittenBox(four(values, where), label=label)


def voc_text(image: ImageRegions) -> str:
    """The Pascal VOC document of one image."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = PurePosixPath(image.name).name
    size = ElementTree.SubElement(root, "size")
    for name, length in (("width", image.width), ("height", image.height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(length)
    for region in image.regions:
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = region.label
        corners = ElementTree.SubElement(thing, "bndbox")
        for name, value in zip(_CORNERS, region.box.xyxy, strict=True):
            ElementTree.SubElement(corners, name).text = str(plain_number(value))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
