"""CSV: a row per box, read and written; also Open Images, and spreadsheets of other countries."""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    Size,
)
from regionqa.boxes.fields import decode, excerpt, four, numbers_of, plain_number, size_of
from regionqa.boxes.objects import LABELS, bare_name, find_numbers
from regionqa.boxes.remarks import Adjusted
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

TITLE = "CSV with the columns image,x0,y0,x1,y1"
IMAGE_SUFFIX = None
OWN_CONVENTION = False
ABSENT_IS_EMPTY = False

_IMAGE = ("image", "filename", "file", "imagepath", "imagename", "path", "imageid", "img")
_SIZES = (
    ("width", "height"),
    ("imagewidth", "imageheight"),
    ("imgwidth", "imgheight"),
    ("imagew", "imageh"),
)
_HEADER = ("image", "x0", "y0", "x1", "y1", "label")
_OPEN_IMAGES = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}
_DESCRIPTIONS = "*class-descriptions*.csv"
_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""Excel's first line, which names the delimiter."""


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
    count: int = 0
    """Columns of the header; 0 without one."""
    format: BoxFormat = BoxFormat.xyxy
    units: BoxUnits | None = None
    group: int | None = None
    """Open Images' column IsGroupOf."""
    size: tuple[int, int] | None = None
    """Columns of the image's width and height."""
    is_list: bool = False
    """Whether `numbers` is a single column of four numbers."""

    @property
    def is_open_images(self) -> bool:
        """Whether images are named without suffix, and classes by codes."""
        return self.group is not None


@dataclass(frozen=True)
class _Table:
    """The rows of a file."""

    rows: list[_Row]
    delimiter: str


def recognise(file: SourceFile) -> bool:
    """Whether the file has the suffix of a table, or is text that begins with a known header."""
    if file.kind == ".csv":
        return True
    if file.kind not in ("", ".txt"):
        return False
    try:
        head = "\n".join(file.text.split("\n", 2)[:2])  # the first line may be `sep=;`
        rows = _table(head, file.path).rows
    except BoxFileError:
        return False
    return bool(rows) and _named_columns(rows[0].cells) is not None


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read a row per box: image, four numbers, perhaps a label.

    The convention of the numbers is the user's, else the one that the header implies, as `x,y,w,h`
    does. A file without a header has its columns in this order, xyxy. A row without numbers is an
    image without boxes.
    """
    entries: list[BoxEntry] = []
    adjusted: list[Adjusted] = []
    for file in files:
        entries += _entries(file, convention, adjusted)
    return BoxContents(tuple(entries), adjusted=tuple(adjusted))


def _entries(
    file: SourceFile, convention: Convention, adjusted: list[Adjusted]
) -> Iterator[BoxEntry]:
    table = _table(file.text, file.path)
    rows = table.rows
    if not rows:
        raise BoxFileError(f"{file.path}: is empty; write at least the header {','.join(_HEADER)}")
    columns = _named_columns(rows[0].cells)
    decimal_commas = table.delimiter != ","
    if columns is not None:
        del rows[0]
    elif len(rows[0].cells) >= 5 and _are_numbers(rows[0].cells[1:5], decimal_commas):
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
    names = _class_names(file.path.parent) if columns.is_open_images else {}
    if columns.is_open_images and not names:
        where = f"{columns.label + 1}. column of {file.path}"
        adjusted.append(Adjusted(where, _WITHOUT_NAMES))
    for name, own in images.items():
        boxes = _boxes(own, columns, convention, names, decimal_commas)
        by_stem = columns.is_open_images and not PurePosixPath(name).suffix
        yield BoxEntry.of(name, boxes, by_stem=by_stem, size=_size(own, columns))


def _size(rows: list[_Row], columns: _Columns) -> Size | None:
    """Return the image's size as the first of its rows states it."""
    return size_of(*map(rows[0].cell, columns.size)) if columns.size else None


_WITHOUT_NAMES = (
    "class codes taken as labels, because no class-descriptions-boxable.csv lies beside the file"
)


