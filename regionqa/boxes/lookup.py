"""The entry of an image among the entries of a box file.

`matching` says which names agree; what is here chooses among several, refuses where the choice
would be a guess, and explains why nothing was found.
"""

import filecmp
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.matching import (
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    Folders,
    ImageName,
    NameIndex,
    Root,
    agreement,
    common_folders,
    keys_of_entry,
    places_contradict,
)
from regionqa.errors import BoxError
from regionqa.regions import WrittenBox

_COCO_NAME = re.compile(r"(?:COCO_[A-Za-z0-9]+_)?0*([0-9]+)")
"""Stems like `000000000139` and `COCO_val2014_000000000139`, for the number 139."""
LISTED = 3
"""Number of names in a message."""


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """An entry under one of its names."""

    entry: BoxEntry
    dropped: int
    """Number of leading folders that belong to the machine or server that wrote the file."""


@dataclass(frozen=True, slots=True, order=True)
class _Fit:
    """How well an entry's folders fit those of an image; more is better."""

    certain: bool
    """Whether the image lies in all folders that the entry names."""
    shared: int
    """Number of folders in common."""


class EntryLookup:
    """Looks up entries by image."""

    def __init__(self, source: Path, entries: Sequence[BoxEntry]) -> None:
        """Index the entries of a file or folder; those with equal names are merged before."""
        self._source = source
        self._entries = entries

    def find(self, image: str) -> BoxEntry | None:
        """Return the entry of an image, or None.

        Raises:
            BoxError: If several entries fit equally well.
        """
        if self._entries and self._entries[0].name is None:
            return self._entries[0]
        same = self._by_text.get(image, [])
        if len(same) == 1 and same[0].own_stem is None:
            return same[0]
        found = self._fitting(self._names, image)
        by_stem = self._fitting(self._stems, image)
        if not found:
            return self._only(by_stem, image) or self._numbers.get(_number_of(image))
        own = {id(entry) for entry in by_stem}
        both = [entry for entry in found if id(entry) in own]
        # a file called like the image contradicts one that merely names the image
        rivals = by_stem if any(entry.own_stem is not None for entry in found) else []
        return self._only(both or [*found, *rivals], image)

    def why_not(self, image: str) -> str:
        """Say why `find` returned None, with the names that come closest."""
        near = self._same_file(image)
        if near:
            return (
                f"{image}: {self._source} has no boxes for this image, but for "
                f"{listed(near)} in another folder; if that is this image, write its folder into "
                "the file, or run the command in the image's folder"
            )
        names = [entry.name for entry in self._entries if entry.name is not None]
        what = f"; it has {listed(names)}" if names else ""
        return f"{image}: {self._source} has no boxes for this image{what}"

    def own_image(self, entry: BoxEntry) -> Path | None:
        """Return the image at the very place that an entry names, relative to its file."""
        if entry.name is None or entry.by_stem:
            return None
        path = self._top / entry.name.replace("\\", "/")
        return path if is_file(path) else None

    # -- indices -----------------------------------------------------------------------------------

    @cached_property
    def _by_text(self) -> dict[str, list[BoxEntry]]:
        found: dict[str, list[BoxEntry]] = {}
        for entry in self._entries:
            found.setdefault(entry.name or "", []).append(entry)
        return found

    @cached_property
    def _names(self) -> NameIndex[_Named]:
        parsed = [(ImageName.parse(each.name or ""), each) for each in self._entries]
        roots = {
            root: len(common_folders(name for name, _ in parsed if name.root is root))
            for root in (Root.machine, Root.server)
        }
        return NameIndex(
            (
                (_placed(name, entry), _Named(entry, _dropped(name, roots.get(name.root, 0))))
                for name, entry in parsed
            ),
            keys_of_entry,
        )

    @cached_property
    def _stems(self) -> NameIndex[_Named]:
        """Entries of files about one image each, by the names of these files."""
        return NameIndex(
            (
                (_placed(ImageName.parse(entry.own_stem), entry), _Named(entry, 0))
                for entry in self._entries
                if entry.own_stem is not None
            ),
            lambda name: ((True, name.file),),
        )

    @cached_property
    def _numbers(self) -> dict[str | None, BoxEntry]:
        """Entries of images that the file calls by numbers alone."""
        return {entry.name: entry for entry in self._entries if entry.numbered}

    @cached_property
    def _top(self) -> Path:
        """The absolute folder that the entries' names are relative to."""
        path = self._source.absolute()
        return path if path.is_dir() else path.parent

    # -- choosing ----------------------------------------------------------------------------------

    def _fitting(self, index: NameIndex[_Named], image: str) -> list[BoxEntry]:
        """Return the entries that fit best, in file order; empty if none fits."""
        name = ImageName.parse(image)
        path = Path(image).absolute()
        for level, leveled, candidates in index.levels(name):
            location = level(ImageName.parse(str(path))).folders
            fits = [
                (self._fit(entry_name, named, leveled, location, path), named.entry)
                if level is not ImageName.unprefixed or not self._is_beside(named.entry, path)
                else (None, named.entry)
                for entry_name, named in candidates
            ]
            best = max((fit for fit, _ in fits if fit is not None), default=None)
            if best is not None:
                return [entry for fit, entry in fits if fit == best]
        return []

    def _fit(
        self, name: ImageName, named: _Named, image: ImageName, location: Folders, path: Path
    ) -> _Fit | None:
        """Say how well an entry fits an image; None if it is not about it.

        Args:
            name: The entry's name.
            named: The entry.
            image: The image's name, as the user gave it.
            location: The folders that the image really lies in.
            path: The image's absolute path.
        """
        stem = named.entry.own_stem
        if stem is not None and places_contradict(self._top / stem, path):
            return None
        own = name.folders[named.dropped :]
        certain = agreement(own, location) == len(own)
        if certain and not named.dropped:
            return _Fit(certain, len(own))
        shared = [agreement(folders, image.folders) for folders in (own, name.folders)]
        count = max((each for each in shared if each is not None), default=None)
        if count is None or self._is_another(name, path):
            return None
        return _Fit(certain, count)

    def _is_beside(self, entry: BoxEntry, path: Path) -> bool:
        """Whether the very file that an entry names lies beside an image of another name."""
        name = ImageName.parse(entry.name or "").file
        return any(is_file(folder / name) for folder in (path.parent, self._top))

    def _is_another(self, name: ImageName, path: Path) -> bool:
        """Whether the image that a name means is on this machine, and is not this one."""
        if not name.folders:
            return False
        near = Path(name.folders[-1], name.file)
        top = Path("/") if name.root is Root.machine else self._top
        places = (top / name.text, *(folder / near for folder in path.parents))
        return any(is_file(place) and not is_same_file(place, path) for place in places)

    def _only(self, entries: Sequence[BoxEntry], image: str) -> BoxEntry | None:
        """Return the entry if there is one, or all say the same."""
        distinct = list({id(entry): entry for entry in entries}.values())
        if not distinct:
            return None
        first = distinct[0]
        if all(_says_the_same(entry, first) for entry in distinct):
            return first
        names = [_told(entry) for entry in distinct]
        advice = (
            "name the image, in the file and in the command, with its folder"
            if len({ImageName.parse(name).file for name in names}) == 1
            else "keep one of them, or correct the names of the images in the others"
        )
        raise BoxError(
            f"{image}: {len(names)} entries of {self._source} could mean it ({listed(names)}); "
            f"{advice}"
        )

    def _same_file(self, image: str) -> list[str]:
        """Return the names with the image's file name, whose folders do not fit."""
        for _, _, candidates in self._names.levels(ImageName.parse(image)):
            return [_told(named.entry) for _, named in candidates]
        return []


