"""Sizes of images as box files state them, compared with the images as displayed.

Boxes in pixels are wrong on an image of another size, and all boxes are on one that was turned or
cropped since.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from regionqa.boxes.entries import BoxEntry, Size
from regionqa.errors import BoxError
from regionqa.regions import BoxUnits, WrittenBox


class SizeChange(Enum):
    """How an image differs from the size that was stated for it."""

    none = "none"
    scaled = "scaled"
    """Width and height changed by one factor."""
    turned = "turned"
    """Width and height are exchanged."""
    other = "other"


def size_change(stated: Size, actual: Size) -> SizeChange:
    """Compare the stated size of an image with its actual one; both width and height."""
    if stated == actual:
        return SizeChange.none
    if _same_shape(stated, actual):
        return SizeChange.scaled
    if _same_shape((stated[1], stated[0]), actual):
        return SizeChange.turned
    return SizeChange.other


def _same_shape(first: Size, second: Size) -> bool:
    """Whether one is the other scaled by one factor and rounded to whole pixels."""
    (w, h), (width, height) = sorted((first, second), key=lambda size: size[0] * size[1])
    return abs(height * w / width - h) < 1 or abs(width * h / height - w) < 1


def scaled_box(box: WrittenBox, stated: Size, actual: Size) -> WrittenBox:
    """Scale a box in pixels from the stated size of its image to the actual one."""
    if box.units is not BoxUnits.pixel:
        return box
    x, y = actual[0] / stated[0], actual[1] / stated[1]
    first, second, third, fourth = box.values
    return msgspec.structs.replace(box, values=(first * x, second * y, third * x, fourth * y))


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


@dataclass
class SizeCheck:
    """Compares the images of a box file with the sizes it states, and counts those that differ."""

    source: Path
    """The file or folder, for messages."""
    scale: bool = False
    """Whether boxes are scaled to the image, as `--scale-boxes` asks."""
    warn: Callable[[str], None] | None = None
    """Called with a line for the first image that differs, and by `finish` with their number."""
    advice: str = "--scale-boxes scales them to the image"
    """What to do where only the scale differs."""
    first: str = field(default="", init=False)
    """What is said of the first image that differs."""
    differing: set[str] = field(default_factory=set, init=False)
    """The images that differ."""

    def fit(self, entry: BoxEntry, image: str, actual: Size) -> tuple[WrittenBox, ...]:
        """Return an entry's boxes for an image of this size.

        Args:
            entry: What the file says about the image.
            image: The image's name, for messages.
            actual: Its width and height in pixels, as displayed.

        Raises:
            BoxError: A box is malformed, or was to be scaled and cannot be.
        """
        boxes = entry.checked_boxes()
        in_pixels = any(box.units is BoxUnits.pixel for box in boxes)
        if self.scale and in_pixels:
            return self._scaled(boxes, entry.size, image, actual)
        change = SizeChange.none if entry.size is None else size_change(entry.size, actual)
        harmless = not in_pixels and change is SizeChange.scaled
        if boxes and entry.size and change is not SizeChange.none and not harmless:
            self._count(entry.size, image, actual, change)
        return boxes

    def finish(self) -> None:
        """Tell how many images differ, if more than the first do."""
        if len(self.differing) > 1 and self.warn:
            self.warn(
                f"{self.source}: {len(self.differing):,} images in all differ in size from what "
                "it states"
            )

    @property
    def summary(self) -> tuple[str, ...]:
        """At most one line, about all images that differ."""
        count = len(self.differing)
        if count < 2:
            return (self.first,) if count else ()
        return (f"{self.first} ({count:,} such images)",)

    def _count(self, stated: Size, image: str, actual: Size, change: SizeChange) -> None:
        if not self.differing:
            self.first = (
                f"{self.source}: states {_text(stated)} for {image}, which is {_text(actual)}: "
                f"the sizes differ, {_CONSEQUENCES[change]}; {self._advice(change)}"
            )
            if self.warn:
                self.warn(self.first)
        self.differing.add(image)

    def _advice(self, change: SizeChange) -> str:
        if change is SizeChange.scaled:
            return self.advice
        return "give the image as it was when they were drawn"

    def _scaled(
        self, boxes: tuple[WrittenBox, ...], stated: Size | None, image: str, actual: Size
    ) -> tuple[WrittenBox, ...]:
        if stated is None:
            raise BoxError(
                f"{image}: {self.source} states no size for it, so its boxes cannot be scaled; "
                "leave --scale-boxes out"
            )
        if size_change(stated, actual) in (SizeChange.turned, SizeChange.other):
            raise BoxError(
                f"{image}: is {_text(actual)}, and {self.source} states {_text(stated)}, which "
                "has another aspect ratio, so its boxes cannot be scaled; give the image that "
                "they were drawn on"
            )
        return tuple(scaled_box(box, stated, actual) for box in boxes)


_CONSEQUENCES = {
    SizeChange.scaled: "so boxes may be misplaced",
    SizeChange.turned: (
        "width and height are exchanged, as by an EXIF rotation, so boxes may be misplaced"
    ),
    SizeChange.other: "and so do the aspect ratios, so boxes may be misplaced",
}
