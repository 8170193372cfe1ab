"""The image file of an entry: the lookup of an entry by image, the other way round."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.lookup import EntryLookup, listed
from regionqa.boxes.matching import IMAGE_SUFFIXES, ImageName, NameIndex, keys_of_image
from regionqa.errors import BoxError, ImageError


class ImageFolders:
    """Finds the images that a file names, in folders and their subfolders."""

    def __init__(self, source: Path, folders: Sequence[Path], *, deep: bool = False) -> None:
        """Create a lookup.

        Args:
            source: The file that names the images.
            folders: Where names are looked up, the first ones first.
            deep: Whether images may lie in subfolders that their names do not mention, as those of
                box files do.
        """
        self._source = source
        self._folders = tuple(folders)
        self._deep = deep

    def find(self, entry: BoxEntry) -> Path:
        """Return the path of an entry's image.

        A file at the very place that the entry names is taken; else the one file in the folders
        or below them that finds this entry when it is asked about.

        Raises:
            ImageError: If there is none, or there are several.
        """
        name = entry.name or ""
        parsed = ImageName.parse(name)
        for spelling in dict.fromkeys((name, parsed.text, parsed.loosened().text)):
            for folder in self._folders:
                if exists(folder / spelling):
                    return folder / spelling
        found = self._below(entry)
        if len(found) == 1:
            return found[0]
        if found:
            raise ImageError(
                f"{name}: {len(found)} images could be it ({listed(list(map(str, found)))}); "
                "name it with its folder, or give the folder of the images with --images"
            )
        first = self._folders[0] / name
        raise ImageError(f"{first}: no such file; give the folder of the images with --images")

    def _below(self, entry: BoxEntry) -> list[Path]:
        lookup = EntryLookup(self._source, (entry,))
        names = [ImageName.parse(each) for each in (entry.name, entry.own_stem) if each]
        found: dict[Path, None] = {}
        for name in names:
            for _, _, candidates in self._files.levels(name):
                for _, (depth, path) in candidates:
                    if (self._deep or depth <= len(name.folders)) and _finds(lookup, path):
                        found[path] = None
                if found:
                    return list(found)
        return []

    @cached_property
    def _files(self) -> NameIndex[tuple[int, Path]]:
        """Images by name, with the number of folders between the given one and theirs."""
        depths: dict[Path, int] = {}
        for folder in self._folders:
            for path in _images_in(folder):
                depths.setdefault(path, len(path.relative_to(folder).parts) - 1)
        return NameIndex(
            ((ImageName.parse(str(path)), (depth, path)) for path, depth in depths.items()),
            keys_of_image,
        )


def exists(path: Path) -> bool:
    """Whether there is a file or folder; False also for a name that is not possible."""
    try:
        return path.exists()
    except OSError:  # such as a name too long
        return False


def _finds(lookup: EntryLookup, image: Path) -> bool:
    try:
        return lookup.find(str(image)) is not None
    except BoxError:
        return False


def _images_in(top: Path) -> Iterator[Path]:
    """Images in a folder and its subfolders, in sorted order, without hidden ones."""
    for parent, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)
