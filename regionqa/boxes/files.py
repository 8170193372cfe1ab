"""Box files: the boxes users already have, looked up by image, and written back.

    boxes = read_boxes(Path("instances.json")).boxes_for("photos/cat.jpg")

This is the door: it recognises a file's format, finds the entry of an image, and lays out what is
written. The formats themselves are in boxjson.py and boxtext.py. No image is opened here: boxes
come as `WrittenBox`es, to be resolved where the image's size is known.
"""

import functools
import itertools
import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path, PurePosixPath

from regionqa.boxes import coco, csv, labelme, labelstudio, plain, voc, yolo
from regionqa.boxes.fields import BoxEntry, ImageRegions, labels_of, load_json, load_text
from regionqa.errors import BoxError, BoxFileError, OutputError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

__all__ = ["BoxFile", "BoxFileFormat", "ImageRegions", "read_boxes", "write_boxes"]

_GIVE = (
    "give COCO, LabelMe, Label Studio, Pascal VOC or YOLO, a CSV file with the columns "
    'image,x0,y0,x1,y1, or JSON like {"image.jpg": [[x0, y0, x1, y1]]}'
)
_KINDS = {"{": ".json", "[": ".json", "<": ".xml"}
_NOT_BOXES = (yolo.CLASS_NAMES, "README.dataset.txt", "README.roboflow.txt")
_UNWRITABLE = re.compile(r"[^\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")  # as in XML 1.0


class BoxFileFormat(StrEnum):
    """The formats of box files."""

    plain = "plain"
    coco = "coco"
    voc = "voc"
    yolo = "yolo"
    labelme = "labelme"
    labelstudio = "labelstudio"
    csv = "csv"


@dataclass(frozen=True)
class BoxFile:
    """The boxes of a file, or of a folder of files, by image."""

    source: Path
    """The file or folder that was read."""
    format: BoxFileFormat
    """What it was recognised as."""
    entries: tuple[BoxEntry, ...]
    """What it says, in file order."""

    @property
    def images(self) -> tuple[str, ...]:
        """The images as the file names them, in file order; none where boxes are for any image.

        A file in a subfolder of `source` has that subfolder before its image's name; a YOLO file
        gives the name without its suffix.
        """
        return tuple(entry.name for entry in self.entries if entry.name is not None)

    def boxes_for(self, image: str) -> tuple[WrittenBox, ...] | None:
        """The boxes of an image, in file order; None where the file says nothing about it.

        image: a path or name. It finds the entry of the same text, else the one of the same file
        name with most folders in common.
        Raises BoxError where a box of this image is malformed, or several entries could be meant.
        """
        entry = self._entry(image)
        if entry is None:
            return None
        if entry.defect is not None:
            raise BoxError(entry.defect)
        return entry.boxes

    @functools.cached_property
    def _index(self) -> Mapping[tuple[str, str], list[BoxEntry]]:
        """Entries by ("text", name), and by ("file", its last part) or ("stem", the same)."""
        index: defaultdict[tuple[str, str], list[BoxEntry]] = defaultdict(list)
        for entry in self.entries:
            if entry.name is not None:
                index["text", entry.name].append(entry)
                index["stem" if entry.by_stem else "file", _parts(entry.name)[-1]].append(entry)
        return dict(index)

    def _entry(self, image: str) -> BoxEntry | None:
        if self.entries and self.entries[0].name is None:
            return self.entries[0]
        *folders, file = _parts(image)
        stem = PurePosixPath(file).stem
        for key, parts in (
            (("text", image), (*folders, file)),
            (("file", file), (*folders, file)),
            (("stem", stem), (*folders, stem)),
        ):
            if key in self._index:
                return self._nearest(self._index[key], parts, image)
        return None

    def _nearest(self, entries: list[BoxEntry], parts: tuple[str, ...], image: str) -> BoxEntry:
        """The one entry with most trailing parts in common; of equals, the one with no others."""

        def nearness(entry: BoxEntry) -> tuple[int, bool]:
            own = _parts(entry.name or "")
            pairs = zip(reversed(own), reversed(parts), strict=False)
            shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
            return shared, shared == len(own)

        ranks = [nearness(entry) for entry in entries]
        if ranks.count(max(ranks)) > 1:
            names = ", ".join(str(entry.name) for entry in entries[:3])
            raise BoxError(
                f"{image}: {len(entries)} entries of {self.source} could mean it ({names}); "
                "name the image, in the file and in the command, with its folder"
            )
        return entries[ranks.index(max(ranks))]


