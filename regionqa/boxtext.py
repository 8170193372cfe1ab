"""The box files that are not JSON: Pascal VOC, YOLO and CSV, each read and written.

Reading takes a path and gives `Entry`s; writing takes pictures and gives text. How a file's format
is recognised, and where files lie, is not known here.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from regionqa.boxentries import (
    Entry,
    PictureRegions,
    bounding,
    excerpt,
    four,
    load_text,
    numbers_of,
    plain_number,
)
from regionqa.errors import BoxFileError
from regionqa.regions import Box, BoxFormat, BoxUnits, WrittenBox

CLASS_NAMES = "classes.txt"

# ---- Pascal VOC ----

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _PlainTree(ElementTree.TreeBuilder):
    """A tree without a document type: entities declared there can grow to any size."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ElementTree.ParseError(f"it declares a document type, {name}; remove the <!DOCTYPE>")


def voc_entry(path: Path) -> Entry:
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
    return Entry.of_file(path, (root.findtext("filename") or "").strip(), _voc_boxes(root, path))


def _voc_boxes(root: ElementTree.Element, path: Path) -> Iterator[WrittenBox]:
    for number, thing in enumerate(root.findall("object"), 1):
        where = f"object {number} of {path}"
        corners = thing.find("bndbox")
        if corners is None:
            raise BoxFileError(f"{where}: has no <bndbox>; add it, or export the file again")
        values = numbers_of((corners.findtext(name) or "" for name in _CORNERS), where)
        label = (thing.findtext("name") or "").strip() or None
        yield WrittenBox(four(values, where), label=label)


def voc_text(picture: PictureRegions) -> str:
    """The Pascal VOC document of one picture."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = PurePosixPath(picture.name).name
    size = ElementTree.SubElement(root, "size")
    for name, length in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(length)
    for region in picture.regions:
        thing = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(thing, "name").text = region.label
        corners = ElementTree.SubElement(thing, "bndbox")
        for name, value in zip(_CORNERS, region.box.xyxy, strict=True):
            ElementTree.SubElement(corners, name).text = str(plain_number(value))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


# ---- YOLO ----


def yolo_entry(path: Path, names: dict[int, str]) -> Entry:
    """A YOLO file: a class number, then centre, width and height as fractions, on every line.

    names: what the class numbers mean; where it is empty the boxes stay unlabelled. A sixth number
    is a confidence and is passed over; a longer line is a polygon, which counts as the upright box
    around it.
    """
    return Entry.of_file(path, "", _yolo_boxes(load_text(path), path, names))


def _yolo_boxes(text: str, path: Path, names: dict[int, str]) -> Iterator[WrittenBox]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        first, *rest = line.split()
        label = _class_name(first, names, where) or None
        values = numbers_of(rest, where)
        if len(values) > 5:
            corners = bounding([*zip(values[::2], values[1::2], strict=False)], where)
            yield WrittenBox(corners, BoxFormat.xyxy, BoxUnits.fraction, label)
        else:
            yield WrittenBox(four(values[:4], where), BoxFormat.cxcywh, BoxUnits.fraction, label)


def _class_name(text: str, names: dict[int, str], where: str) -> str:
    if not re.fullmatch(r"\d{1,9}(\.0*)?", text):  # numpy's savetxt writes classes as 0.0
        raise BoxFileError(
            f"{where}: begins with {excerpt(text)}, but a class number is due; "
            "a YOLO line is: class cx cy width height"
        )
    number = int(float(text))
    if names and number not in names:
        raise BoxFileError(
            f"{where}: the class {number} has no name; add it to {CLASS_NAMES} or data.yaml"
        )
    return names.get(number, "")


def class_names(folder: Path, top: Path) -> dict[int, str]:
    """The names of the YOLO classes in a folder of labels; empty where none are given.

    They stand in classes.txt, or under `names` in data.yaml: in the folder, above it up to `top`,
    or at most two above that, for a dataset keeps its labels in `labels/train`.
    """
    inner = folder.relative_to(top)
    innermost = top.resolve() / inner
    for place in (innermost, *innermost.parents[: len(inner.parts) + 2]):
        if (path := place / CLASS_NAMES).is_file():
            return dict(enumerate(map(str.strip, load_text(path).removesuffix("\n").split("\n"))))
        if (path := place / "data.yaml").is_file():
            return _yaml_names(load_text(path), path)
    return {}


def _yaml_names(text: str, path: Path) -> dict[int, str]:
    """The names in data.yaml: `names: [a, b]`, or lines `- a`, or lines `0: a` below `names:`."""
    text = re.sub(r"(^|[ \t])#.*", "", text, flags=re.MULTILINE)
    start = re.search(r"^names:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    if start is None:
        return {}
    if inline := re.fullmatch(r"\[(.*)\]", start[1]):
        items = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*,?""", inline[1])
        return dict(enumerate(map(_unquoted, items)))
    names: dict[int, str] = {}
    for line in filter(str.strip, text[start.end() :].splitlines()):
        item = re.match(r"\s*(?:-|(\d+):)\s+(.+)", line)
        if item is None:
            break
        names[int(item[1] or len(names))] = _unquoted(item[2])
    if start[1] or not names:
        raise BoxFileError(f"{path}: 'names' is not a simple list; write them into {CLASS_NAMES}")
    return names


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")


