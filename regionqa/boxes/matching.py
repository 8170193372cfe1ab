"""Which image a name means: the one rule by which images and annotations are matched.

Asking looks up the entry of an image; evaluation and training look up the image of an entry. Both
compare an *entry's* name, as an annotation file writes it, with an *image's*, as it lies on this
machine:

1. The file names are equal: as written; else without what a web server or an upload adds; else in
   any case; else without the prefix that Label Studio gives to uploads. Composed and decomposed
   letters are the same. A name without the suffix of an image stands for any suffix.
2. The folders do not contradict each other: read from the file name upwards, they are equal until
   one of the names ends. Folders such as `images` and `labels`, which keep images and annotations
   apart, are passed over.

Nothing here guesses: several matches are the caller's to refuse.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Generic, Self, TypeVar
from unicodedata import is_normalized, normalize
from urllib.parse import unquote

from regionqa.images.kinds import SUFFIXES

T = TypeVar("T")
Folders = tuple[str, ...]
Key = tuple[bool, str]
"""Whether the text is a file name without suffix, and the text."""

IMAGE_FOLDERS = frozenset(
    {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures"}
    | {"pic", "pics", "frames"}
)
"""Names, in lower case, of folders that hold the images of a data set."""
LABEL_FOLDERS = frozenset(
    {"label", "labels", "labeltxt", "labelme", "annotation", "annotations", "annot", "annots"}
    | {"ann", "anns", "xml", "xmls", "json", "jsons", "txt", "bbox", "bboxes", "box", "boxes", "gt"}
)
"""Names, in lower case, of folders that hold the annotations of a data set."""
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
"""Names, in lower case, of the parts of a data set."""
IMAGE_SUFFIXES = SUFFIXES | {".jp2", ".ppm", ".pgm", ".dng", ".svg"}
"""Suffixes of images, read or not: a name that ends otherwise, as `cam.0001` does, has none."""

_PLAIN = re.compile(r"(?:\w[\w .,+()-]*/)*\w[\w .,+()-]*", re.ASCII)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://[^/]*(.*)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:(?=[/\\]|$)")
_SERVED = re.compile(r"(?:.*/)?local-files/?\?(?:.*&)?d=([^&]*).*", re.DOTALL)
"""A file that Label Studio serves: `/data/local-files/?d=PATH`."""
_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an upload."""
_UPLOADED = re.compile(r"(?:.*/)?upload/\d+/([0-9a-f]{8}-[^/]+)")
"""An upload of Label Studio: `/data/upload/PROJECT/0a1b2c3d-NAME`."""


class Root(Enum):
    """Where the folders of a name begin."""

    none = "none"
    machine = "machine"
    """At the root or a drive of a machine, perhaps another one."""
    server = "server"
    """At a web server or a bucket, whose folders are not those of any machine."""
    upload = "upload"
    """In no folder: a file that was uploaded, with a prefix."""


@dataclass(frozen=True, slots=True)
class ImageName:
    """A name in parts, with `/` for any separator and composed letters."""

    folders: Folders
    file: str
    root: Root = Root.none

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a path or URL. Drives, hosts, queries, and steps above the first folder go."""
        if _PLAIN.fullmatch(text):  # most names; the rest takes ten times as long
            folders, _, file = text.rpartition("/")
            return cls(tuple(folders.split("/")) if folders else (), file)
        if served := _SERVED.fullmatch(text):
            text = unquote(served[1])
        if not is_normalized("NFC", text):
            text = normalize("NFC", text)
        root = Root.none
        if url := _URL.fullmatch(text):
            root = Root.machine if url[1].lower() == "file" else Root.server
            text = unquote(re.split(r"[?#]", url[2], maxsplit=1)[0])
        path = text.replace("\\", "/")
        if uploaded := _UPLOADED.fullmatch(path):
            return cls((), uploaded[1], Root.upload)
        if path.startswith("/") or _DRIVE.match(path.lstrip("/")):
            root = Root.machine if root is Root.none else root
            path = _DRIVE.sub("", path.lstrip("/"), count=1)
        if "/" not in path:
            return cls((), path or text, root)
        path = posixpath.normpath(path)
        parts = [part for part in path.split("/") if part.strip(".")] or [path]
        return cls(tuple(parts[:-1]), parts[-1], root)

    @property
    def text(self) -> str:
        """The path from the first folder on."""
        return "/".join((*self.folders, self.file))

    @property
    def stem(self) -> str:
        """The file name without an image's suffix."""
        stem, _, suffix = self.file.rpartition(".")
        return stem if stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else self.file

    def loosened(self) -> Self:
        """The name without what web servers and uploads add to it."""
        text = self.text
        if "%" not in text and "?" not in text and self.root is not Root.upload:
            return self
        path, query, _ = text.partition("?")
        if query and posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES:
            text = path
        text = unquote(text)
        if self.root is Root.upload:
            text = text.partition("-")[2]
        return self if text == self.text else replace(self.parse(text), root=self.root)

    def folded(self) -> Self:
        """The loosened name in any case."""
        name = self.loosened()
        folders, file = tuple(map(str.casefold, name.folders)), name.file.casefold()
        return type(self)(folders, file, name.root)

    def unprefixed(self) -> Self:
        """The name in any case, without the prefix of an upload."""
        name = self.folded()
        return type(self)(name.folders, _PREFIX.sub("", name.file, count=1), name.root)

    def without(self, kinds: frozenset[str]) -> Self:
        """The name without folders of these names."""
        kept = tuple(folder for folder in self.folders if folder.lower() not in kinds)
        return self if len(kept) == len(self.folders) else replace(self, folders=kept)