def _parts(name: str) -> tuple[str, ...]:
    """The folders and the file name of an image, however its slashes lean; never empty.

    Neither a drive, nor steps upward that nothing stands before, are among them.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    parts = (part for part in path.split("/") if part.strip(".") and not part.endswith(":"))
    return tuple(parts) or (path,)


# ---- reading ----


def read_boxes(
    path: Path, *, format: BoxFormat | None = None, units: BoxUnits | None = None
) -> BoxFile:
    """The boxes of a file, or of a folder with a VOC, YOLO or LabelMe file per image.

    The format is recognised from the suffix and the content.
    format, units: the convention of plain JSON and CSV, pixel xyxy where not given; every other
    format has its own.
    Raises BoxFileError, naming the place, where the file cannot be read. A malformed box does not:
    it makes `boxes_for` its own image fail.
    """
    try:
        if path.is_dir():
            return BoxFile(path, *_read_folder(path))
        return BoxFile(path, *_read_file(path, format, units or BoxUnits.pixel))
    except FileNotFoundError:
        raise BoxFileError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise BoxFileError(f"{path}: cannot be read: {error.strerror}") from None


def _read_file(
    path: Path, format: BoxFormat | None, units: BoxUnits
) -> tuple[BoxFileFormat, tuple[BoxEntry, ...]]:
    kind = _kind(path)
    if kind == ".csv":
        return BoxFileFormat.csv, tuple(csv.csv_entries(path, format, units))
    if kind == ".json":
        return _read_json(path, format or BoxFormat.xyxy, units)
    found, entry_of = _per_image_reader(kind, path.parent)
    return found, (entry_of(path),)


def _kind(path: Path) -> str:
    """The suffix a file has, or should have by its first character."""
    suffix = {".tsv": ".csv"}.get(path.suffix.lower(), path.suffix.lower())
    if suffix in (".csv", ".json", ".xml", ".txt"):
        return suffix
    first = load_text(path).lstrip()[:1]
    if first not in _KINDS:
        raise BoxFileError(f"{path}: is no box file that is known; {_GIVE}")
    return _KINDS[first]


def _read_json(
    path: Path, format: BoxFormat, units: BoxUnits
) -> tuple[BoxFileFormat, tuple[BoxEntry, ...]]:
    document = load_json(path)
    keys = document.keys() if isinstance(document, dict) else set()
    first = document[0] if isinstance(document, list) and document else document
    if {"images", "annotations"} <= keys:
        return BoxFileFormat.coco, tuple(coco.coco_entries(document, path))
    if "shapes" in keys:
        return BoxFileFormat.labelme, (labelme.labelme_entry(document, path),)
    if isinstance(first, dict) and {"data", "annotations"} <= first.keys():
        return BoxFileFormat.labelstudio, tuple(labelstudio.labelstudio_entries(document, path))
    values = document.values() if isinstance(document, dict) else [document]
    if document == {} or any(map(_holds_boxes, values)):
        return BoxFileFormat.plain, tuple(plain.plain_entries(document, path, format, units))
    raise BoxFileError(f"{path}: is no box file that is known; {_GIVE}")


def _holds_boxes(value: object) -> bool:
    """Whether this may be a plain list of boxes: some of them have an inside, or there are none."""
    return value == [] or (
        isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value)
    )


def _read_folder(folder: Path) -> tuple[BoxFileFormat, tuple[BoxEntry, ...]]:
    paths = sorted(path for path in folder.rglob("*") if _is_for_one_image(path))
    kinds = sorted({path.suffix.lower() for path in paths})
    if len(kinds) != 1:
        raise BoxFileError(
            f"{folder}: holds {' and '.join(kinds) or 'no'} box files; give a folder of one kind, "
            ".xml (Pascal VOC), .txt (YOLO) or .json (LabelMe), or the file itself"
        )
    found, entry_of = _per_image_reader(kinds[0], folder)
    return found, tuple(_within(path.parent.relative_to(folder), entry_of(path)) for path in paths)


def _is_for_one_image(path: Path) -> bool:
    known = path.suffix.lower() in (".xml", ".txt", ".json") and path.name not in _NOT_BOXES
    return known and not path.name.startswith(".") and path.is_file()


def _within(folder: Path, entry: BoxEntry) -> BoxEntry:
    """The entry, its image's name preceded by the folder it was found in."""
    if folder == Path():
        return entry
    return replace(entry, name=f"{folder.as_posix()}/{entry.name}")


