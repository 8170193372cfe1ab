"""Label Studio: a JSON list of tasks, read and written."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    LeftOut,
    Size,
    SourceFile,
)
from regionqa.boxes.fields import bounding, four, json_text, member, points_of, size_of
from regionqa.errors import BoxError
from regionqa.regions import Box, BoxFormat, BoxUnits, WrittenBox

TITLE = "Label Studio"
IMAGE_SUFFIX = None
_KINDS = ("rectangle", "rectanglelabels", "polygon", "polygonlabels")


def recognise(file: SourceFile) -> bool:
    """Whether the file is a task, or a list of them, with `data` and `annotations`."""
    if file.kind != ".json":
        return False
    document = file.document
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict) and {"data", "annotations"} <= first.keys()


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read rectangles and polygons of all annotators, as the upright boxes around them.

    Coordinates are in percent of the image's width and height. The image is `data.image`, a URL.
    Cancelled annotations, predictions and results of other kinds are left out.
    """
    entries: list[BoxEntry] = []
    left_out: list[LeftOut] = []
    for file in files:
        document = file.document
        for index, task in enumerate(document if isinstance(document, list) else [document]):
            where = f"[{index}] of {file.path}"
            url = member(member(task, "data", dict, where), "image", str, f"data of {where}")
            annotations = member(task, "annotations", list, where)
            boxes = _boxes(annotations, where, left_out)
            entries.append(BoxEntry.of(_image_name(url), boxes, size=_size(annotations)))
    return BoxContents(tuple(entries), tuple(left_out))


def _image_name(url: str) -> str:
    """Return the image's path: behind `?d=` if served, without its prefix if uploaded."""
    path, _, query = url.partition("?")
    path = unquote(query.removeprefix("d=") if query.startswith("d=") else path)
    if "/upload/" in path:
        return re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(path).name)
    return path


def _size(annotations: list[object]) -> Size | None:
    """Return the image's size as the first result states it that states one."""
    lists = (each.get("result") for each in annotations if isinstance(each, dict))
    results = (result for each in lists if isinstance(each, list) for result in each)
    sizes = (
        size_of(result.get("original_width"), result.get("original_height"))
        for result in results
        if isinstance(result, dict)
    )
    return next(filter(None, sizes), None)


def _boxes(annotations: list[object], task: str, left_out: list[LeftOut]) -> Iterator[WrittenBox]:
    for number, annotation in enumerate(annotations):
        place = f"annotations[{number}] of {task}"
        if isinstance(annotation, dict) and annotation.get("was_cancelled"):
            left_out.append(LeftOut(place, "cancelled"))
            continue
        for index, result in enumerate(member(annotation, "result", list, place)):
            where = f"annotations[{number}].result[{index}] of {task}"
            kind = member(result, "type", str, where)
            if kind in _KINDS:
                yield _box(result, kind, where)
            else:
                left_out.append(LeftOut(where, kind))


def _box(result: dict[str, object], kind: str, where: str) -> WrittenBox:
    value = member(result, "value", dict, where)
    if value.get("rotation") or result.get("image_rotation"):
        raise BoxError(f"box in {where}: is rotated, but boxes are upright; set its rotation to 0")
    labels = member(value, kind, list, where) if kind in value else []
    if kind.startswith("polygon"):
        format = BoxFormat.xyxy
        values = bounding(points_of(member(value, "points", list, where), where), where)
    else:
        format = BoxFormat.xywh
        keys = ("x", "y", "width", "height")
        values = four([member(value, key, object, where) for key in keys], where)
    x, y, third, fourth = (percent / 100 for percent in values)
    label = ", ".join(map(str, labels)) or None
    return WrittenBox((x, y, third, fourth), format, BoxUnits.fraction, label)


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
        results.append({**ids, **size, "image_rotation": 0, "value": {**value, **labels}})
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
