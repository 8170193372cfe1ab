"""Images that tell a region: crops from the original pixels, and boxes drawn on the image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from PIL import Image, ImageDraw, ImageOps

from regionqa.masks import Mask
from regionqa.regions import Box, Region
from regionqa.vlm.card import CropWay

GREY = (128, 128, 128)
"""What is outside of a mask fades to this colour."""


@dataclass(frozen=True)
class WholeImage:
    """The image as it is."""


@dataclass(frozen=True)
class CroppedImage:
    """A part of the image."""

    edges: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels of the image as displayed; half-open."""
    size: tuple[int, int]
    """Width and height to which it is enlarged."""
    mask: Mask | None = None
    """The region's pixels in the whole image; None: only its box is known."""
    fade: float = 0.0
    """Share by which what is outside of the mask is grey, 0 to 1."""


@dataclass(frozen=True)
class DrawnImage:
    """The image with boxes drawn on it."""

    boxes: tuple[Box, ...]
    """In pixels of the image as displayed."""
    colors: tuple[str, ...]
    """One name per box."""
    line: float
    """Width of the line, as a fraction of the image's longer side."""


ImagePart = WholeImage | CroppedImage | DrawnImage


def crop_of(way: CropWay, region: Region, size: tuple[int, int], fade: float = 0.0) -> CroppedImage:
    """Return the crop that shows a region: its box with a margin, inside the image, and enlarged.

    Args:
        way: Settings of crops.
        region: A region inside the image.
        size: Width and height of the image in pixels.
        fade: Share by which what is outside of its mask, if it has one, is grey.
    """
    (width, height), box = size, region.box
    across, left, right = _span(box.x0, box.x1, way, width)
    down, top, bottom = _span(box.y0, box.y1, way, height)
    scale = max(1.0, way.enlarge_to / max(across, down))
    enlarged = (round(across * scale), round(down * scale))
    crop = CroppedImage((left, top, right, bottom), enlarged)
    return replace(crop, mask=region.mask, fade=fade) if fade and region.mask else crop


def _span(low: float, high: float, way: CropWay, limit: int) -> tuple[int, int, int]:
    """Length, start and end of a crop's side; moved into the image where it would lie across."""
    wanted = max((high - low) * (1 + 2 * way.margin), way.min_side)
    length = min(ceil(wanted), limit)
    start = min(max(round((low + high - length) / 2), 0), limit - length)
    return length, start, start + length


def make_image(part: ImagePart, image: Image.Image) -> Image.Image:
    """Make the image of a part.

    Args:
        part: What is wanted.
        image: RGB, as displayed; it is not changed.
    """
    match part:
        case WholeImage():
            return image
        case CroppedImage():
            crop = image.crop(part.edges)
            if part.mask is not None:
                crop = _faded(crop, part.mask, part.edges, part.fade)
            return (
                crop if crop.size == part.size else crop.resize(part.size, Image.Resampling.BICUBIC)
            )
        case DrawnImage():
            return _drawn(image, part.boxes, part.colors, part.line)


def describe_image(part: ImagePart, size: tuple[int, int]) -> str:
    """Describe an image of a prompt in words.

    Args:
        part: What it is.
        size: Its width and height, before the model's own preprocessing.
    """
    pixels = f"{size[0]} x {size[1]} pixels"
    match part:
        case WholeImage():
            return f"whole image, {pixels}"
        case CroppedImage():
            faded = f", grey by {part.fade:g} outside of its mask" if part.mask else ""
            return f"crop {','.join(map(str, part.edges))}{faded}, {pixels}"
        case DrawnImage():
            boxes = " and ".join(
                f"{box} in {color}" for box, color in zip(part.boxes, part.colors, strict=True)
            )
            return f"whole image with {boxes} drawn on it, {pixels}"


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Pad an RGB image to a square, with the image in the middle."""
    side = max(image.size)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    border = (left, top, side - image.width - left, side - image.height - top)
    return ImageOps.expand(image, border, color)


def _faded(
    crop: Image.Image, mask: Mask, edges: tuple[int, int, int, int], fade: float
) -> Image.Image:
    left, top, right, bottom = edges
    inside = Image.fromarray(mask.array()[top:bottom, left:right])
    return Image.composite(crop, Image.blend(crop, Image.new("RGB", crop.size, GREY), fade), inside)


def _drawn(
    image: Image.Image, boxes: Sequence[Box], colors: Sequence[str], line: float
) -> Image.Image:
    """Draw boxes just outside of what they enclose, so that a line hides nothing of a small one."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    width = max(2, round(line * max(image.size)))
    for box, color in zip(boxes, colors, strict=True):
        edges = [
            max(round(box.x0) - width, 0),
            max(round(box.y0) - width, 0),
            min(round(box.x1) + width, image.width) - 1,
            min(round(box.y1) + width, image.height) - 1,
        ]
        pen.rectangle(edges, outline=color, width=width)
    return drawn
