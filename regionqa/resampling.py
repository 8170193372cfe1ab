"""Resizing a picture to a given size, in each of the ways that models were trained with.

They differ by grey levels and by how much they smooth, which a trained network notices. This module
does not know which size is wanted, nor why.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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
    """The levels (height, width, 3) in [0, 255] of an RGB picture resized to (width, height)."""
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
