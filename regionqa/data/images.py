"""Training regions on their images: found by name, measured by header, placed in pixels.

A data file names images thousands of times; each is looked for and opened once, and never
decoded. It does not know what is said about the regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.errors import BoxError, ImageError
from regionqa.images.reading import open_image
from regionqa.regions import BoxFormat, BoxUnits, Region, WrittenBox, clip_all

ADVICE = {
    (BoxFormat.xyxy, BoxUnits.pixel): "write left, top, right, bottom in pixels of the image",
    (BoxFormat.xyxy, BoxUnits.permille): "write left, top, right, bottom in per mille",
    (BoxFormat.xywh, BoxUnits.pixel): "COCO means left, top, width, height in pixels",
}
"""What to do about a box in each convention of training data; its files know no --box-format."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image of which only the size is known."""

    path: Path
    """Where it lies."""
    width: int
    """In pixels, as displayed."""
    height: int
    """In pixels, as displayed."""


class ImageFinder:
    """The images that a file of training data names."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """folders: where names are looked up; the first that has one counts."""
        self._folders = tuple(folders)
        self._found: dict[str, ImageFile | str] = {}

    def find(self, name: str) -> ImageFile:
        """The image of this name; ImageError where it is missing or broken."""
        if name not in self._found:
            self._found[name] = self._open(name)
        found = self._found[name]
        if isinstance(found, str):
            raise ImageError(found)
        return found

    def _open(self, name: str) -> ImageFile | str:
        paths = [folder / name for folder in self._folders]
        path = next(filter(_exists, paths), None)
        if path is None:
            return f"{paths[0]}: no such file; say where the images lie with --images"
        try:
            image = open_image(path)
        except ImageError as error:
            return str(error)
        return ImageFile(path, image.width, image.height)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name too long
        return False


def place_region(written: WrittenBox, image: ImageFile) -> tuple[Region, bool]:
    """The region inside its image, and whether it was cut off at the edge.

    Raises BoxError for a box without area, outside the image, or within its first pixel: such
    a one was meant as fractions.
    """
    size = (image.width, image.height)
    try:
        (region,), cut = clip_all((written.resolve(*size),), *size)
        if region.box.inside(1, 1):  # it may have come there by per mille, or by being cut off
            WrittenBox.of(region).resolve(*size)
    except BoxError as error:
        what, _, advice = str(error).partition("; ")
        if "--box" not in advice:
            raise
        raise BoxError(f"{what}; {ADVICE[written.format, written.units]}") from None
    return region, bool(cut)
