"""Small images, and what reading a file gives or says."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionqa.errors import ImageError
from regionqa.images.reading import open_image


def photo(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth RGB image, so that lossy formats keep it nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(
        np.stack([x * 255 // width, y * 255 // height, 90 + 0 * x], axis=-1).astype(np.uint8)
    )


def noise(width: int = 64, height: int = 64) -> Image.Image:
    """An image that compresses badly, so that half of its file is half of its pixels."""
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def loaded(path: Path) -> np.ndarray:
    """The pixels of a file, after checking that the header promised the same size."""
    source = open_image(path)
    image = source.load()
    assert image.mode == "RGB"
    assert image.size == (source.width, source.height)
    return np.asarray(image)


def complaint(action: Callable[[], object]) -> str:
    """The one line that a ImageError says."""
    with pytest.raises(ImageError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def ramp16() -> np.ndarray:
    return np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these chunks."""
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
