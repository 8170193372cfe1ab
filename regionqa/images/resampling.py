"""Resampling: an RGB image to another size, by the rules of Pillow, torch and OpenCV."""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Resample(StrEnum):
    """Interpolation of pixels.

    bicubic and bilinear: Pillow's, with antialiasing, rounded to whole levels.
    bicubic_bilinear: bicubic to the shorter side with the aspect ratio kept, then linear along the
    longer side, without antialiasing or rounding. CLIP's processor followed by torch's
    `interpolate` (GPT4RoI's demo).
    points: bilinear without antialiasing, in the integer arithmetic of OpenCV's `resize` (GPT4RoI's
    training on boxes of COCO and Visual Genome).
    """

    bicubic = "bicubic"
    bilinear = "bilinear"
    bicubic_bilinear = "bicubic-bilinear"
    points = "points"

    @property
    def pillow(self) -> Image.Resampling | None:
        """Pillow's constant; None where the method is not Pillow's."""
        return {
            Resample.bicubic: Image.Resampling.BICUBIC,
            Resample.bilinear: Image.Resampling.BILINEAR,
        }.get(self)


LONGEST = 16
"""Limit on the aspect ratio between the two steps of bicubic_bilinear: an image one pixel wide
could fill the memory."""
STEPS = 2048
"""Denominator of the weights of OpenCV's bilinear interpolation."""


def resize(image: Image.Image, size: tuple[int, int], resample: Resample) -> NDArray[np.float32]:
    """Resize an RGB image.

    Args:
        image: RGB.
        size: Width and height in pixels.
        resample: The interpolation.

    Returns:
        (height, width, 3) float32 in [0, 255].
    """
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
    """Resize one axis linearly, with pixels at the centres of their cells and repeated borders."""
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

    Weights are rounded to 1 / 2048; sums are integers shifted right by 4 bits after the horizontal
    and 16 bits after the vertical step, and rounded at the end. A horizontal neighbour beyond the
    border is dropped; a vertical one is replaced by the border, with its own weight.
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
    """Return both neighbours of every target pixel, which may lie outside, and their weights."""
    at = ((np.arange(wanted) + 0.5) * (given / wanted) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    share = at - first.astype(np.float32)
    near, far = (np.rint(part * np.float32(STEPS)).astype(np.int64) for part in (1 - share, share))
    return first, first + 1, near, far
