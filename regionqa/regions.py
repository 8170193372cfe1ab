"""Boxes and regions: parsing, conventions, validation, clipping.

A `Box` is float xyxy in pixels of the image as displayed, half-open. A box in another convention is
a `WrittenBox`, which becomes a `Region` once the size of its image is known.
"""

import math
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Real  # also numpy's
from typing import Self

import msgspec

from regionqa.errors import BoxError
from regionqa.masks import Mask, WrittenMask


class BoxFormat(StrEnum):
    """Meaning of a written box's four numbers."""

    xyxy = "xyxy"
    xywh = "xywh"
    cxcywh = "cxcywh"


class BoxUnits(StrEnum):
    """Unit of a written box: a pixel, or a fraction or thousandth of the image's size."""

    pixel = "pixel"
    fraction = "fraction"
    permille = "permille"


@dataclass(frozen=True)
class Box:
    """A box in pixels of the image as displayed: left, top, right, bottom; half-open."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        """Raise BoxError for a NaN, an infinity, swapped corners or an empty box."""
        numbers = (self.x0, self.y0, self.x1, self.y1)
        if not all(math.isfinite(number) for number in numbers):
            raise BoxError(f"box {self}: every coordinate must be a finite number")
        if self.x1 < self.x0 or self.y1 < self.y0:
            raise BoxError(
                f"box {self}: right must exceed left and bottom exceed top; "
                "swap the corners, or use --box-format xywh if these are left, top, width, height"
            )
        if self.x1 == self.x0 or self.y1 == self.y0:
            raise BoxError(f"box {self}: has no area; give a width and a height above zero")

    def __str__(self) -> str:
        return ",".join(f"{number:g}" for number in self.xyxy)

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """The four coordinates."""
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def width(self) -> float:
        """Width in pixels."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Height in pixels."""
        return self.y1 - self.y0

    def inside(self, width: int, height: int) -> bool:
        """Return whether the box lies entirely inside an image of this size."""
        return self.x0 >= 0 and self.y0 >= 0 and self.x1 <= width and self.y1 <= height

    def clipped(self, width: int, height: int) -> "Box":
        """Return the part of the box inside an image of this size; BoxError if it is empty."""
        x0, y0 = max(self.x0, 0.0), max(self.y0, 0.0)
        x1, y1 = min(self.x1, float(width)), min(self.y1, float(height))
        if x1 <= x0 or y1 <= y0:
            raise BoxError(
                f"box {self}: lies outside the image, which is {width} x {height} pixels; "
                "check --box-format and --box-units"
            )
        return Box(x0, y0, x1, y1)


@dataclass(frozen=True)
class Region:
    """A box with an optional label and mask."""

    box: Box
    label: str | None = None
    """Label in the file that the box is from, or what a detector found in it."""
    score: float | None = None
    """Score of the detector, from 0 to 1; None: the box is not a detector's."""
    mask: Mask | None = None
    """The region's pixels, of an image of its image's size; None: only the box is known."""


class WrittenBox(msgspec.Struct, frozen=True, gc=False):  # large files have a million
    """A box as written by a user or in a file, before the size of its image is known."""

    values: tuple[float, float, float, float]
    """The four numbers."""
    format: BoxFormat = BoxFormat.xyxy
    units: BoxUnits = BoxUnits.pixel
    label: str | None = None
    """Label in the file that the box is from."""
    is_crowd: bool = False
    """Whether the file marks the box as one around a group of objects, as COCO does."""
    mask: WrittenMask | None = None
    """The region's pixels; None: only the box is given."""

    @classmethod
    def of(cls, region: Region) -> Self:
        """Write a region as xyxy in pixels."""
        return cls(region.box.xyxy, label=region.label, mask=region.mask)

    def resolve(self, width: int, height: int) -> Region:
        """Convert to pixels of an image of this size, without clipping.

        Raises:
            BoxError: The box is malformed, its numbers are fractions where pixels are expected, or
                its mask is of an image of another size.
        """
        x, y, third, fourth = self.values
        text = ",".join(f"{value:g}" for value in self.values)
        if not all(math.isfinite(value) for value in self.values):
            raise BoxError(f"box {text}: every coordinate must be a finite number")
        if self.format is not BoxFormat.xyxy and (third <= 0 or fourth <= 0):
            raise BoxError(f"box {text}: width and height must be above zero ({self.format})")
        corners = {
            BoxFormat.xyxy: (x, y, third, fourth),
            BoxFormat.xywh: (x, y, x + third, y + fourth),
            BoxFormat.cxcywh: (x - third / 2, y - fourth / 2, x + third / 2, y + fourth / 2),
        }[self.format]
        if self.units is BoxUnits.pixel:
            self._refuse_fractions(corners, text, width, height)
            scale_x = scale_y = 1.0
        else:
            whole = 1.0 if self.units is BoxUnits.fraction else 1000.0
            scale_x, scale_y = width / whole, height / whole
        x0, y0, x1, y1 = corners
        box = Box(x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
        mask = None if self.mask is None else self.mask.resolve(width, height)
        return Region(box, self.label, mask=mask)

    def _refuse_fractions(
        self, corners: tuple[float, ...], text: str, width: int, height: int
    ) -> None:
        fractional = all(0 <= value <= 1 for value in corners)
        if fractional and any(value != int(value) for value in corners) and min(width, height) > 1:
            raise BoxError(
                f"box {text}: is smaller than one pixel; if these are fractions of the image, "
                "use --box-units fraction"
            )


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Parse four numbers separated by commas, semicolons or spaces, such as `10,20,200,300`."""
    parts = [part for part in re.split(r"[,;\s]+", text.strip().strip("[]()")) if part]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        raise BoxError(f"box {text!r}: is not four numbers, like 10,20,200,300") from None
    return four_numbers(numbers, repr(text))


def four_numbers(values: object, text: str) -> tuple[float, float, float, float]:
    """Return the values as a box's four numbers; BoxError, quoting `text`, if they are not that."""
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 4
        or not all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
    ):
        found = f"{len(values)} values" if isinstance(values, (list, tuple)) else "something else"
        raise BoxError(f"box {text}: four numbers are expected, {found} found, like 10,20,200,300")
    try:
        x, y, third, fourth = (float(value) for value in values)
    except OverflowError:
        raise BoxError(f"box {text}: a coordinate is too large; pixels are expected") from None
    if not all(math.isfinite(value) for value in (x, y, third, fourth)):
        raise BoxError(f"box {text}: every coordinate must be a finite number")
    return (x, y, third, fourth)


def clip_all(
    regions: tuple[Region, ...], width: int, height: int
) -> tuple[tuple[Region, ...], list[str]]:
    """Return the regions clipped to the image, and a warning for each that reached outside it."""
    clipped, warnings = [], []
    for region in regions:
        box = region.box
        if not box.inside(width, height):
            box = box.clipped(width, height)
            warnings.append(
                f"box {region.box} reaches outside {width} x {height}: clipped to {box}"
            )
        clipped.append(replace(region, box=box))
    return tuple(clipped), warnings
