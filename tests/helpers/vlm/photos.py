"""Images of noise, in which every region differs."""

import numpy as np
from PIL import Image

from regionqa.images.reading import InputImage, image_from_memory


def noise(width: int, height: int, seed: int) -> InputImage:
    """An image of random pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return image_from_memory(Image.fromarray(values))


def blank(width: int, height: int) -> InputImage:
    """A black image."""
    return image_from_memory(Image.new("RGB", (width, height)))
