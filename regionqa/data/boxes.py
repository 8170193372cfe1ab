"""Boxes with labels as training records: a naming question per box, answered by its label."""

from collections.abc import Iterator
from pathlib import Path

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.files import BoxFile
from regionqa.boxes.formats.coco import CocoAnnotation, CocoDocument
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.shapes import FLAT
from regionqa.boxes.sizes import SizeCheck
from regionqa.data.conversations import text_problems
from regionqa.data.english import with_article
from regionqa.data.images import ImageFile, ImageFinder, place_region
from regionqa.data.records import Problem, Record, Turn
from regionqa.errors import BoxError, BoxFileError, DataError, ImageError
from regionqa.regions import WrittenBox
from regionqa.requests import NAMING_QUESTION

Part = Record | Problem | LeftOut
CROWDS, BARE = "crowds", "images without annotations"
"""Reasons why something is left out."""
_FOLDERS = {"labels": "images", "Annotations": "JPEGImages", "annotations": "images"}
"""Folders of boxes in published layouts, and those of their images beside them."""


# ---- COCO, whose annotations fail one at a time ----


def coco_records(
    document: object, path: Path, images: ImageFinder, sizes: SizeCheck
) -> Iterator[Part]:
    """Read a record, or a problem, from every annotation.

    Crowds, and images without annotations, are left out.

    Raises:
        BoxFileError: If the images or categories themselves are malformed.
    """
    coco = CocoDocument.of(document, path)
    bare = dict(coco.images)
    for annotation in coco.annotations():
        if isinstance(annotation.fields, dict):
            bare.pop(str(annotation.fields.get("image_id")), None)
        place = f"annotations[{annotation.index}]"
        if annotation.id is not None:
            place = f"annotation {annotation.id}"
        where = f"{path.name}: {place}"
        if annotation.is_crowd:
            yield LeftOut(where, CROWDS)
        else:
            yield from _read_annotation(annotation, where, images, sizes)
    yield from (LeftOut(f"{path.name}: {image.name}", BARE) for image in bare.values())


def _read_annotation(
    annotation: CocoAnnotation, where: str, images: ImageFinder, sizes: SizeCheck
) -> Iterator[Part]:
    try:
        written = annotation.box
        if written is None:
            yield LeftOut(where, FLAT)
            return
        name = annotation.image.name
        image = images.find(name)
        entry = BoxEntry(name, (written,), size=annotation.image.stated_size)
        (written,) = sizes.fit(entry, name, (image.width, image.height))
        if written.label is None:
            yield Problem(where, "has no category, so there is no answer to learn; give it one")
            return
        record = _record(written, image, where)
    except (BoxError, BoxFileError, ImageError) as error:
        # a problem begins with its place, which some of these messages name as well
        place = annotation.where
        yield Problem(where, str(error).removeprefix(f"{place}: ").replace(f" in {place}:", ":", 1))
        return
    yield from record


def _record(written: WrittenBox, image: ImageFile, where: str) -> list[Part]:
    """Return the record of a box that has a label, or its problems."""
    region, cut = place_region(written, image)
    label = written.label or ""
    turn = Turn(NAMING_QUESTION, f"{with_article(label)}.")
    wrong = [*text_problems((turn.question, turn.answer), given=1)]
    if wrong:
        return [Problem(where, text) for text in wrong]
    return [Record(image.path, (region,), (turn,), where, int(cut))]


# ---- every other format of boxes ----


def box_records(file: BoxFile, images: ImageFinder, sizes: SizeCheck) -> Iterator[Part]:
    """Read a record, or a problem, from every box.

    Crowds, and images without boxes, are left out.

    Raises:
        DataError: If the boxes are of no particular image.
    """
    for entry in file.entries:
        if entry.name is None:
            raise DataError(
                f"{file.source}: names no image that its boxes belong to; write them as "
                '{"image.jpg": [{"box": [...], "label": "..."}]}'
            )
        where = f"{file.source.name}: {entry.name}"
        if entry.defect is not None:
            yield Problem(where, entry.defect)
        elif entry.boxes:
            yield from _of_entry(entry, where, images, sizes)
        else:
            yield LeftOut(where, BARE)


def _of_entry(entry: BoxEntry, where: str, images: ImageFinder, sizes: SizeCheck) -> Iterator[Part]:
    try:
        image = images.find(entry)
        boxes = sizes.fit(entry, entry.name or "", (image.width, image.height))
    except (BoxError, ImageError) as error:
        yield Problem(where, str(error))
        return
    for number, written in enumerate(boxes, 1):
        place = f"{where}: box {number}"
        if written.is_crowd:
            yield LeftOut(place, CROWDS)
        elif written.label is None:
            yield Problem(place, "has no label, so there is no answer to learn; give it one")
        else:
            try:
                yield from _record(written, image, place)
            except BoxError as error:
                yield Problem(place, str(error))


def image_folders(path: Path, images: Path | None) -> list[Path]:
    """Return the folders in which the images of a box file are looked for.

    Args:
        path: The box file, or the folder of box files.
        images: The folder that the user gave; None: where published layouts have them.
    """
    if images is not None:
        return [images]
    own = path if path.is_dir() else path.parent
    folders = [own, own / "images"]
    parts = own.absolute().parts
    for place, part in enumerate(parts):
        if part in _FOLDERS:
            beside = Path(*parts[:place], _FOLDERS[part], *parts[place + 1 :])
            folders += [beside] if beside.is_dir() else []
    return folders