def _per_image_reader(kind: str, top: Path) -> tuple[BoxFileFormat, Callable[[Path], BoxEntry]]:
    """How to read the files of this suffix, each about one image, in or below a folder."""
    names = functools.cache(functools.partial(yolo.class_names, top=top))
    return {
        ".xml": (BoxFileFormat.voc, voc.voc_entry),
        ".txt": (BoxFileFormat.yolo, lambda path: yolo.yolo_entry(path, names(path.parent))),
        ".json": (BoxFileFormat.labelme, lambda path: labelme.labelme_entry(load_json(path), path)),
    }[kind]


# ---- writing ----


def write_boxes(path: Path, images: Sequence[ImageRegions], format: BoxFileFormat) -> None:
    """Writes the regions of images as a box file, which `read_boxes` reads back.

    path: a file; for voc, yolo and labelme a folder, which gets a file per image, in subfolders
    as the images' names say, beside whatever is there already.
    Raises OutputError where the path cannot be written, or a name or label does not fit the format.
    """
    _refuse_unwritable(images)
    files = _files(images, format)
    try:
        for relative, text in files.items():
            file = path / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def _refuse_unwritable(images: Sequence[ImageRegions]) -> None:
    names = [image.name for image in images]
    for name, count in Counter(names).items():
        if count > 1:
            raise OutputError(f"{name}: is given {count} times; give an image all its regions once")
        if not name.strip("./\\"):
            raise OutputError(f"{name!r}: is no name of an image; give its path")
    for text in (*names, *labels_of(images)):
        if _UNWRITABLE.search(text):
            raise OutputError(f"{text!r}: holds a line break or control character; remove it")


def _files(images: Sequence[ImageRegions], format: BoxFileFormat) -> dict[PurePosixPath, str]:
    """The text of every file, by its path below the one that was given."""
    itself = PurePosixPath()
    match format:
        case BoxFileFormat.plain:
            return {itself: _json(plain.plain_document(images))}
        case BoxFileFormat.coco:
            return {itself: _json(coco.coco_document(images))}
        case BoxFileFormat.labelstudio:
            return {itself: _json(labelstudio.labelstudio_document(images))}
        case BoxFileFormat.csv:
            return {itself: csv.csv_text(images)}
        case BoxFileFormat.voc:
            return _file_each(images, ".xml", voc.voc_text)
        case BoxFileFormat.labelme:
            return _file_each(images, ".json", lambda one: _json(labelme.labelme_document(one)))
        case BoxFileFormat.yolo:
            labels = labels_of(images)
            names = {PurePosixPath(yolo.CLASS_NAMES): "".join(f"{name}\n" for name in labels)}
            return names | _file_each(images, ".txt", yolo.yolo_writer(labels))


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def _file_each(
    images: Sequence[ImageRegions], suffix: str, text_of: Callable[[ImageRegions], str]
) -> dict[PurePosixPath, str]:
    """The text of a file per image, which lies where the image's name says."""
    files: dict[PurePosixPath, str] = {}
    for image in images:
        path = PurePosixPath(*_parts(image.name)).with_suffix(suffix)
        if path in files or path.name in _NOT_BOXES:
            raise OutputError(f"{image.name}: its file {path} is taken already; rename the image")
        files[path] = text_of(image)
    return files
