"""The box files that are JSON: plain, COCO, LabelMe and Label Studio, each read and written.

Reading takes a parsed document and gives `Entry`s; writing takes pictures and gives a document.
How a document's format is recognised, and where files lie, is not known here.
"""

import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from regionqa.boxentries import (
    Entry,
    PictureRegions,
    bounding,
    excerpt,
    four,
    labels_of,
    member,
    optional_text,
    plain_number,
    points_of,
)
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Box, BoxFormat, BoxUnits, Region, WrittenBox

# ---- plain ----


def plain_entries(document: object, path: Path, format: BoxFormat, units: BoxUnits) -> list[Entry]:
    """`{"image.jpg": [[x0, y0, x1, y1], ...]}`, in the convention the user says.

    A box may also be `{"box": [...], "label": "..."}`. A bare list of boxes, or a list under the
    only key `boxes`, is for any picture.
    """
    if isinstance(document, dict) and set(document) == {"boxes"}:
        document = document["boxes"]
    if not isinstance(document, dict):
        return [Entry.of(None, _plain_boxes(document, "", path, format, units))]
    return [
        Entry.of(name, _plain_boxes(items, repr(name), path, format, units))
        for name, items in document.items()
    ]


def _plain_boxes(
    items: object, name: str, path: Path, format: BoxFormat, units: BoxUnits
) -> Iterator[WrittenBox]:
    if not isinstance(items, list):
        raise BoxFileError(
            f"{name or 'boxes'} of {path}: is {excerpt(items)}, "
            "but a list of boxes is due, like [[10, 20, 200, 300]]"
        )
    for index, item in enumerate(items):
        where = f"{name}[{index}] of {path}"
        values = member(item, "box", object, where) if isinstance(item, dict) else item
        label = optional_text(item, "label", where) or None
        yield WrittenBox(four(values, where), format, units, label)


def plain_document(pictures: Sequence[PictureRegions]) -> object:
    """The plain document: xyxy pixels, a labelled box as an object."""
    return {
        picture.name: [_plain_box(region) for region in picture.regions] for picture in pictures
    }


def _plain_box(region: Region) -> object:
    values = [plain_number(value) for value in region.box.xyxy]
    return {"box": values, "label": region.label} if region.label else values


# ---- COCO ----


def coco_entries(document: object, path: Path) -> list[Entry]:
    """COCO instances: `bbox` is left, top, width, height in pixels; crowds are kept."""
    names = coco_names(document, path)
    annotations: dict[str, list[tuple[str, object]]] = {number: [] for number in names}
    for index, annotation in enumerate(member(document, "annotations", list, str(path))):
        where = f"annotations[{index}] of {path}"
        annotations[coco_image(annotation, names, where)].append((where, annotation))
    labels = coco_labels(document, path)
    return [
        Entry.of(name, (coco_box(each, labels, where) for where, each in annotations[number]))
        for number, name in names.items()
    ]


def coco_names(document: object, path: Path) -> dict[str, str]:
    """The pictures' names by their id; BoxFileError where an id is missing or appears twice."""
    names: dict[str, str] = {}
    for index, image in enumerate(member(document, "images", list, str(path))):
        where = f"images[{index}] of {path}"
        number = str(member(image, "id", object, where))
        if number in names:
            raise BoxFileError(f"{where}: the id {number} appears twice; give every image its own")
        names[number] = member(image, "file_name", str, where)
    return names


def coco_image(annotation: object, names: Container[str], where: str) -> str:
    """The id of the picture that an annotation is about, which must be among the known ones."""
    number = str(member(annotation, "image_id", object, where))
    if number not in names:
        raise BoxFileError(f"{where}: no image has the id {number}; add it to 'images'")
    return number


def coco_labels(document: object, path: Path) -> dict[str, str]:
    """The categories' names by their id; none where the file has no categories."""
    if not isinstance(document, dict) or "categories" not in document:
        return {}
    labels = {}
    for index, category in enumerate(member(document, "categories", list, str(path))):
        where = f"categories[{index}] of {path}"
        labels[str(member(category, "id", object, where))] = optional_text(category, "name", where)
    return labels


def coco_box(annotation: object, labels: Mapping[str, str], where: str) -> WrittenBox:
    """The box of an annotation, with its category's name where it has one."""
    number = optional_text(annotation, "category_id", where)
    if labels and number and number not in labels:
        raise BoxFileError(f"{where}: no category has the id {number}; add it to 'categories'")
    values = four(member(annotation, "bbox", object, where), where)
    return WrittenBox(values, BoxFormat.xywh, label=labels.get(number) or None)


