"""Label Studio: its JSON, JSON-MIN and CSV exports of tasks, read; the former written."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    Size,
    score_field,
)
from regionqa.boxes.fields import (
    excerpt,
    four,
    is_finite,
    json_text,
    member,
    parse_json,
    points_of,
    size_of,
)
from regionqa.boxes.remarks import Adjusted, LeftOut
from regionqa.boxes.shapes import FLAT, TURNED, bounding, has_area, turned_box
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.images.kinds import is_read
from regionqa.regions import Box, BoxFormat, BoxUnits, WrittenBox

TITLE = "Label Studio"
IMAGE_SUFFIX = None
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False
_KINDS = ("rectangle", "rectanglelabels", "polygon", "polygonlabels")
_SKIPPED = {
    "ellipse": "ellipses",
    "ellipselabels": "ellipses",
    "keypoint": "points",
    "keypointlabels": "points",
    "brush": "brush masks",
    "brushlabels": "brush masks",
    "vector": "lines",
    "vectorlabels": "lines",
    "cancelled": "cancelled annotations",
}
_NUMBERS = ("x", "y", "width", "height")


def recognise(file: SourceFile) -> bool:
    """Whether the file is a task or a list of them, with `data` and `annotations`, or JSON-MIN."""
    if file.kind == ".csv":
        return {"annotation_id", "annotator"} <= set(file.text.partition("\n")[0].split(","))
    if file.kind != ".json":
        return False
    if {"data", "annotations"} <= file.keys or {"data", "completions"} <= file.keys:
        return True
    return file.is_array and isinstance(file.first, dict) and any(_min_lists(file.first))


def _min_lists(task: Mapping[str, object]) -> Iterator[tuple[str, list[object]]]:
    """Yield the keys of JSON-MIN under which a control's shapes stand."""
    for key, values in task.items():
        if isinstance(values, list) and values and isinstance(values[0], dict):
            first = values[0]
            if "original_width" in first or any(f"{kind}labels" in first for kind in _NAMES):
                yield key, values


_NAMES = ("rectangle", "polygon", "ellipse", "keypoint", "brush", "vector")


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read rectangles and polygons of all annotators, as the upright boxes around them.

    Coordinates are in percent of the image's width and height. The image is a URL: `data.image`, or
    the only value of `data` that looks like an image. Cancelled annotations, predictions and
    results of other kinds are left out.
    """
    entries: list[BoxEntry] = []
    left_out: list[LeftOut] = []
    adjusted: list[Adjusted] = []
    for file in files:
        document = _rows(file) if file.kind == ".csv" else file.document
        for index, task in enumerate(document if isinstance(document, list) else [document]):
            where = f"[{index}] of {file.path}"
            results = list(_results(task, where))
            boxes = _boxes(results, left_out, adjusted)
            name, size = _image_name(_url(task, where)), _size(results)
            entries.append(BoxEntry.of(name, boxes, size=size))
    return BoxContents(tuple(entries), tuple(left_out), adjusted=tuple(adjusted))


def _rows(file: SourceFile) -> list[object]:
    """Read the CSV export as JSON-MIN: its cells with shapes are JSON."""
    rows: list[object] = []
    reader = csv.DictReader(io.StringIO(file.text))
    try:
        for row in reader:
            rows.append(
                {
                    key: parse_json(text) if text.startswith("[{") else text
                    for key, text in row.items()
                    if isinstance(text, str)
                }
            )
    except (csv.Error, ValueError) as error:
        raise BoxFileError(
            f"line {reader.line_num} of {file.path}: cannot be read: {error}"
        ) from None
    return rows


def _url(task: object, where: str) -> str:
    """Return the URL of a task's image."""
    data = task
    if isinstance(task, dict) and "data" in task:
        data = member(task, "data", dict, where)
        where = f"data of {where}"
    fields = data if isinstance(data, dict) else {}
    if isinstance(fields.get("image"), str):
        return str(fields["image"])
    texts = [value for value in fields.values() if isinstance(value, str)]
    urls = [text for text in texts if is_read(text.partition("?")[0])] or [
        t for t in texts if "/" in t
    ]
    if len(urls) != 1:
        found = f"{len(urls)} of its texts may be" if urls else "none of its texts is"
        raise BoxFileError(f"{where}: has no 'image', and {found} the name of one; add it")
    return urls[0]


def _image_name(url: str) -> str:
    """Return the image's path: behind `?d=` if served, else the URL without its query."""
    path, _, query = url.partition("?")
    return unquote(query.removeprefix("d=") if query.startswith("d=") else path)


_Result = tuple[str, str, dict[str, object], dict[str, object]]
"""Place, kind, the result, and its `value`."""


def _results(task: object, where: str) -> Iterator[_Result]:
    """Yield the results of a task."""
    known = task if isinstance(task, dict) else {}
    if known and not known.keys() & {"data", "annotations", "completions"}:
        for key, values in _min_lists(known):
            for index, value in enumerate(values):
                place = f"{key}[{index}] of {where}"
                fields = value if isinstance(value, dict) else {}
                kind = next((f"{n}labels" for n in _NAMES if f"{n}labels" in fields), None)
                yield place, kind or _kind_of(fields), fields, fields
        return
    key = "completions" if "completions" in known else "annotations"
    for number, annotation in enumerate(member(task, key, list, where)):
        place = f"{key}[{number}] of {where}"
        if isinstance(annotation, dict) and annotation.get("was_cancelled"):
            yield place, "cancelled", {}, {}
            continue
        listed = member(annotation, "result", list, place)
        names = _separate_labels(listed)
        for index, result in enumerate(listed):
            place = f"{key}[{number}].result[{index}] of {where}"
            kind = member(result, "type", str, place)
            is_shape = kind in _KINDS or kind in _SKIPPED
            value = member(result, "value", dict, place) if is_shape else {}
            own = names.get(str(result.get("id"))) if isinstance(result, dict) else None
            if kind == "labels" and own is not None:
                continue  # told with its shape
            if own is not None and kind not in value:
                value = {**value, kind: own}
            yield place, kind, result, value


