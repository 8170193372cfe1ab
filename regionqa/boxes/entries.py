"""Entries of box files, and the interface of a module that reads and writes one format.

A box file can be wrong in two ways. A fault of the file as a whole (no JSON, a missing list) raises
BoxFileError and ends the run. Whatever is wrong with the boxes of one image, or with a file about
one image among others, fails only that image: the message is kept as `BoxEntry.defect` until the
image is asked about. A file whose entries all are unreadable is refused as a whole.
"""

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol, Self

from regionqa.boxes.matching import ImageName, Root
from regionqa.boxes.remarks import Adjusted, LeftOut
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError, OutputError
from regionqa.images.kinds import is_read
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox

NOT_BOXES = frozenset({"classes.txt", "notes.json", "readme.dataset.txt", "readme.roboflow.txt"})
"""Files that stand among labels in published datasets and hold no boxes, in lower case."""
_DOCUMENTS = ("readme", "license", "licence")
_IMAGE_LISTS = frozenset({"train.txt", "val.txt", "valid.txt", "test.txt", "trainval.txt"})
Size = tuple[int, int]
"""Width and height of an image in pixels."""


def stands_beside(path: Path) -> bool:
    """Whether a file in a folder of boxes holds none: class names, notes, a list of images."""
    name = path.name.lower()
    if name in NOT_BOXES or name.startswith((".", *_DOCUMENTS)):
        return True
    return name in _IMAGE_LISTS and is_image_list(path)


def is_image_list(path: Path) -> bool:
    """Whether the first line of a file is the path of an image."""
    with path.open("rb") as file:
        return is_read(file.readline(4096).decode("utf-8", "replace").strip())


@dataclass(frozen=True)
class BoxEntry:
    """The boxes of one image."""

    name: str | None
    """The image as the file names it; None for boxes that apply to any image."""
    boxes: tuple[WrittenBox, ...] = ()
    """In file order; empty if there is a defect."""
    defect: str | None = None
    """What is wrong with the first malformed box, in one line."""
    by_stem: bool = False
    """Whether `name` lacks the image's suffix, as in the file names of YOLO labels."""
    size: Size | None = None
    """Width and height of the image in pixels as the file states them; None if it does not."""
    own_stem: str | None = None
    """Of a file about one image: its own path below `top`, without suffix. The image often has it
    where `name` is stale."""
    broken: bool = False
    """Whether the defect is a BoxFileError; a file whose entries all are broken is refused."""
    numbered: bool = False
    """Whether `name` is only a number that stands for the image, as in COCO's results."""

    def checked_boxes(self) -> tuple[WrittenBox, ...]:
        """Return the boxes; BoxError if one is malformed."""
        if self.defect is not None:
            raise BoxError(self.defect)
        return self.boxes

    @classmethod
    def of(
        cls,
        name: str | None,
        boxes: Iterable[WrittenBox],
        *,
        by_stem: bool = False,
        size: Size | None = None,
        own_stem: str | None = None,
    ) -> Self:
        """Read the boxes of an image; the first error becomes the entry's defect."""
        read, defect, broken = tuple[WrittenBox, ...](), None, False
        try:
            read = tuple(boxes)
        except (BoxError, BoxFileError) as error:
            defect, broken = str(error), isinstance(error, BoxFileError)
        return cls(name, read, defect, by_stem, size, own_stem, broken=broken)

    @classmethod
    def of_file(
        cls,
        file: SourceFile,
        image: str,
        boxes: Iterable[WrittenBox],
        *,
        size: Size | None = None,
    ) -> Self:
        """Read the boxes of a file about one image, or about any image if a pipe names none.

        Args:
            file: The file; its folder below `top` is put before the image's name.
            image: The image named in the file; if empty, the image has the stem of the file.
            boxes: The boxes, which may raise BoxError while they are read.
            size: Width and height of the image as the file states them.
        """
        if file.is_stream:
            return cls.of(image or None, boxes, size=size)
        name, stem = image or file.path.stem, file.path.stem
        if file.folder != Path():
            stem = f"{file.folder.as_posix()}/{stem}"
            if ImageName.parse(name).root is Root.none:
                name = f"{file.folder.as_posix()}/{name}"
        by_stem = not PurePosixPath(image).suffix
        return cls.of(name, boxes, by_stem=by_stem, size=size, own_stem=stem)


