"""Box files: recognise a format, look up boxes by image, write regions.

    boxes = read_boxes(Path("instances.json")).boxes_for("photos/cat.jpg")

Boxes come as `WrittenBox`es, which are resolved to pixels once the image's size is known.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    FileFormat,
    Files,
    ImageRegions,
    labels_of,
    stands_beside,
)
from regionqa.boxes.formats import (
    coco,
    createml,
    csv,
    cvat,
    huggingface,
    labelme,
    labelstudio,
    plain,
    requests,
    via,
    voc,
    yolo,
)
from regionqa.boxes.lookup import EntryLookup, merge_entries
from regionqa.boxes.remarks import Adjusted, LeftOut, summarise_remarks
from regionqa.boxes.source import SourceFile
from regionqa.boxes.unreadable import other_tool
from regionqa.errors import BoxFileError, OutputError, UsageError
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

__all__ = ["FORMATS", "BoxFile", "ImageRegions", "format_of", "read_boxes", "write_boxes"]

FORMATS: dict[str, FileFormat] = {
    "coco": coco,
    "labelme": labelme,
    "via": via,
    "labelstudio": labelstudio,
    "createml": createml,
    "huggingface": huggingface,
    "requests": requests,
    "cvat": cvat,
    "voc": voc,
    "csv": csv,
    "yolo": yolo,
    "plain": plain,
}
"""Formats by name; the first that recognises a file reads it."""

MASKED = ("coco", "requests", "plain")
"""Formats whose masks are read and written."""

NUMBERED = "an image called only by its number taken for the one that is asked about"
MERGED = "images listed more than once, with different boxes, which count together"
_UNWRITABLE = re.compile(r"[^\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")  # as in XML 1.0


@dataclass(frozen=True)
class BoxFile:
    """The boxes of a file, or of a folder of files, by image."""

    source: Path
    """The file or folder that was read."""
    format: str
    """Its format, a key of FORMATS."""
    entries: tuple[BoxEntry, ...]
    """In file order."""
    left_out: tuple[LeftOut, ...] = ()
    """Annotations that were recognised but not read, in file order."""
    classes: tuple[str, ...] | None = None
    """Class names that the file declares; None if it declares none."""
    adjusted: tuple[Adjusted, ...] = ()
    """Annotations that were read as something simpler, in file order."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was left out or adjusted: a line per reason, with its count and first place."""
        lines = summarise_remarks((*self.left_out, *self.adjusted))
        return tuple(f"{self.source}: {line}" for line in lines)

    @property
    def images(self) -> tuple[str, ...]:
        """The images as the file names them, in file order; empty if boxes apply to any image.

        A file in a subfolder of `source` has that subfolder before its image's name; a YOLO file
        gives the name without its suffix.
        """
        return tuple(entry.name for entry in self.entries if entry.name is not None)

    def boxes_for(self, image: str) -> tuple[WrittenBox, ...] | None:
        """Look up the boxes of an image.

        Args:
            image: Path or name; `matching` says which entry it finds.

        Returns:
            The boxes in file order; None if the file does not mention the image.

        Raises:
            BoxError: If a box of this image is malformed, or several entries match equally well.
        """
        entry = self.entry_for(image)
        return None if entry is None else entry.checked_boxes()

    def entry_for(self, image: str) -> BoxEntry | None:
        """Look up the entry of an image; BoxError if several match equally well."""
        found = self._lookup.find(image)
        if found is None and FORMATS[self.format].ABSENT_IS_EMPTY and self.source.is_dir():
            return BoxEntry(image)
        return found

    def for_one_image(self) -> "BoxFile":
        """Return the file for a command about a single image.

        If the file is about one image and calls it only by a number, that is this image.
        """
        entry = self.entries[0] if len(self.entries) == 1 else None
        if entry is None or not entry.numbered:
            return self
        told = Adjusted(f"image {entry.name}", NUMBERED)
        entries = (replace(entry, name=None),)
        return replace(self, entries=entries, adjusted=(*self.adjusted, told))

    def own_image(self, entry: BoxEntry) -> Path | None:
        """Return the image at the very place that an entry names, if there is one."""
        return self._lookup.own_image(entry)

    def why_not(self, image: str) -> str:
        """Say why an image has no entry, with the names that come closest."""
        return self._lookup.why_not(image)

    @functools.cached_property
    def _lookup(self) -> EntryLookup:
        return EntryLookup(self.source, self.entries)


# ---- reading ----