def _table(text: str, path: Path) -> _Table:
    """Read the rows that are not blank; `;` or tab may replace the comma, as `sep=;` may say."""
    first, _, rest = text.partition("\n")
    told = _SEPARATOR.fullmatch(first.strip(" "))
    skipped = 0
    if told is not None:
        delimiter, text, skipped = told[1], rest, 1
    else:
        delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [
            _Row(f"line {reader.line_num + skipped} of {path}", cells)
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        line = reader.line_num + skipped
        raise BoxFileError(f"line {line} of {path}: is not CSV: {error}") from None
    return _Table(rows, delimiter)


def _named_columns(header: list[str]) -> _Columns | None:
    names = [name.strip() for name in header]
    at = {name: index for index, name in reversed([*enumerate(names)]) if name}
    bare = {bare_name(name): index for name, index in at.items()}
    image = next((bare[name] for name in _IMAGE if name in bare), None)
    if image is None:
        return None
    labels = [re.sub("[^a-z]", "", name) for name in (*LABELS, "LabelName".lower())]
    label = next((bare[n] for n in labels if n in bare and bare[n] != image), len(header))
    named = find_numbers(at)
    if named is None:
        single = next((at[name] for name in ("bbox", "box", "bounding_box") if name in at), None)
        if single is None:
            return None
        size = next((_at(pair, bare) for pair in _SIZES if set(pair) <= bare.keys()), None)
        return _Columns(image, (single,), label, len(header), size=size, is_list=True)
    numbers = tuple(at[key] for key in named.keys)
    free = bare.keys() - set(map(bare_name, named.keys))
    size = next((_at(pair, bare) for pair in _SIZES if set(pair) <= free), None)
    if at.keys() >= _OPEN_IMAGES:
        group = at.get("IsGroupOf", len(header))
        return _Columns(image, numbers, label, len(header), named.format, BoxUnits.fraction, group)
    return _Columns(image, numbers, label, len(header), named.format, size=size)


def _at(names: tuple[str, str], at: Mapping[str, int]) -> tuple[int, int]:
    return at[names[0]], at[names[1]]


def _are_numbers(cells: list[str], decimal_commas: bool) -> bool:
    """Whether the cells are four numbers, or all empty."""
    try:
        numbers = [float(_number(cell, decimal_commas)) for cell in cells if cell.strip()]
    except ValueError:
        return False
    return len(numbers) in (0, len(cells))


def _number(text: str, decimal_commas: bool) -> str:
    """Return the text of a number with a decimal point."""
    if decimal_commas and "." not in text and text.count(",") == 1:
        return text.replace(",", ".")
    return text


def _boxes(
    rows: list[_Row],
    columns: _Columns,
    convention: Convention,
    names: dict[str, str],
    decimal_commas: bool,
) -> Iterator[WrittenBox]:
    format = convention.format or columns.format
    units = convention.units or columns.units or BoxUnits.pixel
    for row in rows:
        cells = [row.cell(index) for index in columns.numbers]
        if not any(cells):
            continue
        if columns.is_list:
            cells = _listed(cells[0], convention, row.where)
        if columns.count and len(row.cells) > columns.count and any(row.cells[columns.count :]):
            raise BoxError(
                f"box in {row.where}: has {len(row.cells)} cells under {columns.count} columns; "
                "put quotes around a text that holds the delimiter"
            )
        texts = [_number(cell, decimal_commas) for cell in cells]
        values = four(numbers_of(texts, row.where), row.where)
        label = row.cell(columns.label) or None
        is_crowd = columns.group is not None and row.cell(columns.group) == "1"
        yield WrittenBox(values, format, units, names.get(label or "", label), is_crowd)


def _listed(text: str, convention: Convention, where: str) -> list[str]:
    """Return the four numbers of a column such as `[10, 20, 30, 40]`."""
    if convention.format is None:
        raise BoxError(
            f"box in {where}: {excerpt(text)} may be corners, or left, top, width and height; "
            "choose with --box-format xyxy or --box-format xywh"
        )
    return re.split(r"[,;\s]+", text.strip().strip("[]()").strip())


def _class_names(folder: Path) -> dict[str, str]:
    """Read Open Images' names of classes by code, from a file beside the boxes."""
    names: dict[str, str] = {}
    for path in sorted(folder.glob(_DESCRIPTIONS)) if folder.is_dir() else ():
        for row in csv.reader(io.StringIO(decode(path.read_bytes(), path))):
            if len(row) >= 2 and row[0].startswith("/"):
                names[row[0]] = row[1]
    return names


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a table, xyxy in pixels; an image without regions keeps a row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    scored = any(region.score is not None for image in images for region in image.regions)
    header = (*_HEADER, *(("score",) if scored else ()))
    writer.writerow(header)
    for image in images:
        for region in image.regions:
            cells = [*map(plain_number, region.box.xyxy), region.label or ""]
            score = "" if region.score is None else plain_number(region.score)
            writer.writerow([image.name, *cells, *([score] if scored else ())])
        if not image.regions:
            writer.writerow([image.name, *[""] * (len(header) - 1)])
    return {PurePosixPath(): file.getvalue()}
