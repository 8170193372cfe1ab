"""Fitting an image to what a model looks at, and carrying boxes there and back.

What a model wants of its images stands in its card as `Preprocessing`. This module does not know
where images come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionqa.errors import BundleError
from regionqa.images.reading import as_rgb
from regionqa.regions import Box


class Resample(StrEnum):
    """How pixels are interpolated.

    bicubic and bilinear are Pillow's, which smooth where they shrink, and round to whole levels.
    bicubic_bilinear keeps the aspect ratio bicubically until the shorter side fits, and then takes
    the longer one there between the two nearest pixels, without smoothing or rounding: what CLIP's
    processor and torch's `interpolate` do one after the other (GPT4RoI's demo).
    points takes every pixel from the four nearest, whatever the scale, in the whole numbers of
    OpenCV's `resize` (GPT4RoI's training on boxes of COCO and Visual Genome).
    """

    bicubic = "bicubic"
    bilinear = "bilinear"
    bicubic_bilinear = "bicubic-bilinear"
    points = "points"

    @property
    def pillow(self) -> Image.Resampling | None:
        """Pillow's own name of it; None where it is not Pillow's."""
        return {
            Resample.bicubic: Image.Resampling.BICUBIC,
            Resample.bilinear: Image.Resampling.BILINEAR,
        }.get(self)


LONGEST = 16
"""Between the two steps no side is more than this many times as long as the shorter; a line of
pixels could fill the memory."""
STEPS = 2048
"""Weights of OpenCV's bilinear interpolation are so many parts of a whole."""


def resize(image: Image.Image, size: tuple[int, int], resample: Resample) -> NDArray[np.float32]:
    """The levels (height, width, 3) in [0, 255] of an RGB image resized to (width, height)."""
    if resample is Resample.bicubic_bilinear:
        return _bicubic_bilinear(image, size)
    if resample is Resample.points:
        return _points(np.asarray(image), size)
    return np.asarray(image.resize(size, resample.pillow), np.float32)