def read_boxes(
    path: Path,
    *,
    format: BoxFormat | None = None,
    units: BoxUnits | None = None,
    masks: bool = False,
    source: SourceFile | None = None,
) -> BoxFile:
    """Read the boxes of a file, or of a folder with a VOC, YOLO or LabelMe file per image.

    The file format is recognised by suffix and content. A malformed box does not raise; it makes
    `boxes_for` its own image fail.

    Args:
        path: File or folder.
        format: Coordinates of plain JSON and CSV; xyxy by default.
        units: Units of plain JSON and CSV; pixels by default.
        masks: Whether masks are read too.
        source: The file, if its content was read already, as from a pipe.

    Raises:
        BoxFileError: If the file cannot be read; the message names the place.
        UsageError: If a format or units are given for a file that defines its own; or masks are
            asked for, and the file holds none that are read.
    """
    convention = Convention(format, units, masks)
    try:
        if path.is_dir():
            name, contents = _read_folder(path, convention)
        else:
            name, contents = _read_file(source or SourceFile(path, path.parent), convention)
    except FileNotFoundError:
        raise BoxFileError(f"{path}: there is no such file; check the path") from None
    except OSError as error:
        raise BoxFileError(f"{path}: cannot be read: {error.strerror}") from None
    entries, merged = merge_entries(contents.entries)
    if entries and all(entry.broken for entry in entries):
        raise BoxFileError(str(entries[0].defect))
    given = "--box-format" if format else "--box-units" if units else None
    if given and FORMATS[name].OWN_CONVENTION and any(entry.boxes for entry in entries):
        raise UsageError(
            f"{given}: {path} is {FORMATS[name].TITLE}, which defines what its numbers mean; "
            f"leave {given} out, or correct the file if its numbers mean something else"
        )
    if masks:
        _expect_masks(path, name, entries)
    adjusted = (*contents.adjusted, *(Adjusted(image, MERGED) for image in merged))
    return BoxFile(path, name, entries, contents.left_out, contents.classes, adjusted)


def _expect_masks(path: Path, name: str, entries: Sequence[BoxEntry]) -> None:
    """Raise UsageError if no box has a mask, and none is malformed."""
    if name not in MASKED:
        raise UsageError(
            f"--masks: {path} is {FORMATS[name].TITLE}, of which no masks are read; leave --masks "
            "out, or give COCO"
        )
    if not any(entry.defect or any(box.mask for box in entry.boxes) for entry in entries):
        raise UsageError(f"--masks: {path} holds no masks; leave --masks out")


def _read_file(file: SourceFile, convention: Convention) -> tuple[str, BoxContents]:
    if file.kind in (".json", ".jsonl") and (tool := other_tool(file.keys)) is not None:
        raise BoxFileError(f"{file.path}: {tool}")
    name = format_of(file)
    if name is not None:
        return name, FORMATS[name].read([file], convention)
    titles = [format.TITLE for format in FORMATS.values()]
    raise BoxFileError(
        f"{file.path}: is not a box file of a known format; "
        f"give {', '.join(titles[:-1])} or {titles[-1]}"
    )


def format_of(file: SourceFile) -> str | None:
    """Return the name of the first format that recognises a file; None if none does."""
    return next((name for name, format in FORMATS.items() if format.recognise(file)), None)


def _read_folder(folder: Path, convention: Convention) -> tuple[str, BoxContents]:
    formats = {each.IMAGE_SUFFIX: name for name, each in FORMATS.items() if each.IMAGE_SUFFIX}
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in formats and path.is_file() and not stands_beside(path)
    )
    suffixes = sorted({path.suffix.lower() for path in paths})
    if not suffixes:
        others = Counter(p.suffix.lower() for p in folder.rglob("*") if p.suffix and p.is_file())
        what = f", but {others.most_common(1)[0][0]} files, which are not read" if others else ""
        raise BoxFileError(
            f"{folder}: holds no box files{what}; give a folder of labels, or the file of boxes"
        )
    if len(suffixes) != 1:
        known = [f"{suffix} ({FORMATS[name].TITLE})" for suffix, name in formats.items()]
        raise BoxFileError(
            f"{folder}: holds {' and '.join(suffixes)} box files; give a folder of one "
            f"kind, {', '.join(known[:-1])} or {known[-1]}, or the file itself"
        )
    name = formats[suffixes[0]]
    return name, FORMATS[name].read((SourceFile(path, folder) for path in paths), convention)


# ---- writing ----


def write_boxes(path: Path, images: Sequence[ImageRegions], format: str) -> None:
    """Write the regions of images as a box file, which `read_boxes` reads back.

    Args:
        path: A file; for formats with a file per image a folder, which gets the files in
            subfolders as the images' names say, beside whatever it holds already.
        images: Each image once.
        format: A key of FORMATS.

    Raises:
        OutputError: If the path cannot be written, or a name or label does not fit the format.
    """
    files = render_boxes(images, format)
    try:
        for relative, text in files.items():
            file = path / relative
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def render_boxes(images: Sequence[ImageRegions], format: str) -> Files:
    """Render the regions of images as the texts that `write_boxes` writes; its errors too."""
    _refuse_unwritable(images)
    return FORMATS[format].write(images)


def _refuse_unwritable(images: Sequence[ImageRegions]) -> None:
    names = [image.name for image in images]
    for name, count in Counter(names).items():
        if count > 1:
            raise OutputError(f"{name}: is given {count} times; give an image all its regions once")
        if not name.strip("./\\"):
            raise OutputError(f"{name!r}: is not the name of an image; give its path")
    for text in (*names, *labels_of(images)):
        if _UNWRITABLE.search(text):
            raise OutputError(f"{text!r}: holds a line break or control character; remove it")