def _placed(name: ImageName, entry: BoxEntry) -> ImageName:
    """Leave out folders such as `labels` where a name begins with an annotation file's folder."""
    if entry.own_stem is not None:
        return name.without(LABEL_FOLDERS)
    return name


def _dropped(name: ImageName, root: int) -> int:
    """Count the leading folders that say nothing about an image on this machine.

    root: number of folders that all names of this kind begin with.
    """
    if name.root is Root.machine and root == len(name.folders) and root:
        # the image's own folder is kept, which may tell it from others
        return root - (name.folders[-1].lower() not in IMAGE_FOLDERS)
    return root


def _number_of(image: str) -> str:
    """Return the number in COCO's name of an image; empty for any other name."""
    found = _COCO_NAME.fullmatch(ImageName.parse(image).stem)
    return found[1] if found else ""


def _says_the_same(first: BoxEntry, second: BoxEntry) -> bool:
    return (first.boxes, first.defect, first.size) == (second.boxes, second.defect, second.size)


def _told(entry: BoxEntry) -> str:
    """The entry's name, behind that of its file where this is called otherwise."""
    name, stem = entry.name or "", entry.own_stem
    if stem is None or stem == ImageName.parse(name).stem or stem == name.rpartition(".")[0]:
        return name
    return f"{stem}: {name}"


def listed(names: Sequence[str]) -> str:
    """Join the first names, and count the others."""
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def is_file(path: Path) -> bool:
    """Whether there is a file; False also for a name that is not possible."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name too long
        return False


def is_same_file(first: object, second: object) -> bool:
    """Whether two paths are of one file, or of files with the same bytes."""
    if not (isinstance(first, Path) and isinstance(second, Path)):
        return first is second
    try:
        return first.samefile(second) or filecmp.cmp(first, second, shallow=False)
    except (OSError, ValueError):  # one does not exist, or its name is not possible
        return False


# -- entries of equal names ------------------------------------------------------------------------


def merge_entries(entries: Iterable[BoxEntry]) -> tuple[tuple[BoxEntry, ...], tuple[str, ...]]:
    """Merge entries of one name, as of an image that a file lists twice; equal boxes count once.

    Returns:
        The entries, and the names of those that had different boxes.
    """
    merged: dict[tuple[str | None, str | None], BoxEntry] = {}
    differed: dict[str, None] = {}
    for entry in entries:
        key = (entry.name, entry.own_stem)
        first = merged.get(key)
        if first is None or entry.name is None:
            merged[key] = entry
        elif not _says_the_same(first, entry):
            merged[key] = _merged(first, entry)
            if first.boxes and entry.boxes:
                differed[entry.name] = None
    return tuple(merged.values()), tuple(differed)


def _merged(first: BoxEntry, second: BoxEntry) -> BoxEntry:
    defect = first.defect or second.defect
    if first.size and second.size and first.size != second.size:
        sizes = " and ".join(f"{width} x {height}" for width, height in (first.size, second.size))
        defect = defect or f"{first.name}: is listed with two sizes, {sizes}; correct one of them"
    boxes: tuple[WrittenBox, ...] = () if defect else (*first.boxes, *second.boxes)
    return replace(
        first, boxes=tuple(dict.fromkeys(boxes)), defect=defect, size=first.size or second.size
    )