def _bicubic_bilinear(image: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    short, narrow = min(size), min(image.size)
    # rounded down, as CLIP's processor does
    across, down = (min(int(short * side / narrow), LONGEST * short) for side in image.size)
    values = np.asarray(image.resize((across, down), Image.Resampling.BICUBIC), np.float32)
    for axis, length in ((0, size[1]), (1, size[0])):
        values = _between_neighbours(values, axis, length)
    return values


def _between_neighbours(values: NDArray[np.float32], axis: int, length: int) -> NDArray[np.float32]:
    """One axis resized linearly; pixels lie at the middles of their cells, borders are repeated."""
    given = values.shape[axis]
    if given == length:
        return values
    half = np.float32(0.5)
    # in single precision, as torch does
    at = (np.arange(length, dtype=np.float32) + half) * np.float32(given / length) - half
    at = at.clip(0, given - 1)
    first = at.astype(np.int64)
    share = (at - first.astype(np.float32)).reshape([-1 if i == axis else 1 for i in range(3)])
    near = values.take(first, axis)
    far = values.take(np.minimum(first + 1, given - 1), axis)
    mixed: NDArray[np.float32] = near * (1 - share) + far * share
    return mixed


def _points(levels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """OpenCV's INTER_LINEAR for 8 bits: (height, width, 3) whole levels, as floats.

    Weights are rounded to 1 / 2048, rows are mixed in whole numbers that lose four bits and then
    sixteen, and the sum is rounded. Across, a pixel beyond the border takes the border alone; down,
    it takes the border twice, with its two weights.
    """
    width, height = size
    left, right, near, far = _neighbours(levels.shape[1], width)
    edge = (left < 0) | (left >= levels.shape[1] - 1)
    near, far = np.where(edge, STEPS, near), np.where(edge, 0, far)
    left, right = (index.clip(0, levels.shape[1] - 1) for index in (left, right))
    whole = levels.astype(np.int64)
    across = (  # (given height, width, 3)
        whole[:, left] * near[:, np.newaxis] + whole[:, right] * far[:, np.newaxis]
    ) >> 4
    top, bottom, near, far = _neighbours(levels.shape[0], height)
    top, bottom = (index.clip(0, levels.shape[0] - 1) for index in (top, bottom))
    near, far = (weights[:, np.newaxis, np.newaxis] for weights in (near, far))
    sums = (across[top] * near >> 16) + (across[bottom] * far >> 16)  # (height, width, 3)
    return ((sums + 2) >> 2).clip(0, 255).astype(np.float32)


def _neighbours(given: int, wanted: int) -> tuple[NDArray[np.int64], ...]:
    """Of every wanted pixel: its two neighbours, which may lie outside, and their weights."""
    at = ((np.arange(wanted) + 0.5) * (given / wanted) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first.astype(np.float32)
    near, far = (np.rint(part * np.float32(STEPS)).astype(np.int64) for part in (1 - share, share))
    return first, first + 1, near, far


class Fit(StrEnum):
    """How an image becomes what the model looks at: a square, or with shortest a rectangle.

    pad keeps the aspect ratio, with the image at the top left: then one factor takes pixels to
    the square and nothing is added to them.
    crop keeps it too: the shorter side fills the square, and of the longer one the middle is seen.
    shortest keeps it without a square: the shorter side becomes `size`, unless the longer one
    would exceed `longest`.
    """

    squash = "squash"
    pad = "pad"
    crop = "crop"
    shortest = "shortest"


@dataclass(frozen=True)
class Placement:
    """How an image was fitted to the model's canvas, and both directions of the change.

    The canvas is what the model looks at: the square, or with `Fit.shortest` the resized image.
    """

    width: int
    """The image's, in pixels as displayed."""
    height: int
    """The image's, in pixels as displayed."""
    size: int
    """The square's side in pixels, or with shortest the shorter side's."""
    fit: Fit
    longest: int | None = None
    """With shortest, what the longer side may not exceed; None: anything."""

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height in pixels that the whole image is resized to."""
        short, long = sorted((self.width, self.height))
        if self.fit is Fit.squash:
            return self.size, self.size
        if self.fit is Fit.pad:
            scale = self.size / long
            return max(1, round(self.width * scale)), max(1, round(self.height * scale))
        if self.fit is Fit.crop:  # rounded down, as CLIP's processor does
            sides = (self.size, int(self.size * long / short))
        else:
            sides = shortest_sides(short, long, self.size, self.longest)
        return sides if self.width <= self.height else (sides[1], sides[0])

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height in pixels of what the model looks at."""
        return self.resized if self.fit is Fit.shortest else (self.size, self.size)

    @property
    def offset(self) -> tuple[int, int]:
        """x and y of the canvas' top left corner in the resized image, in pixels."""
        if self.fit is not Fit.crop:
            return 0, 0
        across, down = self.resized
        return (across - self.size) // 2, (down - self.size) // 2

    def to_model(self, box: Box) -> tuple[float, float, float, float]:
        """The box as xyxy in [0, 1] of the canvas, where it is inside the image.

        With crop it is cut to what the model sees. A box of which nothing is seen is left with no
        width or no height, at the border it lies behind.
        """
        x0, y0, x1, y1 = box.xyxy
        (across, down), (wide, high), (left, top) = self.resized, self.canvas, self.offset
        # multiplied first, so that the image's far edge divides to exactly 1
        placed = (
            (x0 * across / self.width - left) / wide,
            (y0 * down / self.height - top) / high,
            (x1 * across / self.width - left) / wide,
            (y1 * down / self.height - top) / high,
        )
        if self.fit is not Fit.crop:
            return placed
        x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in placed)
        return x0, y0, x1, y1

    def to_image(self, xyxy: Sequence[float]) -> Box:
        """The box in the image's pixels for xyxy in [0, 1] of the canvas.

        BoxError where it has no area, as a box has of which crop shows nothing.
        """
        x0, y0, x1, y1 = xyxy
        (across, down), (wide, high), (left, top) = self.resized, self.canvas, self.offset
        return Box(
            (x0 * wide + left) * self.width / across,
            (y0 * high + top) * self.height / down,
            (x1 * wide + left) * self.width / across,
            (y1 * high + top) * self.height / down,
        )


def shortest_sides(short: int, long: int, size: int, longest: int | None) -> tuple[int, int]:
    """Shorter and longer side of an image resized with `Fit.shortest`, in whole pixels.

    The rule of detectron2's ResizeShortestEdge, which RegionCLIP and so PVIT use.
    """
    sides = (float(size), size / short * long)
    if longest is not None and sides[1] > longest:
        shrink = longest / sides[1]
        sides = (sides[0] * shrink, sides[1] * shrink)
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


ELONGATED = 16
"""An image this many times as long as it is wide is cropped before it is resized, not after."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants of its images: a card's [image] or [region.image] table.

    BundleError where unsound.
    """

    size: int
    """The square's side in pixels, or with shortest the shorter side's."""
    fit: Fit
    resample: Resample
    mean: tuple[float, float, float]
    """Of red, green and blue in [0, 1]."""
    std: tuple[float, float, float]
    """Of red, green and blue in [0, 1]."""
    longest: int | None = None
    """With shortest, what the longer side may not exceed, in pixels; with no other fit."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BundleError(f"[image] size is {self.size}; a number of pixels is expected")
        if (self.longest is not None) != (self.fit is Fit.shortest):
            raise BundleError(
                f"[image] fit is {self.fit} and longest is {self.longest}; "
                "longest goes with shortest, and with no other fit"
            )
        if self.longest is not None and self.longest < self.size:
            raise BundleError(f"[image] longest is {self.longest}, below size, {self.size}")
        if self.resample.pillow is None and self.fit is not Fit.squash:
            raise BundleError(
                f"[image] resample is {self.resample} and fit is {self.fit}; "
                f"{self.resample} goes with squash, and with no other fit"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise BundleError(
                f"[image] mean is {self.mean} and std is {self.std}; each needs three numbers, "
                "and those of std must be above zero"
            )

    def placement(self, width: int, height: int) -> Placement:
        """How an image of this size is fitted to the canvas."""
        return Placement(width, height, self.size, self.fit, self.longest)

    def pixel_values(self, image: Image.Image) -> NDArray[np.float32]:
        """The image as the model sees it.

        Returns float32 (3, size, size), or (3, h, w) with shortest: (value / 255 - mean) / std,
        and 0, which is the mean colour, in the part that the image does not cover.
        """
        placement = self.placement(*image.size)
        wide, high = placement.canvas
        seen = self._seen(as_rgb(image), placement) / 255  # (down, across, 3)
        values = (seen - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        canvas = np.zeros((3, high, wide), np.float32)
        canvas[:, : len(values), : values.shape[1]] = values.transpose(2, 0, 1)
        return canvas

    def _seen(self, image: Image.Image, placement: Placement) -> NDArray[np.float32]:
        """Levels (down, across, 3) of the image resized, and with crop cut to the square."""
        if placement.fit is not Fit.crop:
            return resize(image, placement.resized, self.resample)
        left, top = placement.offset
        if max(placement.resized) <= ELONGATED * self.size:
            levels = resize(image, placement.resized, self.resample)
            return levels[top : top + self.size, left : left + self.size]
        # the same but for rounding; resized whole, a line of pixels could fill the memory
        seen = image.resize(
            (self.size, self.size),
            self.resample.pillow,
            box=placement.to_image((0, 0, 1, 1)).xyxy,
        )
        return np.asarray(seen, np.float32)
