"""Requests in tables: CSV, Parquet with or without the images themselves, and COCO."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regionqa.batch.parts import RequestLine, StoredRows
from regionqa.batch.storage import Location, StoredFile, unreadable
from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.fields import parse_json
from regionqa.boxes.files import read_boxes
from regionqa.data.english import counted
from regionqa.data.fields import ANSWER_KEYS, RequestFields, fields_of, likely_key
from regionqa.errors import BoxError, BoxFileError, DataError, UsageError
from regionqa.pipeline.items import listed
from regionqa.pipeline.outputs import encode
from regionqa.regions import WrittenBox

KNOWN = tuple(field.encode_name for field in fields_of(RequestFields))
SIZE = ("width", "height")
BOXES = "boxes"
"""Column of CSV answers with boxes as `10,20,200,300;5,5,20,20`."""
JSON_CELLS = ("regions", "choices", "meta")
"""Columns that hold JSON where they hold text."""
ROWS = 1024
"""Rows of requests in memory at a time."""


# -- CSV -------------------------------------------------------------------------------------------


def csv_lines(place: Location, base: str, note: Callable[[str], None]) -> Iterator[RequestLine]:
    """Read a request from every record of a CSV file with a header.

    Args:
        place: The file.
        base: Folder or URL that names of images are relative to.
        note: Called with a line that names the columns that are not used.

    Raises:
        UsageError: Its columns are not those of requests.
        DataError: It is not CSV.
    """
    lines = (line.decode("utf-8-sig" if not n else "utf-8") for n, line in enumerate(place.lines()))
    reader = csv.DictReader(lines, strict=True)
    try:
        columns = tuple(reader.fieldnames or ())
        _note_unused(check_columns(columns, place, extra=(BOXES, "labels")), place, note)
        for number, row in enumerate(reader, start=1):
            where = f"record {number} of {place.name}"
            if None in row or None in row.values():
                error = f"{where}: has other columns than the header; quote cells with commas"
                yield RequestLine(where, str(row.get("image") or "-"), base, error)
                continue
            yield _of_cells(row, where, base)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{place.name}: is not CSV in UTF-8: {error}; correct it") from None


def _of_cells(row: dict[str, str], where: str, base: str) -> RequestLine:
    document: dict[str, Any] = {
        key: value for key, value in row.items() if key in (*KNOWN, *SIZE) and value != ""
    }
    try:
        for key in JSON_CELLS:
            if key in document:
                document[key] = parse_json(document[key])
        for key in SIZE:
            if key in document:
                document[key] = int(document[key])
        if "regions" not in document and row.get(BOXES):
            document["regions"] = [
                [float(number) for number in box.split(",")] for box in row[BOXES].split(";")
            ]
    except ValueError as error:
        return RequestLine(where, str(row.get("image")), base, f"{where}: a cell: {error}")
    return RequestLine(where, json.dumps(document), base)


def check_columns(columns: Iterable[str], place: Location, extra: Sequence[str] = ()) -> list[str]:
    """Return the columns that are not used; UsageError if one holds images or boxes.

    Args:
        columns: Names of all columns.
        place: The file, for messages.
        extra: Further columns that are used.
    """
    names = list(columns)
    used = (*KNOWN, *SIZE, *extra)
    others = [name for name in names if name not in used]
    for name in others:
        meant = likely_key(name, KNOWN)
        if name not in ANSWER_KEYS and meant in ("image", "regions") and meant not in names:
            raise UsageError(
                f"{place.name}: has a column {name!r}, which looks like {meant!r}; rename it"
            )
    if "image" not in names:
        raise UsageError(
            f"{place.name}: has no column 'image' (its columns: {', '.join(names[:20])}); known "
            f"are {', '.join(KNOWN)}"
        )
    return others


def _note_unused(columns: Iterable[str], place: Location, note: Callable[[str], None]) -> None:
    unused = [name for name in columns if name not in ANSWER_KEYS]
    if unused:
        note(f"{place.name}: columns that are not used: {', '.join(unused)}")


# -- Parquet ---------------------------------------------------------------------------------------


def parquet_entries(
    file: StoredFile, base: str, size: int, note: Callable[[str], None]
) -> Iterator[RequestLine | StoredRows]:
    """Read the requests of a Parquet file; rows with their images stay where they are.

    Args:
        file: The file.
        base: Folder or URL that names of images are relative to.
        size: Rows of a part.
        note: Called with a line that names the columns that are not used.

    Raises:
        UsageError: Its columns are not those of requests.
        DataError: It is not Parquet.
    """
    import pyarrow

    place = file.location
    try:
        with place.open() as stream:
            table = _parquet(stream)
            _note_unused(check_columns(table.schema_arrow.names, place), place, note)
            if holds_images(table.schema_arrow.field("image").type):
                rows = table.metadata.num_rows
                for start in range(0, rows, size):
                    stop = min(start + size, rows)
                    yield StoredRows(place.name, file.version, start, stop, stop - start)
                return
            columns = [name for name in table.schema_arrow.names if name in (*KNOWN, *SIZE)]
            number = 0
            for batch in table.iter_batches(ROWS, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    where = f"row {number} of {place.name}"
                    yield RequestLine(where, json.dumps(document_of(row), default=str), base)
    except pyarrow.ArrowException as error:
        raise DataError(f"{place.name}: is not Parquet: {error}; write it again") from None


def holds_images(kind: Any) -> bool:
    """Return whether a column of this Arrow type holds images and not their names."""
    import pyarrow.types as types

    return bool(
        types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )  # fmt: skip


def stored_rows(place: Location, start: int, stop: int) -> Iterator[tuple[str, Any, bytes | None]]:
    """Read rows that hold their images.

    Returns:
        The place, document and image of each row; the image is None where the row has none.

    Raises:
        DataError: The file cannot be read.
    """
    import pyarrow

    try:
        with place.open() as stream:
            table = _parquet(stream)
            columns = [name for name in table.schema_arrow.names if name in (*KNOWN, *SIZE)]
            groups: list[int] = []
            first, before = 0, 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if before < stop and before + rows > start:
                    first = before if not groups else first
                    groups.append(group)
                before += rows
            number = first
            for batch in table.iter_batches(64, row_groups=groups, columns=columns):
                for index in range(batch.num_rows):
                    if start <= number < stop:
                        row = batch.slice(index, 1).to_pylist()[0]
                        yield _stored_row(row, place, number + 1)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(place, error) from None


def _stored_row(row: dict[str, Any], place: Location, number: int) -> tuple[str, Any, bytes | None]:
    image, where = row.pop("image"), f"row {number} of {place.name}"
    name, content = None, image
    if isinstance(image, dict):
        name, content = image.get("path"), image.get("bytes")
    document = document_of(row) | {"image": name or f"{place.name}:{number}"}
    return where, document, content


def document_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a request as JSON from the values of a row; nulls are as if there was no column."""
    document = {key: value for key, value in row.items() if value is not None}
    for key in JSON_CELLS:
        value = document.get(key)
        if isinstance(value, str) and key != "meta":
            try:
                document[key] = parse_json(value)
            except ValueError:
                continue  # what it is not is said where the request is read
    return document


