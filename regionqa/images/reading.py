"""Reading of image files and of images in memory.

An `InputImage` is known by its header until `load` decodes it. "As displayed" means after the EXIF
rotation. Colour profiles are not applied, as in GPT4RoI and PVIT.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from regionqa.errors import ImageError
from regionqa.images.files import check_size, find_source, pillow_errors, use_image
from regionqa.masks import Mask

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns an image of each EXIF orientation upright; 1 is upright."""

STRIP = 10_000_000
"""Pixels that are converted to RGB at a time."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(eq=False)
class InputImage:
    """An image that is decoded when needed; equal only to itself.

    Create it with `open_image`, `image_from_bytes` or `image_from_memory`.
    """

    name: str
    """Name as the user gave it."""
    width: int
    """Width as displayed, in pixels."""
    height: int
    """Height as displayed, in pixels."""
    source: Path | bytes | Image.Image = field(repr=False)
    """The file, its bytes where it is a pipe or an upload, or the RGB pixels of one in memory."""
    warnings: list[str] = field(default_factory=list, init=False, repr=False)
    """What was found by opening and decoding it and is no error; see `take_warnings`."""
    _keep: bool = field(default=False, init=False, repr=False)
    _kept: Image.Image | None = field(default=None, init=False, repr=False)

    def load(self) -> Image.Image:
        """Decode the pixels, RGB as displayed.

        Returns:
            An image of its own, or between `keep` and `release` one that every caller shares; do
            not change that one.

        Raises:
            ImageError: The file is broken, or has changed since it was opened.
        """
        if self._kept is not None:
            return self._kept
        pixels = self._decode()
        if self._keep:
            self._kept = pixels
        return pixels

    def take_warnings(self) -> list[str]:
        """Return what was found so far and is no error, a line each, and forget it."""
        taken = [f"{self.name}: {warning}" for warning in self.warnings]
        self.warnings.clear()
        return taken

    def keep(self) -> None:
        """Keep the pixels that the next `load` decodes, so that they are not decoded again."""
        self._keep = True

    def release(self) -> None:
        """Drop the pixels that were kept."""
        self._keep, self._kept = False, None

    def _decode(self) -> Image.Image:
        if isinstance(self.source, Image.Image):
            return self.source.copy()
        pixels = use_image(self.source, self.name, _decoded, self._warn)
        if pixels.size != (self.width, self.height):
            raise ImageError(
                f"{self.name}: changed while in use, from {self.width} x {self.height} to "
                f"{pixels.width} x {pixels.height} pixels; ask again"
            )
        return pixels

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


class PixelBudget:
    """Keeps the pixels of images that are used twice, up to a limit on their sum."""

    def __init__(self, pixels: int = 100_000_000) -> None:
        """Create a budget.

        Args:
            pixels: Limit on the pixels kept at a time; 3 bytes each.
        """
        self._room = pixels
        self._images: set[InputImage] = set()

    def keep(self, image: InputImage) -> None:
        """Keep the image's pixels from its next `load` on, if there is room for them."""
        size = image.width * image.height
        if image not in self._images and size <= self._room:
            image.keep()
            self._images.add(image)
            self._room -= size

    def release(self, image: InputImage) -> None:
        """Drop the image's pixels."""
        if image in self._images:
            image.release()
            self._images.remove(image)
            self._room += image.width * image.height


def open_image(path: str | Path, name: str | None = None) -> InputImage:
    """Read the header of an image file; of several pages or frames the first is used.

    Args:
        path: The file.
        name: Name of the image in answers and errors; None: the path.

    Raises:
        ImageError: Not an image of a format that is read, or too large.
    """
    name = str(path) if name is None else name
    return _opened(find_source(Path(path), name), name)


def image_from_bytes(content: bytes, name: str) -> InputImage:
    """Read the header of an image file's content, as `open_image` does."""
    if not content:
        raise ImageError(f"{name}: empty file; copy it again")
    return _opened(content, name)


def _opened(source: Path | bytes, name: str) -> InputImage:
    width, height, several = use_image(source, name, _header)
    image = InputImage(name, width, height, source)
    if several:
        image.warnings.append("holds several pages or frames; the first is used")
    return image


def image_from_memory(image: Image.Image | NDArray[Any], name: str = "image") -> InputImage:
    """Copy an image that is already in memory.

    Args:
        image: A Pillow image of any mode, or a uint8 array (height, width, 3) or (height, width).
        name: Name of the image in answers and errors.

    Raises:
        ImageError: Another kind of array, no pixels, or too many.
    """
    if not isinstance(image, Image.Image):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ImageError(
                f"{name}: an array of shape (height, width, 3) or (height, width) and type uint8 "
                f"is expected, found shape {image.shape} and type {image.dtype}"
            )
        check_size(image.shape[1], image.shape[0], name)
        image = Image.fromarray(image)
    check_size(*image.size, name)
    with pillow_errors(name):
        pixels = _as_displayed(image)
    return InputImage(name, *pixels.size, pixels)


