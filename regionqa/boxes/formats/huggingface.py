"""Hugging Face data sets with `objects`: Parquet and metadata.jsonl read, the latter written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
)
from regionqa.boxes.fields import excerpt, four, plain_number, size_of
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import BoxFormat, WrittenBox

TITLE = "Hugging Face objects (Parquet or metadata.jsonl)"
IMAGE_SUFFIX = None
OWN_CONVENTION = False
ABSENT_IS_EMPTY = False
_OBJECTS = ("objects", "annotations", "faces")
_NAMES = ("file_name", "image_path", "filename", "image_file", "path", "image", "image_id")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_LABELS = ("category", "categories", "category_id", "label", "labels", "class", "name", "names")
_EXTRA = "parquet"


def recognise(file: SourceFile) -> bool:
    """Whether the file is Parquet, or lines that have `file_name` and `objects`."""
    if file.kind == ".parquet":
        return True
    return file.kind in (".json", ".jsonl") and {"file_name", "objects"} <= file.keys


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read `objects` with `bbox` and `category`: left, top, width, height in pixels by default.

    The image is `file_name`, or the path that is stored with an image in the file.
    """
    entries: list[BoxEntry] = []
    classes: list[str] | None = None
    for file in files:
        rows: Iterable[tuple[str, object]]
        if file.kind == ".parquet":
            rows, classes = _parquet_rows(file)
        else:
            rows = _lines(file)
        entries += (row_entry(row, where, classes, convention) for where, row in rows)
    return BoxContents(tuple(entries), classes=tuple(classes) if classes else None)


def _lines(file: SourceFile) -> Iterator[tuple[str, object]]:
    if file.kind == ".jsonl":
        yield from ((f"line {number} of {file.path}", row) for number, row in file.lines())
        return
    document = file.document
    for index, row in enumerate(document if isinstance(document, list) else [document]):
        yield f"record {index + 1} of {file.path}", row


def _parquet_rows(file: SourceFile) -> tuple[Iterator[tuple[str, object]], list[str] | None]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BoxFileError(
            f"{file.path}: is a Parquet file, which needs the extra {_EXTRA!r}; "
            f"pip install 'regionqa[{_EXTRA}]'"
        ) from None
    try:
        opened = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(file.content))
        schema = opened.schema_arrow
        columns = [
            f"{name}.path" if name == "image" and "path" in _children(schema, name) else name
            for name in schema.names
            if name in (*_NAMES, *_OBJECTS, "width", "height")
        ]
        if not set(columns) & set(_OBJECTS):
            raise BoxFileError(
                f"{file.path}: has the columns {excerpt(schema.names)}, and none is 'objects' "
                "with boxes; give another file"
            )
        rows = opened.read(columns=columns).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise BoxFileError(f"{file.path}: is not valid Parquet: {reason}") from None
    named = ((f"row {number} of {file.path}", row) for number, row in enumerate(rows, 1))
    return named, class_names(schema.metadata or {})


def _children(schema: Any, name: str) -> list[str]:
    kind = schema.field(name).type
    return [kind.field(index).name for index in range(kind.num_fields)]


def class_names(metadata: Mapping[bytes, bytes]) -> list[str] | None:
    """Find the names of a ClassLabel among the features that `datasets` keeps in the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return None
    found = list(_named(next((features[key] for key in _OBJECTS if key in features), None)))
    return found[0] if len(found) == 1 else None


def _named(feature: object) -> Iterator[list[str]]:
    if isinstance(feature, dict):
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list):
            yield feature["names"]
        else:
            for value in feature.values():
                yield from _named(value)
    elif isinstance(feature, list):
        for value in feature:
            yield from _named(value)


def row_entry(
    row: object, where: str, classes: list[str] | None, convention: Convention
) -> BoxEntry:
    """Read a row.

    Args:
        row: Values by column.
        where: Its place, for messages.
        classes: Names of classes by number; None: there are none.
        convention: Meaning of a box's numbers.

    Raises:
        BoxFileError: The row names no image.
        BoxError: A box is malformed, once the entry's boxes are read.
    """
    name = _image_name(row, where)
    assert isinstance(row, dict)
    objects: object = next((row[key] for key in _OBJECTS if row.get(key) is not None), [])
    by_stem = not PurePosixPath(name).suffix
    boxes = _boxes(objects, where, classes, convention, row)
    size = size_of(row.get("width"), row.get("height"))
    return BoxEntry.of(name, boxes, by_stem=by_stem, size=size)


def _image_name(row: object, where: str) -> str:
    if isinstance(row, dict):
        for key in _NAMES:
            value = row.get(key)
            if isinstance(value, dict):
                value = value.get("path")
            if isinstance(value, (str, int)) and value != "":
                return str(value)
    raise BoxFileError(
        f"{where}: names no image; add a column 'file_name', or write the images that the file "
        "holds to a folder: regionqa data convert --kind huggingface --save-images FOLDER"
    )


def _boxes(
    objects: object,
    where: str,
    classes: list[str] | None,
    convention: Convention,
    row: Mapping[str, object],
) -> Iterator[WrittenBox]:
    width, height = row.get("width"), row.get("height")
    for index, (values, label) in enumerate(_columns(objects, where)):
        place = f"objects[{index}] of {where}"
        box = four(values, place)
        if convention.format is None and isinstance(width, int) and isinstance(height, int):
            x, y, w, h = box
            if x + w > width + 1 and y + h > height + 1 and w <= width and h <= height:
                raise BoxError(
                    f"box in {place}: as left, top, width, height it reaches outside the image; "
                    "use --box-format xyxy if these are corners, else --box-format xywh"
                )
        yield WrittenBox(
            box,
            convention.format or BoxFormat.xywh,
            convention.box_units,
            _class_name(label, classes, place),
        )


def _columns(objects: object, where: str) -> Iterator[tuple[object, object]]:
    """Return box and label of each object, from a list of them or from an object of lists."""
    if isinstance(objects, list):
        for item in objects:
            item = item if isinstance(item, dict) else {}
            yield _first(item, _BOXES), _first(item, _LABELS)
        return
    known = objects if isinstance(objects, dict) else {}
    boxes, labels = _first(known, _BOXES), _first(known, _LABELS)
    if not isinstance(boxes, list):
        raise BoxError(f"box in {where}: its objects have no 'bbox'; add it")
    if labels is None:
        labels = [None] * len(boxes)
    if not isinstance(labels, list) or len(labels) != len(boxes):
        raise BoxError(f"box in {where}: boxes and categories are not equally many; mend them")
    yield from zip(boxes, labels, strict=True)


def _first(item: Mapping[str, object], keys: Sequence[str]) -> object:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _class_name(label: object, classes: list[str] | None, where: str) -> str | None:
    if isinstance(label, str):
        return label.strip() or None
    if type(label) is int and classes is not None:
        if not 0 <= label < len(classes):
            raise BoxError(f"box in {where}: the class {label} has no name; mend it")
        return classes[label]
    return None  # a number without names says nothing


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a metadata.jsonl; the label of a region without one is empty."""
    lines = []
    for image in images:
        boxes = [
            [plain_number(value) for value in (r.box.x0, r.box.y0, r.box.width, r.box.height)]
            for r in image.regions
        ]
        objects = {"bbox": boxes, "categories": [r.label or "" for r in image.regions]}
        if any(r.score is not None for r in image.regions):
            objects["scores"] = [r.score for r in image.regions]
        record = {"file_name": image.name, "objects": objects}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    return {PurePosixPath(): "".join(lines)}
