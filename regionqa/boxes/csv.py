"""The box files that are not JSON: Pascal VOC, YOLO and CSV, each read and written.

Reading takes a path and gives `BoxEntry`s; writing takes images and gives text. How a file's format
is recognised, and where files lie, is not known here.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.boxes.fields import (
    BoxEntry,
    ImageRegions,
    excerpt,
    four,
    load_text,
    numbers_of,
    plain_number,
)
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

# ---- CSV ----
_IMAGE = ("image", "filename", "file_name", "file", "image_path", "path", "image")
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
class _Columns:
    """Where a CSV file keeps what, and what its header says of the four numbers."""

    image: int
    numbers: tuple[int, ...]
    label: int
    format: BoxFormat = BoxFormat.xyxy


def csv_entries(path: Path, format: BoxFormat | None, units: BoxUnits) -> list[BoxEntry]:
    """A table with a row per box: image, four numbers, perhaps a label.

    format: None for what the header's names say, as `x,y,w,h` does. A file without a header has
    its columns in this order, as xyxy. A row with no numbers is an image without boxes.
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
    images: dict[str, list[tuple[str, list[str]]]] = {}
    for line, row in rows:
        name = _cell(row, columns.image)
        if not name:
            raise BoxFileError(f"line {line} of {path}: names no image; fill its image column")
        images.setdefault(name, []).append((f"line {line} of {path}", row))
    return [
        BoxEntry.of(name, _csv_boxes(named, columns, format or columns.format, units))
        for name, named in images.items()
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


def csv_text(images: Sequence[ImageRegions]) -> str:
    """The table of all images, in xyxy pixels; an image without regions keeps a row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEADER)
    for image in images:
        for region in image.regions:
            values = [plain_number(value) for value in region.box.xyxy]
            writer.writerow([image.name, *values, region.label or ""])
        if not image.regions:
            writer.writerow([image.name, *[""] * 5])
    return file.getvalue()
