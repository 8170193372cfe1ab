"""The box files that are JSON: plain, COCO, LabelMe and Label Studio, each read and written.

Reading takes a parsed document and gives `BoxEntry`s; writing takes images and gives a document.
How a document's format is recognised, and where files lie, is not known here.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from regionqa.boxes.fields import (
    BoxEntry,
    ImageRegions,
    four,
    labels_of,
    member,
    optional_text,
    plain_number,
)
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, WrittenBox


# ---- COCO ----
def coco_entries(document: object, path: Path) -> list[BoxEntry]:
    """COCO instances: `bbox` is left, top, width, height in pixels; crowds are kept."""
    names = coco_names(document, path)
    annotations: dict[str, list[tuple[str, object]]] = {number: [] for number in names}
    for index, annotation in enumerate(member(document, "annotations", list, str(path))):
        where = f"annotations[{index}] of {path}"
        annotations[coco_image(annotation, names, where)].append((where, annotation))
    labels = coco_labels(document, path)
    return [
        BoxEntry.of(name, (coco_box(each, labels, where) for where, each in annotations[number]))
        for number, name in names.items()
    ]


def coco_names(document: object, path: Path) -> dict[str, str]:
    """The images' names by their id; BoxFileError where an id is missing or appears twice."""
    names: dict[str, str] = {}
    for index, image in enumerate(member(document, "images", list, str(path))):
        where = f"images[{index}] of {path}"
        number = str(member(image, "id", object, where))
        if number in names:
            raise BoxFileError(f"{where}: the id {number} appears twice; give every image its own")
        names[number] = member(image, "file_name", str, where)
    return names


def coco_image(annotation: object, names: Container[str], where: str) -> str:
    """The id of the image that an annotation is about, which must be among the known ones."""
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


def coco_document(sources: Sequence[ImageRegions]) -> object:
    """The COCO instances document; an unlabelled box has no `category_id`."""
    numbers = {label: index for index, label in enumerate(filter(None, labels_of(sources)), 1)}
    images: list[object] = []
    annotations: list[object] = []
    for image, source in enumerate(sources, 1):
        size = {"width": source.width, "height": source.height}
        images.append({"id": image, "file_name": source.name, **size})
        for region in source.regions:
            box = region.box
            category = {"category_id": numbers[region.label]} if region.label else {}
            bbox = [plain_number(value) for value in (box.x0, box.y0, box.width, box.height)]
            area = plain_number(box.width * box.height)
            ids = {"id": len(annotations) + 1, "image_id": image, **category}
            annotations.append({**ids, "bbox": bbox, "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