@dataclass(frozen=True)
class BoxContents:
    """Everything that was read from one or several files of a format."""

    entries: tuple[BoxEntry, ...]
    """In file order."""
    left_out: tuple[LeftOut, ...] = ()
    """Annotations without an entry, in file order."""
    classes: tuple[str, ...] | None = None
    """Class names that the file declares; None if it declares none."""
    adjusted: tuple[Adjusted, ...] = ()
    """Annotations that were read as something simpler, in file order."""


@dataclass(frozen=True)
class Convention:
    """The coordinate convention stated by the user, for formats that have none of their own."""

    format: BoxFormat | None = None
    """None: the one that the file's column names imply, else xyxy."""
    units: BoxUnits | None = None
    """None: those that the format defines, else pixels."""
    masks: bool = False
    """Whether masks are read too, by the formats of `regionqa.boxes.files.MASKED`."""

    @property
    def box_units(self) -> BoxUnits:
        """Units of a format that defines none."""
        return self.units or BoxUnits.pixel


@dataclass(frozen=True)
class ImageRegions:
    """An image and its regions, to be written to a box file."""

    name: str
    """The image's path or file name, as it is to appear in the file."""
    width: int
    """In pixels, as displayed."""
    height: int
    """In pixels, as displayed."""
    regions: tuple[Region, ...]
    """In pixels of the image as displayed; may be empty."""


Files = Mapping[PurePosixPath, str]
"""Texts by path, relative to the path that the user gave; `.` is that path itself."""


class FileFormat(Protocol):
    """A module that reads and writes one format (CONTRIBUTING.md, "Adding a box format")."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """The format's name in messages."""

    @property
    def IMAGE_SUFFIX(self) -> str | None:  # noqa: N802
        """Suffix of files about one image each, which are read as a folder; None: one file."""

    @property
    def OWN_CONVENTION(self) -> bool:  # noqa: N802
        """Whether the format defines what a box's numbers mean, so that a user cannot say it."""

    @property
    def ABSENT_IS_EMPTY(self) -> bool:  # noqa: N802
        """Whether, in a folder, an image without a file has no boxes; otherwise it is an error."""

    def recognise(self, file: SourceFile) -> bool:
        """Whether the file has this format, judged by suffix and content."""

    def read(self, files: Iterable[SourceFile], convention: Convention) -> BoxContents:
        """Read files; several only if `IMAGE_SUFFIX` is set."""

    def write(self, images: Sequence[ImageRegions]) -> Files:
        """Render images in this format."""


def entry_per_file(
    files: Iterable[SourceFile], read: Callable[[SourceFile], BoxEntry]
) -> tuple[BoxEntry, ...]:
    """Read files about one image each; one that cannot be read fails its own image."""
    entries: list[BoxEntry] = []
    for file in files:
        try:
            entries.append(read(file))
        except BoxFileError as error:
            entry = BoxEntry.of_file(file, "", ())
            entries.append(replace(entry, defect=str(error), broken=True))
    return tuple(entries)


def score_field(region: Region, key: str = "score") -> dict[str, float]:
    """Return the member of a JSON object that holds a detector's score; empty without one."""
    return {} if region.score is None else {key: region.score}


def mask_field(region: Region) -> dict[str, object]:
    """Return the member of a JSON object that holds a region's mask; empty without one."""
    return {} if region.mask is None else {"mask": region.mask.as_rle()}


def labels_of(images: Sequence[ImageRegions]) -> list[str]:
    """Distinct labels in order of appearance; an empty text stands for unlabelled regions."""
    return list(dict.fromkeys(r.label or "" for image in images for r in image.regions))


def name_parts(name: str) -> tuple[str, ...]:
    """Split an image's name into folders and file name; never empty.

    Slashes may lean either way. Drives, and steps above the first folder, are dropped.
    """
    path = posixpath.normpath(name.replace("\\", "/"))
    parts = (part for part in path.split("/") if part.strip(".") and not part.endswith(":"))
    return tuple(parts) or (path,)


def file_per_image(
    images: Sequence[ImageRegions], suffix: str, text_of: Callable[[ImageRegions], str]
) -> dict[PurePosixPath, str]:
    """Render a file per image, in the folder that the image's name says."""
    files: dict[PurePosixPath, str] = {}
    for image in images:
        path = PurePosixPath(*name_parts(image.name)).with_suffix(suffix)
        if path in files or path.name.lower() in NOT_BOXES:
            raise OutputError(f"{image.name}: its file {path} is already taken; rename the image")
        files[path] = text_of(image)
    return files