def _parquet(stream: Any) -> Any:
    import pyarrow
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(pyarrow.PythonFile(stream, mode="r"))


# -- COCO ------------------------------------------------------------------------------------------


def coco_lines(
    place: Location, images: str | None, note: Callable[[str], None], *, each: bool
) -> Iterator[RequestLine]:
    """Read a request, with its boxes, from every image of a COCO file.

    Args:
        place: The file.
        images: Folder or URL of the images; None: that of the file, or `images` in it.
        note: Called with a line about what is left out.
        each: Whether images without boxes are left out.

    Raises:
        DataError: It is not COCO.
    """
    with TemporaryDirectory() as folder:
        copy = Path(folder, f"boxes{place.suffix}")
        copy.write_bytes(place.read())
        try:
            boxes = read_boxes(copy)
        except BoxFileError as error:
            text = str(error).replace(str(copy), place.name)
            raise DataError(text) from None
    if boxes.format != "coco":
        raise DataError(
            f"{place.name}: is no COCO file but {boxes.format}; convert it, or give JSON lines"
        )
    for remark in boxes.remarks:
        note(remark.replace(str(copy), place.name))
    base = Location(_image_folder(place, images, boxes.images)).absolute
    bare = [entry.name or "" for entry in boxes.entries if not entry.boxes and not entry.defect]
    if each and bare:
        note(
            f"{place.name}: has no boxes for {counted(len(bare), 'image')}, so nothing is asked "
            f"about them: {listed(bare)}"
        )
    for entry in boxes.entries:
        if entry.boxes or entry.defect or not each:
            yield _of_entry(entry, place, base)