Level = Callable[[ImageName], ImageName]
LEVELS: tuple[Level, ...] = (
    lambda name: name,
    ImageName.loosened,
    ImageName.folded,
    ImageName.unprefixed,
)
"""How names are compared; a later level is tried where an earlier one finds nothing."""


def keys_of_entry(name: ImageName) -> tuple[Key, ...]:
    """Return what an entry's name says about the image's file name."""
    stem = name.stem
    return ((stem == name.file, name.file),)


def keys_of_image(name: ImageName) -> tuple[Key, ...]:
    """Return what an entry of an image may say, the more exact first."""
    return ((False, name.file), (True, name.stem))


class NameIndex(Generic[T]):
    """Things by name: entries to be looked up by image, or images by entry."""

    def __init__(
        self,
        named: Iterable[tuple[ImageName, T]],
        keys: Callable[[ImageName], tuple[Key, ...]],
    ) -> None:
        """Index things.

        Args:
            named: Names and things, in the order in which they are to be found.
            keys: `keys_of_entry` or `keys_of_image`, after what the things are.
        """
        self._named = list(named)
        self._keys = keys
        self._indices: dict[Level, Mapping[Key, list[tuple[ImageName, T]]]] = {}

    def _index(self, level: Level) -> Mapping[Key, list[tuple[ImageName, T]]]:
        if level in self._indices:
            return self._indices[level]
        index = defaultdict(list)
        for name, thing in self._named:
            leveled = level(name)
            for key in self._keys(leveled):
                index[key].append((leveled, thing))
        self._indices[level] = dict(index)
        return self._indices[level]

    def levels(
        self, name: ImageName
    ) -> Iterator[tuple[Level, ImageName, list[tuple[ImageName, T]]]]:
        """Find what has the file name, at each level and key that finds anything.

        name: of the other kind than the things' own.

        Yields:
            The level, and the name and what was found, as they are compared at that level.
        """
        other = keys_of_entry if self._keys is keys_of_image else keys_of_image
        for level in LEVELS:
            leveled, index = level(name), self._index(level)
            for key in other(leveled):
                if key in index:
                    yield level, leveled, index[key]


def shared_folders(first: Folders, second: Folders) -> int | None:
    """Count the folders two names have in common, read upwards; None if they contradict."""
    count = min(len(first), len(second))
    same = count == 0 or first[-count:] == second[-count:]
    return count if same else None


def agreement(entry: Folders, image: Folders) -> int | None:
    """Count the folders that an entry and an image share; None if they contradict.

    The image may lie in a folder such as `images` of which the entry does not know.
    """
    found = shared_folders(entry, image)
    if found is None and not any(folder.lower() in IMAGE_FOLDERS for folder in entry):
        kept = tuple(folder for folder in image if folder.lower() not in IMAGE_FOLDERS)
        found = shared_folders(entry, kept) or None  # something must speak for it
    return found


def common_folders(names: Iterable[ImageName]) -> Folders:
    """Return the folders with which all names begin; empty for no names."""
    folders = {name.folders for name in names}
    if not folders:
        return ()
    first, last = min(folders), max(folders)
    return first[: _count_common(first, last)]


def places_contradict(annotation: Path, image: Path) -> bool:
    """Whether the place of an annotation file shows that it is not about an image.

    `labels/train/1.txt` is not about `images/val/1.jpg`, and `train/labels/1.txt` not about
    `valid/images/1.jpg`.

    Args:
        annotation: The file's absolute path.
        image: The image's absolute path.
    """
    ours, theirs = annotation.parent.parts, image.parent.parts
    count = _count_common(ours, theirs)
    ours, theirs = (tuple(map(str.lower, parts[count:])) for parts in (ours, theirs))
    below = _below(ours, LABEL_FOLDERS), _below(theirs, IMAGE_FOLDERS)
    if None not in below and shared_folders(*below) is None:  # type: ignore[arg-type]
        return True
    splits = [[SPLITS[part] for part in parts if part in SPLITS] for parts in (ours, theirs)]
    return all(splits) and splits[0][-1] != splits[1][-1]


def _count_common(first: Folders, second: Folders) -> int:
    """Count the folders with which both begin."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _below(folders: Folders, kinds: frozenset[str]) -> Folders | None:
    """The folders below the last one of these names; None if there is none."""
    places = [place for place, folder in enumerate(folders) if folder in kinds]
    return folders[places[-1] + 1 :] if places else None
