"""CSV: a row per box, read and written."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    Size,
    SourceFile,
)
from regionqa.boxes.fields import excerpt, four, load_text, numbers_of, plain_number, size_of
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, WrittenBox

TITLE = "CSV with the columns image,x0,y0,x1,y1"
IMAGE_SUFFIX = None

_IMAGE = ("image", "filename", "file_name", "file", "image_path", "path")
_SIZES = (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height"))
_LABEL = ("label", "class", "class_name", "category")
_NUMBERS = {  # corners first: beside them, `width` and `height` are the image's
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
class _Row:
    """A row that is not blank."""

    where: str
    cells: list[str]

    def cell(self, index: int) -> str:
        """The text of a column; empty if the row is shorter."""
        return self.cells[index].strip() if index < len(self.cells) else ""


@dataclass(frozen=True)
class _Columns:
    """Indices of columns, and what the header implies about the four numbers."""

    image: int
    numbers: tuple[int, ...]
    label: int
    format: BoxFormat = BoxFormat.xyxy
    size: tuple[int, int] | None = None
    """Columns of the image's width and height."""


def recognise(file: SourceFile) -> bool:
    """Whether the file has the suffix of a table."""
    return file.kind == ".csv"


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read a row per box: image, four numbers, perhaps a label.

    The convention of the numbers is the user's, else the one that the header implies, as `x,y,w,h`
    does. A file without a header has its columns in this order, xyxy. A row without numbers is an
    image without boxes.
    """
    return BoxContents(tuple(entry for file in files for entry in _entries(file.path, convention)))


def _entries(path: Path, convention: Convention) -> Iterator[BoxEntry]:
    rows = _rows(path)
    if not rows:
        raise BoxFileError(f"{path}: is empty; write at least the header {','.join(_HEADER)}")
    columns = _named_columns(rows[0].cells)
    if columns is not None:
        del rows[0]
    elif len(rows[0].cells) >= 5 and _are_numbers(rows[0].cells[1:5]):
        columns = _Columns(0, (1, 2, 3, 4), 5)
    else:
        raise BoxFileError(
            f"{rows[0].where}: {excerpt(','.join(rows[0].cells))} is not a known header; "
            f"write {','.join(_HEADER)}"
        )
    images: dict[str, list[_Row]] = {}
    for row in rows:
        name = row.cell(columns.image)
        if not name:
            raise BoxFileError(f"{row.where}: names no image; fill its image column")
        images.setdefault(name, []).append(row)
    for name, own in images.items():
        yield BoxEntry.of(name, _boxes(own, columns, convention), size=_size(own, columns))


def _size(rows: list[_Row], columns: _Columns) -> Size | None:
    """Return the image's size as the first of its rows states it."""
    return size_of(*map(rows[0].cell, columns.size)) if columns.size else None


def _rows(path: Path) -> list[_Row]:
    """Read the rows that are not blank; `;` or tab may replace the comma."""
    text = load_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        return [
            _Row(f"line {reader.line_num} of {path}", cells)
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise BoxFileError(f"line {reader.line_num} of {path}: is not CSV: {error}") from None


def _named_columns(header: list[str]) -> _Columns | None:
    at = {name.strip().lower(): index for index, name in enumerate(header)}
    image = next((at[name] for name in _IMAGE if name in at), None)
    numbers = next((names for names in _NUMBERS if all(name in at for name in names)), None)
    if image is None or numbers is None:
        return None
    label = next((at[name] for name in _LABEL if name in at), len(header))
    sizes = (names for names in _SIZES if set(names) <= at.keys() - set(numbers))
    size = next(((at[width], at[height]) for width, height in sizes), None)
    return _Columns(image, tuple(at[name] for name in numbers), label, _NUMBERS[numbers], size)


def _are_numbers(cells: list[str]) -> bool:
    """Whether the cells are four numbers, or all empty."""
    try:
        return len([float(cell) for cell in cells if cell.strip()]) in (0, len(cells))
    except ValueError:
        return False


def _boxes(rows: list[_Row], columns: _Columns, convention: Convention) -> Iterator[WrittenBox]:
    format = convention.format or columns.format
    for row in rows:
        cells = [row.cell(index) for index in columns.numbers]
        if any(cells):
            values = four(numbers_of(cells, row.where), row.where)
            yield WrittenBox(values, format, convention.units, row.cell(columns.label) or None)


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a table, xyxy in pixels; an image without regions keeps a row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADER)
    for image in images:
        for region in image.regions:
            values = [plain_number(value) for value in region.box.xyxy]
            writer.writerow([image.name, *values, region.label or ""])
        if not image.regions:
            writer.writerow([image.name, *[""] * 5])
    return {PurePosixPath(): file.getvalue()}
