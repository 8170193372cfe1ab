"""Images of training data: found by name, and their sizes read from the headers.

A data file names the same images thousands of times; each is looked up and opened once, and its
pixels are not decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.images import ImageFolders
from regionqa.errors import BoxError, ImageError
from regionqa.images.reading import open_image
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox, clip_all

ADVICE = {
    (BoxFormat.xyxy, BoxUnits.pixel): "write left, top, right, bottom in pixels of the image",
    (BoxFormat.xyxy, BoxUnits.permille): "write left, top, right, bottom in per mille",
    (BoxFormat.xywh, BoxUnits.pixel): "COCO means left, top, width, height in pixels",
}
"""Advice about a bad box by its convention, instead of --box-format, which training lacks."""

KEPT = 200_000
"""Images that a lookup remembers; a dataset may have any number."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file and its size."""

    path: Path
    width: int
    """In pixels, as displayed."""
    height: int
    """In pixels, as displayed."""


class ImageFinder:
    """Looks up the images that a file of training data names."""

    def __init__(self, source: Path, folders: Sequence[Path], *, deep: bool = False) -> None:
        """Create a lookup.

        Args:
            source: The file that names the images.
            folders: Where names are looked up; the first folder that has the file is taken.
            deep: Whether images may lie in subfolders that their names do not mention.
        """
        self._folders = ImageFolders(source, folders, deep=deep)
        self._found: dict[tuple[str | None, str | None], ImageFile | str] = {}
        self.missing = 0
        """Number of names without an image."""
        self.broken = 0
        """Number of files that are no images."""

    def find(self, name: str | BoxEntry) -> ImageFile:
        """Return the image of this name, or of an entry; ImageError if missing or broken."""
        entry = name if isinstance(name, BoxEntry) else BoxEntry(name)
        key = (entry.name, entry.own_stem)
        if key not in self._found:
            if len(self._found) >= KEPT:
                del self._found[next(iter(self._found))]
            self._found[key] = self._open(entry)
        found = self._found[key]
        if isinstance(found, str):
            raise ImageError(found)
        return found

    def _open(self, entry: BoxEntry) -> ImageFile | str:
        try:
            path = self._folders.find(entry)
        except ImageError as error:
            self.missing += 1
            return str(error)
        try:
            image = open_image(path)
        except ImageError as error:
            self.broken += 1
            return str(error)
        return ImageFile(path, image.width, image.height)


def place_region(written: WrittenBox, image: ImageFile) -> tuple[Region, bool]:
    """Resolve a region and clip it to its image.

    Returns:
        The region, and whether it was clipped.

    Raises:
        BoxError: If the box has no area, lies outside the image, or lies within its first pixel,
            which means that it was written in fractions.
    """
    size = (image.width, image.height)
    try:
        (region,), cut = clip_all((written.resolve(*size),), *size)
        if region.box.inside(1, 1):  # also after conversion from per mille, or clipping
            WrittenBox.of(region).resolve(*size)
    except BoxError as error:
        what, _, advice = str(error).partition("; ")
        if "--box" not in advice or (written.format, written.units) not in ADVICE:
            raise
        raise BoxError(f"{what}; {ADVICE[written.format, written.units]}") from None
    return region, bool(cut)