def coco_document(pictures: Sequence[PictureRegions]) -> object:
    """The COCO instances document; an unlabelled box has no `category_id`."""
    numbers = {label: index for index, label in enumerate(filter(None, labels_of(pictures)), 1)}
    images: list[object] = []
    annotations: list[object] = []
    for image, picture in enumerate(pictures, 1):
        size = {"width": picture.width, "height": picture.height}
        images.append({"id": image, "file_name": picture.name, **size})
        for region in picture.regions:
            box = region.box
            category = {"category_id": numbers[region.label]} if region.label else {}
            bbox = [plain_number(value) for value in (box.x0, box.y0, box.width, box.height)]
            area = plain_number(box.width * box.height)
            ids = {"id": len(annotations) + 1, "image_id": image, **category}
            annotations.append({**ids, "bbox": bbox, "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


# ---- LabelMe ----


def labelme_entry(document: object, path: Path) -> Entry:
    """A LabelMe file: every shape counts, as the upright box around its points, in pixels."""
    if not isinstance(document, dict) or "shapes" not in document:
        raise BoxFileError(
            f"{path}: has no 'shapes', as a LabelMe file must; "
            "if it is about many pictures, give it itself and not its folder"
        )
    shapes = member(document, "shapes", list, str(path))
    picture = optional_text(document, "imagePath", str(path))
    return Entry.of_file(path, picture, _labelme_boxes(shapes, path))


def _labelme_boxes(shapes: list[object], path: Path) -> Iterator[WrittenBox]:
    for index, shape in enumerate(shapes):
        kind = optional_text(shape, "shape_type", f"shapes[{index}] of {path}") or "polygon"
        where = f"shapes[{index}] ({kind}) of {path}"
        points = points_of(member(shape, "points", list, where), where)
        if kind == "circle" and len(points) == 2:  # its centre, and a point of its rim
            (x, y), radius = points[0], math.dist(*points)
            points = [(x - radius, y - radius), (x + radius, y + radius)]
        label = optional_text(shape, "label", where) or None
        yield WrittenBox(bounding(points, where), label=label)


def labelme_document(picture: PictureRegions) -> object:
    """The LabelMe document of one picture, which lies beside the file."""
    return {
        "version": "5.0.1",
        "flags": {},
        "shapes": [_labelme_shape(region) for region in picture.regions],
        "imagePath": PurePosixPath(picture.name).name,
        "imageData": None,
        "imageHeight": picture.height,
        "imageWidth": picture.width,
    }


def _labelme_shape(region: Region) -> object:
    x0, y0, x1, y1 = map(plain_number, region.box.xyxy)
    return {
        "label": region.label or "",
        "points": [[x0, y0], [x1, y1]],
        "group_id": None,
        "shape_type": "rectangle",
        "flags": {},
    }


# ---- Label Studio ----


def labelstudio_entries(document: object, path: Path) -> list[Entry]:
    """Label Studio's JSON export: percent of the picture's width and height.

    Rectangles and polygons of all annotators count, as the upright box around them; cancelled
    annotations, predictions and results of other kinds do not. The picture is `data.image`, a URL.
    """
    entries = []
    for index, task in enumerate(document if isinstance(document, list) else [document]):
        where = f"[{index}] of {path}"
        url = member(member(task, "data", dict, where), "image", str, f"data of {where}")
        annotations = member(task, "annotations", list, where)
        entries.append(Entry.of(_labelstudio_picture(url), _labelstudio_boxes(annotations, where)))
    return entries


def _labelstudio_picture(url: str) -> str:
    """The picture's path: behind `?d=` where it is served, after a code where it was uploaded."""
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


def labelstudio_document(pictures: Sequence[PictureRegions]) -> object:
    """The tasks of Label Studio, each with one annotation."""
    return [_labelstudio_task(number, picture) for number, picture in enumerate(pictures, 1)]


def _labelstudio_task(number: int, picture: PictureRegions) -> object:
    size = {"original_width": picture.width, "original_height": picture.height}
    names = {"from_name": "label", "to_name": "image"}
    results = []
    for index, region in enumerate(picture.regions):
        value = _labelstudio_value(region.box, picture.width, picture.height)
        kind = "rectanglelabels" if region.label else "rectangle"
        labels = {kind: [region.label]} if region.label else {}
        ids = {"id": f"{number}-{index + 1}", "type": kind, **names}
        results.append({**ids, **size, "image_rotation": 0, "value": {**value, **labels}})
    return {
        "id": number,
        "data": {"image": quote(picture.name)},
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