def _image_folder(place: Location, images: str | None, names: Sequence[str]) -> str:
    if images is not None:
        return images
    beside = place.folder
    inner = beside.join("images")
    if names and not beside.join(names[0]).kind() and inner.join(names[0]).kind():
        return inner.name
    return beside.name


def _of_entry(entry: BoxEntry, place: Location, base: str) -> RequestLine:
    name, where = entry.name or "-", f"{entry.name} of {place.name}"
    try:
        regions = [_region(box) for box in entry.checked_boxes()]
    except BoxError as error:
        return RequestLine(where, name, base, str(error), name)
    document: dict[str, Any] = {"image": name, "regions": regions}
    if entry.size is not None and regions:
        document["width"], document["height"] = entry.size
    return RequestLine(where, json.dumps(document), base, None, name)


def _region(box: WrittenBox) -> dict[str, Any]:
    """Return a box of COCO (left, top, width, height in pixels) as a region of a request."""
    left, top, width, height = box.values
    region: dict[str, Any] = {"box": [left, top, left + width, top + height]}
    return region if box.label is None else region | {"label": box.label}


def rows_as_parquet(rows: Sequence[dict[str, Any]], *, confidence: bool) -> bytes:
    """Write answers as a Parquet file of a fixed schema, compressed with zstd.

    Args:
        rows: Objects as JSON lines hold them.
        confidence: Whether there is a column `confidence`.
    """
    import pyarrow
    import pyarrow.parquet

    text, whole, number = pyarrow.string(), pyarrow.int32(), pyarrow.float64()
    mask = pyarrow.struct([("size", pyarrow.list_(whole)), ("counts", text)])
    region = pyarrow.struct(
        [("id", whole), ("box", pyarrow.list_(number)), ("label", text), ("mask", mask)]
    )
    columns = [
        ("image", text), ("width", whole), ("height", whole), ("regions", pyarrow.list_(region)),
        ("question", text), ("answer", text), ("model", text), ("revision", text),
        ("device", text), ("dtype", text), ("ms", number), ("error", text),
        *[("confidence", number)] * confidence, ("id", text), ("meta", text),
    ]  # fmt: skip
    table = pyarrow.Table.from_pylist([_flat(row) for row in rows], pyarrow.schema(columns))
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd")
    return file.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in which what may be any JSON is text: `answer`, `id` and `meta`.

    Half a surrogate pair, which no UTF-8 holds, is escaped as in JSON lines.
    """
    for key in ("answer", "id"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            row[key] = json.dumps(value, ensure_ascii=False)
    if row.get("meta") is not None:
        row["meta"] = json.dumps(row["meta"], ensure_ascii=False)
    flat: dict[str, Any] = _utf8(row)
    return flat


def _utf8(value: Any) -> Any:
    if isinstance(value, str):
        return encode(value).decode()
    if isinstance(value, dict):
        return {key: _utf8(each) for key, each in value.items()}
    return list(map(_utf8, value)) if isinstance(value, list) else value
