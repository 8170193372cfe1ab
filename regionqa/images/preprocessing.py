"""Preprocessing: images to pixel values, and boxes to the coordinates of the resized image."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionqa.errors import BundleError
from regionqa.images.reading import as_rgb
from regionqa.images.resampling import Resample, resize
from regionqa.regions import Box

Xyxy = tuple[float, float, float, float]


class Fit(StrEnum):
    """How an image is fitted to the model's input.

    squash: resize to a square, whatever the aspect ratio.
    pad: resize the longer side and pad at the right or below, so that one scale factor without an
    offset converts coordinates.
    crop: resize the shorter side and crop the centre of the longer one.
    shortest: resize the shorter side to `size`, or less where the longer would exceed `longest`;
    the input is a rectangle.
    """

    squash = "squash"
    pad = "pad"
    crop = "crop"
    shortest = "shortest"


@dataclass(frozen=True)
class Placement:
    """Conversion of coordinates between an image and the model's input.

    The input is a square, or with `Fit.shortest` the resized image.
    """

    width: int
    """Width of the image as displayed, in pixels."""
    height: int
    """Height of the image as displayed, in pixels."""
    size: int
    """Side of the square in pixels; with shortest, of the shorter side."""
    fit: Fit
    longest: int | None = None
    """With shortest, limit on the longer side in pixels; None: no limit."""

    @property
    def resized(self) -> tuple[int, int]:
        """Width and height of the whole image after resizing, in pixels."""
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
    def input_size(self) -> tuple[int, int]:
        """Width and height of the model's input, in pixels."""
        return self.resized if self.fit is Fit.shortest else (self.size, self.size)

    @property
    def offset(self) -> tuple[int, int]:
        """Position (x, y) of the input's top left corner in the resized image, in pixels."""
        if self.fit is not Fit.crop:
            return 0, 0
        across, down = self.resized
        return (across - self.size) // 2, (down - self.size) // 2

    def to_model(self, box: Box) -> Xyxy:
        """Convert a box inside the image to xyxy in [0, 1] of the model's input.

        With crop the box is clipped to the input; one that lies outside has no width or no height
        afterwards, and lies on the nearest border.
        """
        x0, y0, x1, y1 = box.xyxy
        (across, down), (wide, high), (left, top) = self.resized, self.input_size, self.offset
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
        """Convert xyxy in [0, 1] of the model's input to a box in pixels of the image.

        Raises:
            BoxError: The box has no area, as one that a crop removed.
        """
        return Box(*self.to_pixels(np.array(xyxy, np.float64)).tolist())

    def to_pixels(self, xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert xyxy (..., 4) in [0, 1] of the model's input to pixels of the image."""
        moved = xyxy * np.array(self.input_size * 2) + np.array(self.offset * 2)
        pixels: NDArray[np.float64] = (
            moved * np.array([self.width, self.height] * 2) / np.array(self.resized * 2)
        )
        return pixels


def shortest_sides(short: int, long: int, size: int, longest: int | None) -> tuple[int, int]:
    """Shorter and longer side of an image resized with `Fit.shortest`, in whole pixels.

    The rule of detectron2's ResizeShortestEdge, which RegionCLIP and therefore PVIT use.
    """
    sides = (float(size), size / short * long)
    if longest is not None and sides[1] > longest:
        shrink = longest / sides[1]
        sides = (sides[0] * shrink, sides[1] * shrink)
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


ELONGATED = 16
"""Aspect ratio beyond which an image is cropped before it is resized rather than after."""


@dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing of one encoder: a card's [image] or [region.image] table."""

    size: int
    """Side of the square in pixels; with shortest, of the shorter side."""
    fit: Fit
    """How the image is fitted to the input."""
    resample: Resample
    """How it is resized."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue, in [0, 1]."""
    std: tuple[float, float, float]
    """Standard deviation of red, green and blue, in [0, 1]."""
    longest: int | None = None
    """With shortest, and only then, limit on the longer side in pixels."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BundleError(f"[image] size is {self.size}; a number of pixels is expected")
        if (self.longest is not None) != (self.fit is Fit.shortest):
            raise BundleError(
                f"[image] fit is {self.fit} and longest is {self.longest}; "
                "longest is given with fit shortest, and with no other"
            )
        if self.longest is not None and self.longest < self.size:
            raise BundleError(f"[image] longest is {self.longest}, below size, {self.size}")
        if self.resample.pillow is None and self.fit is not Fit.squash:
            raise BundleError(
                f"[image] resample is {self.resample} and fit is {self.fit}; "
                f"{self.resample} works with fit squash, and with no other"
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise BundleError(
                f"[image] mean is {self.mean} and std is {self.std}; each needs three numbers, "
                "and those of std must be above zero"
            )

    def placement(self, width: int, height: int) -> Placement:
        """Placement of an image of this size, in pixels."""
        return Placement(width, height, self.size, self.fit, self.longest)

    def pixel_values(self, image: Image.Image) -> NDArray[np.float32]:
        """Resize, crop or pad, and normalize an image.

        Args:
            image: Of any mode.

        Returns:
            float32 (3, size, size), or (3, h, w) with shortest: (value / 255 - mean) / std, and 0,
            the mean colour, in the padding.
        """
        placement = self.placement(*image.size)
        wide, high = placement.input_size
        levels = self._resized(as_rgb(image), placement) / 255  # (down, across, 3)
        values = (levels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        padded = np.zeros((3, high, wide), np.float32)
        padded[:, : len(values), : values.shape[1]] = values.transpose(2, 0, 1)
        return padded

    def _resized(self, image: Image.Image, placement: Placement) -> NDArray[np.float32]:
        """Levels (down, across, 3) in [0, 255] of the image resized, and cropped with crop."""
        if placement.fit is not Fit.crop:
            return resize(image, placement.resized, self.resample)
        left, top = placement.offset
        if max(placement.resized) <= ELONGATED * self.size:
            levels = resize(image, placement.resized, self.resample)
            return levels[top : top + self.size, left : left + self.size]
        # the same but for rounding; resized whole, an image one pixel wide could fill the memory
        cropped = image.resize(
            (self.size, self.size),
            self.resample.pillow,
            box=placement.to_image((0, 0, 1, 1)).xyxy,
        )
        return np.asarray(cropped, np.float32)


@dataclass(frozen=True)
class EncoderPreprocessing:
    """Inputs of a bundle's two encoders; asking and training both use it."""

    vision: Preprocessing
    """Of the vision encoder."""
    region: Preprocessing | None = None
    """Of a region encoder that reads pixels; None: it reads the vision encoder's feature maps."""

    def pixel_values(self, image: Image.Image) -> NDArray[np.float32]:
        """Input (1, 3, S, S) of the vision encoder."""
        return self.vision.pixel_values(image)[np.newaxis]

    def region_pixels(self, image: Image.Image) -> NDArray[np.float32] | None:
        """Input (1, 3, h, w) of the region encoder; None where it reads feature maps."""
        return None if self.region is None else self.region.pixel_values(image)[np.newaxis]

    def boxes(self, boxes: Sequence[Box], width: int, height: int) -> list[Xyxy]:
        """Convert boxes to xyxy in [0, 1] of what the region encoder reads.

        Args:
            boxes: Boxes in pixels of the image as displayed.
            width: Width of the image in pixels.
            height: Height of the image in pixels.
        """
        placement = (self.region or self.vision).placement(width, height)
        return [placement.to_model(box) for box in boxes]
