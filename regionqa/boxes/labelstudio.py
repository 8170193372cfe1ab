"""The box files that are JSON: plain, COCO, LabelMe and Label Studio, each read and written.

Reading takes a parsed document and gives `BoxEntry`s; writing takes images and gives a document.
How a document's format is recognised, and where files lie, is not known here.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from regionqa.boxes.fields import BoxEntry, ImageRegions, bounding, four, member, points_of
from regionqa.errors import BoxError
from regionqa.regions import Box, BoxFormat, BoxUnits, WrittenBox


# ---- Label Studio ----
def labelstudio_entries(document: object, path: Path) -> list[BoxEntry]:
    """Label Studio's JSON export: percent of the image's width and height.

    Rectangles and polygons of all annotators count, as the upright box around them; cancelled
    annotations, predictions and results of other kinds do not. The image is `data.image`, a URL.
    """
    entries = []
    for index, task in enumerate(document if isinstance(document, list) else [document]):
        where = f"[{index}] of {path}"
        url = member(member(task, "data", dict, where), "image", str, f"data of {where}")
        annotations = member(task, "annotations", list, where)
        entries.append(BoxEntry.of(_labelstudio_image(url), _labelstudio_boxes(annotations, where)))
    return entries


def _labelstudio_image(url: str) -> str:
    """The image's path: behind `?d=` where it is served, after a code where it was uploaded."""
    path, _, query = url.partition("?")
    path = unquote(query.removeprefix("d=") if query.startswith("d=") else path)
    if "/upload/" in path:
        return re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(path).name)
    return path


def _labelstudio_boxes(annotations: list[object], task: str) -> Iterator[WrittenBox]:
    for number, annotation in enumerate(annotations):
        if isinstance(annotation, dict) and annotation.get("was_cancelled"):
            continue
        results = member(annotation, "result", list, f"annotations[{number}] of {task}")
        for index, result in enumerate(results):
            where = f"annotations[{number}].result[{index}] of {task}"
            kind = member(result, "type", str, where)
            if kind in ("rectangle", "rectanglelabels", "polygon", "polygonlabels"):
                yield _labelstudio_box(result, kind, where)


def _labelstudio_box(result: dict[str, object], kind: str, where: str) -> WrittenBox:
    value = member(result, "value", dict, where)
    if value.get("rotation") or result.get("image_rotation"):
        raise BoxError(f"box in {where}: is turned, which no upright box can say; turn it back")
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


def labelstudio_document(images: Sequence[ImageRegions]) -> object:
    """The tasks of Label Studio, each with one annotation."""
    return [_labelstudio_task(number, image) for number, image in enumerate(images, 1)]


def _labelstudio_task(number: int, image: ImageRegions) -> object:
    size = {"original_width": image.width, "original_height": image.height}
    names = {"from_name": "label", "to_name": "image"}
    results = []
    for index, region in enumerate(image.regions):
        value = _labelstudio_value(region.box, image.width, image.height)
        kind = "rectanglelabels" if region.label else "rectangle"
        labels = {kind: [region.label]} if region.label else {}
        ids = {"id": f"{number}-{index + 1}", "type": kind, **names}
        results.append({**ids, **size, "image_rotation": 0, "value": {**value, **labels}})
    return {
        "id": number,
        "data": {"image": quote(image.name)},
        "annotations": [{"result": results}],
    }


def _labelstudio_value(box: Box, width: int, height: int) -> dict[str, float]:
    return {
        "x": 100 * box.x0 / width,
        "y": 100 * box.y0 / height,
        "width": 100 * box.width / width,
        "height": 100 * box.height / height,
        "rotation": 0,
    }