def _separate_labels(results: list[object]) -> dict[object, list[object]]:
    """Return the labels that stand beside a shape as a result of their own, by its id."""
    found: dict[object, list[object]] = {}
    shapes = set[object]()
    for result in results:
        if isinstance(result, dict) and isinstance(result.get("id"), str):
            value, number = result.get("value"), result["id"]
            if result.get("type") in ("rectangle", "polygon"):
                shapes.add(number)
            elif result.get("type") == "labels" and isinstance(value, dict):
                labels = value.get("labels")
                found[number] = labels if isinstance(labels, list) else []
    return {number: labels for number, labels in found.items() if number in shapes}


def _size(results: Iterable[_Result]) -> Size | None:
    """Return the image's size as the first result states it that states one."""
    sizes = (
        size_of(result.get("original_width"), result.get("original_height"))
        for _, _, result, _ in results
    )
    return next(filter(None, sizes), None)


def _kind_of(value: Mapping[str, object]) -> str:
    """Tell the kind of a shape without labels by its fields."""
    if "points" in value:
        return "polygon"
    return "rectangle" if value.keys() >= {"width", "height"} else "keypoint"


def _boxes(
    results: Iterable[_Result], left_out: list[LeftOut], adjusted: list[Adjusted]
) -> Iterator[WrittenBox]:
    for where, kind, result, value in results:
        if kind not in _KINDS:
            left_out.append(LeftOut(where, _SKIPPED.get(kind, f"results of type {kind}")))
            continue
        if result.get("image_rotation"):
            raise BoxError(
                f"box in {where}: its image is rotated, but boxes are upright; "
                "set the image's rotation to 0"
            )
        names = value.get(kind)
        if names is not None and not isinstance(names, list):
            raise BoxFileError(f"{where}: {kind!r} is {excerpt(names)}; write a list")
        label = ", ".join(map(str, names or [])) or None
        if kind.startswith("polygon"):
            points = points_of(member(value, "points", list, where), where)
            if not has_area(points):
                left_out.append(LeftOut(where, FLAT))
                continue
            corners = bounding(points, where)
            yield _fractions(corners, BoxFormat.xyxy, label)
        else:
            yield _rectangle(result, value, where, label, adjusted)


def _fractions(
    percents: tuple[float, float, float, float], format: BoxFormat, label: str | None
) -> WrittenBox:
    x, y, third, fourth = (percent / 100 for percent in percents)
    return WrittenBox((x, y, third, fourth), format, BoxUnits.fraction, label)


def _rectangle(
    result: Mapping[str, object],
    value: Mapping[str, object],
    where: str,
    label: str | None,
    adjusted: list[Adjusted],
) -> WrittenBox:
    for key in _NUMBERS:
        if key not in value:
            raise BoxError(f"box in {where}: has no {key!r}; add it, or export the file again")
    x, y, width, height = four([value[key] for key in _NUMBERS], where)
    turn = value.get("rotation") or 0
    if not turn:
        return _fractions((x, y, width, height), BoxFormat.xywh, label)
    if not is_finite(turn):
        raise BoxError(f"box in {where}: its rotation is {excerpt(turn)}; write degrees")
    lengths = result.get("original_width"), result.get("original_height")
    if not all(type(length) is int and length > 0 for length in lengths):
        raise BoxError(
            f"box in {where}: is rotated, and the image's 'original_width' and 'original_height' "
            "are not given; add them, or set the rotation to 0"
        )
    across, down = (float(str(length)) / 100 for length in lengths)
    pivot = (x * across, y * down)
    pixels = (*pivot, (x + width) * across, (y + height) * down)
    x0, y0, x1, y1 = turned_box(pixels, float(turn), pivot)
    adjusted.append(Adjusted(where, TURNED))
    return _fractions((x0 / across, y0 / down, x1 / across, y1 / down), BoxFormat.xyxy, label)


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a task per image, each with one annotation."""
    tasks = [_task(number, image) for number, image in enumerate(images, 1)]
    return {PurePosixPath(): json_text(tasks)}


def _task(number: int, image: ImageRegions) -> object:
    size = {"original_width": image.width, "original_height": image.height}
    names = {"from_name": "label", "to_name": "image"}
    results = []
    for index, region in enumerate(image.regions):
        value = _percent(region.box, image.width, image.height)
        kind = "rectanglelabels" if region.label else "rectangle"
        labels = {kind: [region.label]} if region.label else {}
        ids = {"id": f"{number}-{index + 1}", "type": kind, **names}
        result = {**ids, **size, "image_rotation": 0, "value": {**value, **labels}}
        results.append(result | score_field(region))
    return {
        "id": number,
        "data": {"image": quote(image.name)},
        "annotations": [{"result": results}],
    }


def _percent(box: Box, width: int, height: int) -> dict[str, float]:
    return {
        "x": 100 * box.x0 / width,
        "y": 100 * box.y0 / height,
        "width": 100 * box.width / width,
        "height": 100 * box.height / height,
        "rotation": 0,
    }
