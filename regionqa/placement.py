"""Fitting a picture to a model's square, and carrying boxes there and back.

What a model wants of its pictures stands in its card as `Preprocessing`. This module does not know
where pictures come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regionqa.errors import BundleError
from regionqa.images import as_rgb
from regionqa.regions import Box


class Fit(StrEnum):
    """How a picture that is not square becomes the model's square.

    pad keeps the aspect ratio, with the picture at the top left: then one factor takes pixels to
    the square and nothing is added to them.
    """

    squash = "squash"
    pad = "pad"
    crop = "crop"
    """The shortest side becomes the square's, and the middle is kept."""


class Resample(StrEnum):
    """How pixels are interpolated."""

    bicubic = "bicubic"
    bilinear = "bilinear"


@dataclass(frozen=True)
class Placement:
    """How a picture was fitted to the model's square, and both directions of the change."""

    width: int
    """The picture's, in pixels as displayed."""
    height: int
    """The picture's, in pixels as displayed."""
    size: int
    """The square's side in pixels."""
    fit: Fit

    @property
    def covered(self) -> tuple[int, int]:
        """Width and height in pixels of the part of the square that the picture covers."""
        if self.fit is Fit.squash:
            return self.size, self.size
        if self.fit is Fit.crop:
            short = min(self.width, self.height)
            return self.size * self.width // short, self.size * self.height // short
        scale = self.size / max(self.width, self.height)
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    @property
    def cut(self) -> tuple[int, int]:
        """Pixels of the resized picture that are cut off at its left and its top."""
        across, down = self.covered
        return max(0, across - self.size) // 2, max(0, down - self.size) // 2

    def to_model(self, box: Box) -> tuple[float, float, float, float]:
        """The box as xyxy in [0, 1] of the square, where it is inside the picture."""
        x0, y0, x1, y1 = box.xyxy
        across, down = self.covered
        left, top = self.cut
        if left or top:
            return (
                (x0 * across / self.width - left) / self.size,
                (y0 * down / self.height - top) / self.size,
                (x1 * across / self.width - left) / self.size,
                (y1 * down / self.height - top) / self.size,
            )
        # multiplied first, so that the picture's far edge divides to exactly 1
        return (
            x0 * across / self.width / self.size,
            y0 * down / self.height / self.size,
            x1 * across / self.width / self.size,
            y1 * down / self.height / self.size,
        )

    def to_picture(self, xyxy: Sequence[float]) -> Box:
        """The box in the picture's pixels for xyxy in [0, 1] of the square."""
        x0, y0, x1, y1 = xyxy
        across, down = self.covered
        left, top = self.cut
        return Box(
            (x0 * self.size + left) * self.width / across,
            (y0 * self.size + top) * self.height / down,
            (x1 * self.size + left) * self.width / across,
            (y1 * self.size + top) * self.height / down,
        )


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants of its pictures: the card's [picture] table. BundleError where unsound."""

    size: int
    """The square's side in pixels."""
    fit: Fit
    resample: Resample
    mean: tuple[float, float, float]
    """Of red, green and blue in [0, 1]."""
    std: tuple[float, float, float]
    """Of red, green and blue in [0, 1]."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BundleError(f"[picture] size is {self.size}; a number of pixels is expected")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise BundleError(
                f"[picture] mean is {self.mean} and std is {self.std}; each needs three numbers, "
                "and those of std must be above zero"
            )

    def placement(self, width: int, height: int) -> Placement:
        """How a picture of this size is fitted to the square."""
        return Placement(width, height, self.size, self.fit)

    def pixel_values(self, image: Image.Image) -> NDArray[np.float32]:
        """The picture as the model sees it.

        Returns float32 (3, size, size): (value / 255 - mean) / std, and 0, which is the mean
        colour, in the part that the picture does not cover.
        """
        placement = self.placement(*image.size)
        across, down = placement.covered
        resample = Image.Resampling[self.resample.name.upper()]
        resized = as_rgb(image).resize((across, down), resample)
        if self.fit is Fit.crop:
            left, top = placement.cut
            across = down = self.size
            resized = resized.crop((left, top, left + across, top + down))
        values = np.asarray(resized, np.float32) / 255  # (down, across, 3)
        values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        square = np.zeros((3, self.size, self.size), np.float32)
        square[:, :down, :across] = values.transpose(2, 0, 1)
        return square
