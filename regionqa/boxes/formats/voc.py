"""Pascal VOC: an XML file per image, read and written."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    SourceFile,
    file_per_image,
)
from regionqa.boxes.fields import four, numbers_of, plain_number, size_of
from regionqa.errors import BoxFileError
from regionqa.regions import WrittenBox

TITLE = "Pascal VOC"
IMAGE_SUFFIX = ".xml"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _TreeWithoutDoctype(ElementTree.TreeBuilder):
    """A tree builder that refuses document types, whose entities can expand to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ElementTree.ParseError(f"it declares a document type, {name}; remove the <!DOCTYPE>")


def recognise(file: SourceFile) -> bool:
    """Whether the file is XML; no other format is."""
    return file.kind == ".xml"


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read `xmin, ymin, xmax, ymax` in pixels.

    The numbers are taken as half-open xyxy, as nearly every tool writes them today. The original
    VOC data counts pixels from 1 and includes the last, which differs by at most one pixel.
    """
    return BoxContents(tuple(map(_entry, files)))


def _entry(file: SourceFile) -> BoxEntry:
    path = file.path
    parser = ElementTree.XMLParser(target=_TreeWithoutDoctype())
    try:
        root = ElementTree.fromstring(path.read_bytes(), parser)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BoxFileError(f"{path}: is not valid XML: {error}") from None
    if root.tag != "annotation":
        raise BoxFileError(f"{path}: begins with <{root.tag}>, not with VOC's <annotation>")
    name = (root.findtext("filename") or "").strip()
    size = size_of(root.findtext("size/width"), root.findtext("size/height"))
    return BoxEntry.of_file(file, name, _boxes(root, path), size=size)


def _boxes(root: ElementTree.Element, path: Path) -> Iterator[WrittenBox]:
    for number, element in enumerate(root.findall("object"), 1):
        where = f"object {number} of {path}"
        corners = element.find("bndbox")
        if corners is None:
            raise BoxFileError(f"{where}: has no <bndbox>; add it, or export the file again")
        values = numbers_of((corners.findtext(name) or "" for name in _CORNERS), where)
        label = (element.findtext("name") or "").strip() or None
        yield WrittenBox(four(values, where), label=label)


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
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