def yolo_writer(labels: Sequence[str]) -> Callable[[PictureRegions], str]:
    """What writes the lines of one picture; labels: all there are, in their numbers' order."""
    numbers = {label: number for number, label in enumerate(labels)}

    def text_of(picture: PictureRegions) -> str:
        return "".join(
            f"{numbers[region.label or '']} {_yolo_numbers(region.box, picture)}\n"
            for region in picture.regions
        )

    return text_of


def _yolo_numbers(box: Box, picture: PictureRegions) -> str:
    centre = ((box.x0 + box.x1) / 2 / picture.width, (box.y0 + box.y1) / 2 / picture.height)
    extent = (box.width / picture.width, box.height / picture.height)
    return " ".join(f"{value:.9f}" for value in (*centre, *extent))


# ---- CSV ----

_IMAGE = ("image", "filename", "file_name", "file", "image_path", "path", "picture")
_LABEL = ("label", "class", "class_name", "category")
_NUMBERS = {  # corners first: beside them, `width` and `height` are the picture's
    ("x0", "y0", "x1", "y1"): BoxFormat.xyxy,
    ("xmin", "ymin", "xmax", "ymax"): BoxFormat.xyxy,
    ("x1", "y1", "x2", "y2"): BoxFormat.xyxy,
    ("left", "top", "right", "bottom"): BoxFormat.xyxy,
    ("x", "y", "w", "h"): BoxFormat.xywh,
    ("x", "y", "width", "height"): BoxFormat.xywh,
    ("cx", "cy", "w", "h"): BoxFormat.cxcywh,
    ("cx", "cy", "width", "height"): BoxFormat.cxcywh,
}
_HEADER = ("image", "x0", "y0", "x1", "y1", "label")


@dataclass(frozen=True)
class _Columns:
    """Where a CSV file keeps what, and what its header says of the four numbers."""

    image: int
    numbers: tuple[int, ...]
    label: int
    format: BoxFormat = BoxFormat.xyxy


def csv_entries(path: Path, format: BoxFormat | None, units: BoxUnits) -> list[Entry]:
    """A table with a row per box: picture, four numbers, perhaps a label.

    format: None for what the header's names say, as `x,y,w,h` does. A file without a header has
    its columns in this order, as xyxy. A row with no numbers is a picture without boxes.
    """
    rows = _csv_rows(path)
    if not rows:
        raise BoxFileError(f"{path}: is empty; write at least the header {','.join(_HEADER)}")
    line, first = rows[0]
    columns = _named_columns(first)
    if columns is not None:
        del rows[0]
    elif len(first) >= 5 and _are_numbers(first[1:5]):
        columns = _Columns(0, (1, 2, 3, 4), 5)
    else:
        raise BoxFileError(
            f"line {line} of {path}: {excerpt(','.join(first))} is no header that is known; "
            f"write {','.join(_HEADER)}"
        )
    pictures: dict[str, list[tuple[str, list[str]]]] = {}
    for line, row in rows:
        name = _cell(row, columns.image)
        if not name:
            raise BoxFileError(f"line {line} of {path}: names no picture; fill its picture column")
        pictures.setdefault(name, []).append((f"line {line} of {path}", row))
    return [
        Entry.of(name, _csv_boxes(named, columns, format or columns.format, units))
        for name, named in pictures.items()
    ]


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not blank, each with its line number; `;` and tab may replace the comma."""
    text = load_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        return [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise BoxFileError(f"line {reader.line_num} of {path}: is not CSV: {error}") from None


def _named_columns(header: list[str]) -> _Columns | None:
    at = {name.strip().lower(): index for index, name in enumerate(header)}
    image = next((at[name] for name in _IMAGE if name in at), None)
    numbers = next((names for names in _NUMBERS if all(name in at for name in names)), None)
    if image is None or numbers is None:
        return None
    label = next((at[name] for name in _LABEL if name in at), len(header))
    return _Columns(image, tuple(at[name] for name in numbers), label, _NUMBERS[numbers])


def _are_numbers(cells: list[str]) -> bool:
    try:
        return len([float(cell) for cell in cells if cell.strip()]) in (0, len(cells))
    except ValueError:
        return False


def _csv_boxes(
    rows: list[tuple[str, list[str]]], columns: _Columns, format: BoxFormat, units: BoxUnits
) -> Iterator[WrittenBox]:
    for where, row in rows:
        cells = [_cell(row, index) for index in columns.numbers]
        if any(cells):
            values = four(numbers_of(cells, where), where)
            yield WrittenBox(values, format, units, _cell(row, columns.label) or None)


def _cell(row: list[str], index: int) -> str:
    return row[index].strip() if index < len(row) else ""


def csv_text(pictures: Sequence[PictureRegions]) -> str:
    """The table of all pictures, in xyxy pixels; a picture without regions keeps a row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADER)
    for picture in pictures:
        for region in picture.regions:
            values = [plain_number(value) for value in region.box.xyxy]
            writer.writerow([picture.name, *values, region.label or ""])
        if not picture.regions:
            writer.writerow([picture.name, *[""] * 5])
    return file.getvalue()