def read_mask(path: Path) -> Mask:
    """Read a mask from an image file: what is not black is inside.

    In a file with transparency, what is not transparent is, whatever its colour.

    Raises:
        ImageError: Not an image of a lossless format that is read, or too large; or no pixel is
            inside.
    """
    name = str(path)
    inside = use_image(find_source(path, name), name, _mask_pixels)
    if inside is None:
        raise ImageError(f"{name}: a JPEG, whose compression changes masks; save it as PNG")
    mask = Mask.of_array(inside)
    if not mask.area:
        raise ImageError(f"{name}: no pixel of this mask is inside; paint the region white")
    return mask


def _mask_pixels(image: Image.Image) -> NDArray[Any] | None:
    """Return what is inside (height, width); None for a JPEG."""
    if image.format in ("JPEG", "MPO"):
        return None
    pixels = _upright(image.copy(), _orientation(image))
    values: NDArray[Any] = np.asarray(
        pixels.getchannel("A") if "A" in pixels.getbands() else pixels
    )
    return np.max(values, axis=2) if values.ndim == 3 else values


def image_from_pixels(pixels: Image.Image, name: str) -> InputImage:
    """Make an image of pixels that were decoded as by `InputImage.load`, without a copy.

    Args:
        pixels: RGB as displayed, which every caller of `load` shares.
        name: Name of the image in answers and errors.
    """
    image = InputImage(name, *pixels.size, pixels)
    image._kept = pixels
    return image


def _header(image: Image.Image) -> tuple[int, int, bool]:
    """Width and height as displayed, and whether there are several pages or frames."""
    width, height = image.size
    if _orientation(image) in _SIDEWAYS:
        width, height = height, width
    # the second image of a JPEG is a phone's preview
    several = image.format not in ("JPEG", "MPO") and getattr(image, "is_animated", False)
    return width, height, several


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where the header has none that is valid."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        # not image.getexif(): for a PNG without EXIF that decodes the whole image in search of it
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _as_displayed(image: Image.Image) -> Image.Image:
    """Decode an image, upright and RGB."""
    orientation = _orientation(image)
    image.load()
    return _upright(as_rgb(image), orientation)


def _decoded(image: Image.Image) -> Image.Image:
    """Decode an image that nothing else uses, upright and RGB; its own pixels are dropped."""
    orientation = _orientation(image)
    image.load()
    pixels = as_rgb(image)
    image.close()  # or a third copy would be in memory while the second is turned
    return _upright(pixels, orientation)


def _upright(pixels: Image.Image, orientation: int) -> Image.Image:
    if orientation in _TURNS:
        pixels = pixels.transpose(_TURNS[orientation])
    pixels.info.clear()  # an EXIF block there would have it rotated again
    return pixels


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, on white where it is transparent.

    White is what most pages and viewers show behind an image; dropping the alpha channel would
    uncover arbitrary colours.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data:
        opaque = Image.new("RGB", image.size, "white")
        for top, bottom in _strips(*image.size):
            layer = image.crop((0, top, image.width, bottom)).convert("RGBA")
            opaque.paste(layer, (0, top), mask=layer.getchannel("A"))
        return opaque
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 or 32 bits to 8; Pillow's own conversion clips them at 255.

    In 16 bits white is 65535. 32 bits and floats do not define white: the smallest of the usual
    whites that is not below the brightest pixel is used.
    """
    values = np.asarray(image)  # (height, width)
    strips = [values[top:bottom] for top, bottom in _strips(*image.size)]
    brightest = max(float(np.nan_to_num(strip).max()) for strip in strips)
    whites = (65535.0,) if values.dtype.itemsize == 2 else (1.0, 255.0, 65535.0, 2.0**32 - 1)
    white = next((white for white in whites if brightest <= white), brightest)
    grey = np.empty(values.shape, np.uint8)
    for (top, bottom), strip in zip(_strips(*image.size), strips, strict=True):
        scaled = np.nan_to_num(strip).clip(0).astype(np.float32) * np.float32(255 / white)
        grey[top:bottom] = np.rint(scaled).clip(0, 255)
    return Image.fromarray(grey)


def _strips(width: int, height: int) -> list[tuple[int, int]]:
    """First row, and row after the last, of strips that are converted one at a time.

    What a conversion needs besides its result is then small, however large the image is.
    """
    rows = max(1, STRIP // width)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]
