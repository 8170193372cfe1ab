"""Boxes with labels as training records: a naming question per box, answered by its label."""

from collections.abc import Iterator
from pathlib import Path

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.files import BoxFile
from regionqa.boxes.formats.coco import CocoAnnotation, CocoDocument
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.shapes import FLAT
from regionqa.data.conversations import text_problems
from regionqa.data.english import with_article
from regionqa.data.images import ImageFile, ImageFinder, place_region
from regionqa.data.records import Problem, Record, Turn
from regionqa.errors import BoxError, BoxFileError, DataError, ImageError
from regionqa.regions import WrittenBox
from regionqa.requests import NAMING_QUESTION

Part = Record | Problem | LeftOut
CROWDS = "crowds"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_FOLDERS = {"labels": "images", "Annotations": "JPEGImages", "annotations": "images"}
"""Folders of boxes in published layouts, and those of their images beside them."""


# ---- COCO, whose annotations fail one at a time ----


def coco_records(document: object, path: Path, images: ImageFinder) -> Iterator[Part]:
    """Read a record, or a problem, from every annotation; crowds are left out.

    Raises:
        BoxFileError: If the images or categories themselves are malformed.
    """
    coco = CocoDocument.of(document, path)
    for annotation in coco.annotations():
        place = f"annotations[{annotation.index}]"
        if annotation.id is not None:
            place = f"annotation {annotation.id}"
        where = f"{path.name}: {place}"
        if annotation.is_crowd:
            yield LeftOut(where, CROWDS)
        else:
            yield from _read_annotation(annotation, where, images)


def _read_annotation(annotation: CocoAnnotation, where: str, images: ImageFinder) -> Iterator[Part]:
    try:
        written = annotation.box
        if written is None:
            yield LeftOut(where, FLAT)
            return
        image = images.find(annotation.image.name)
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


def box_records(file: BoxFile, images: "EntryImages") -> Iterator[Part]:
    """Read a record, or a problem, from every box; crowds are left out.

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
            yield from _of_entry(entry, where, images)


def _of_entry(entry: BoxEntry, where: str, images: "EntryImages") -> Iterator[Part]:
    try:
        image = images.find_entry(entry)
    except ImageError as error:
        yield Problem(where, str(error))
        return
    for number, written in enumerate(entry.boxes, 1):
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


class EntryImages:
    """Finds the image file of an entry of a box file, by the rules by which asking finds boxes."""

    def __init__(self, file: BoxFile, folders: list[Path]) -> None:
        """folders: Where names are looked up first; below them, images are matched to entries."""
        self._file = file
        self._folders = folders
        self._finder = ImageFinder(folders)
        self._matched: dict[int, list[Path]] | None = None

    def find_entry(self, entry: BoxEntry) -> ImageFile:
        """Return the image of an entry; ImageError if there is none, or several."""
        name = entry.name or ""
        if not entry.by_stem and any(_exists(folder / name) for folder in self._folders):
            return self._finder.find(name)
        if self._matched is None:
            self._matched = self._match()
        paths = self._matched.get(id(entry), [])
        if not paths:
            raise ImageError(
                f"{name}: no image of this name below {self._folders[0]}; "
                "give the folder of the images with --images"
            )
        if len(paths) > 1:
            names = ", ".join(map(str, paths[:3]))
            raise ImageError(
                f"{name}: {len(paths)} images could be meant ({names}); name one folder with "
                "--images"
            )
        return ImageFinder([Path()]).find(str(paths[0].absolute()))

    def _match(self) -> dict[int, list[Path]]:
        """Return the images below the folders by the entry that each would be asked with."""
        found: dict[int, list[Path]] = {}
        seen = set[Path]()
        for folder in self._folders:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.suffix.lower() not in _SUFFIXES or path in seen:
                    continue
                seen.add(path)
                try:
                    entry = self._file._entry(str(path))
                except BoxError:
                    continue  # its entry has the error
                if entry is not None:
                    found.setdefault(id(entry), []).append(path)
        return found


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


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name too long
        return False
