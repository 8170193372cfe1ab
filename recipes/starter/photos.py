"""Photos with labelled boxes and captions, and the views of them that training sees."""

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionqa.boxes.formats.coco import CocoAnnotation, CocoDocument

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Rng = np.random.Generator
Window = tuple[float, float, float, float]
"""xyxy in pixels of a photo."""
HELD_OUT = 1 / 16
"""Share of the training photos that nothing is learned from, to calibrate on."""
SMALLEST_CROP, ASPECT = 0.4, 4 / 3
"""Least area of a random crop as a share of its photo's, and most change of its aspect."""
CLOSE_UP, MARGIN = 64, 0.6
"""Of a crop around one box: least shorter side of the box in pixels of the photo, and most of what
is shown beyond each of its sides, as a share of the box's."""
SMALLEST_SIDE = 16
"""Least shorter side, in pixels of the view, of a box that is learned from."""
IN_SIGHT = 0.5
"""Least share of a box that a crop must show."""
JITTER = 0.3
"""Most change of brightness, contrast and saturation."""


@dataclass(frozen=True)
class Photo:
    """One photo with boxes (N, 4) xyxy in pixels, class indices (N,) and captions."""

    path: Path
    size: tuple[int, int]
    boxes: Floats
    labels: Ints
    captions: tuple[str, ...]

    @cached_property
    def image(self) -> Image.Image:
        """The decoded photo, which stays in memory."""
        with Image.open(self.path) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class View:
    """What a step sees of a photo.

    pixels: (S, S, 3) uint8. boxes: (N, 4) float32 xyxy in [0, 1]. labels: (N,). rows: (N,) which
    boxes of the photo these are.
    """

    pixels: UInt8
    boxes: Floats
    labels: Ints
    rows: Ints


def read_photos(folder: Path, part: str) -> tuple[list[Photo], tuple[str, ...]]:
    """Read `instances_<part>.json` and `captions_<part>.json`; photos, and names of the classes."""
    coco = CocoDocument.load(folder / f"instances_{part}.json")
    captions = json.loads((folder / f"captions_{part}.json").read_text())
    categories = sorted(coco.categories, key=int)
    index_of = {category: index for index, category in enumerate(categories)}
    by_image: dict[str, list[CocoAnnotation]] = defaultdict(list)
    for annotation in coco.annotations():
        by_image[annotation.image.id].append(annotation)
    photos = []
    for image in coco.images.values():
        annotations = by_image[image.id]
        xywh = np.array([a.bbox for a in annotations], np.float32).reshape(-1, 4)
        photos.append(
            Photo(
                path=folder / "images" / image.name,
                size=image.size,
                boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),  # (N, 4)
                labels=np.array([index_of[a.category_id or ""] for a in annotations], np.int64),
                captions=tuple(captions.get(image.id, ())),
            )
        )
    return photos, tuple(coco.categories[category] for category in categories)


def split(photos: list[Photo]) -> tuple[list[Photo], list[Photo]]:
    """Return photos to learn from, and those held out; always the same ones."""
    order = np.random.default_rng(0).permutation(len(photos))
    held = set(order[: max(1, round(len(order) * HELD_OUT))].tolist())
    return (
        [photo for number, photo in enumerate(photos) if number not in held],
        [photo for number, photo in enumerate(photos) if number in held],
    )


def whole_view(photo: Photo, side: int, smallest: int = SMALLEST_SIDE) -> View:
    """Squash a photo to the square, as asking does."""
    return view_of(photo, (0, 0, *photo.size), side, flip=False, smallest=smallest)


def random_view(photo: Photo, side: int, rng: Rng, smallest: int = SMALLEST_SIDE) -> View:
    """Squash a random crop to the square, mirrored half of the time, with other colours."""
    crop, flip = random_crop(photo, rng), rng.random() < 0.5
    view = view_of(photo, crop, side, flip=flip, smallest=smallest)
    return View(jitter_colour(view.pixels, rng), view.boxes, view.labels, view.rows)


def view_of(
    photo: Photo, window: Window, side: int, *, flip: bool, smallest: int = SMALLEST_SIDE
) -> View:
    """Squash a window of a photo to a square, and keep the boxes that it shows.

    smallest: least shorter side of a box, in pixels of the square.
    """
    small = photo.image.resize((side, side), Image.Resampling.BICUBIC, box=window)
    pixels, boxes = np.asarray(small), photo.boxes
    placed = (boxes - np.array(window[:2] * 2, np.float32)) / np.array(
        [window[2] - window[0], window[3] - window[1]] * 2, np.float32
    )  # (N, 4)
    seen = placed.clip(0, 1)
    sides = seen[:, 2:] - seen[:, :2]  # (N, 2)
    shown = sides.prod(axis=1) / (placed[:, 2:] - placed[:, :2]).prod(axis=1).clip(1e-9)
    rows = np.flatnonzero((shown >= IN_SIGHT) & (sides.min(axis=1) * side >= smallest))
    seen = seen[rows]
    if flip:
        pixels = pixels[:, ::-1]
        seen = np.stack([1 - seen[:, 2], seen[:, 1], 1 - seen[:, 0], seen[:, 3]], axis=1)
    return View(np.ascontiguousarray(pixels), seen, photo.labels[rows], rows)


def random_crop(photo: Photo, rng: Rng) -> Window:
    """Draw a rectangle of `SMALLEST_CROP` to all of a photo's area."""
    width, height = photo.size
    share = rng.uniform(SMALLEST_CROP, 1.0)
    stretch = float(np.exp(rng.uniform(-np.log(ASPECT), np.log(ASPECT))))
    w = min(width, width * float(np.sqrt(share * stretch)))
    h = min(height, height * float(np.sqrt(share / stretch)))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return (x, y, x + w, y + h)


def close_up(photo: Photo, rng: Rng, weights: Floats) -> Window:
    """Draw a rectangle around one box, which is drawn by the weights (C,) of the classes.

    A random crop where no box is large enough.
    """
    sides = (photo.boxes[:, 2:] - photo.boxes[:, :2]).min(axis=1, initial=np.inf)  # (N,)
    chances = weights[photo.labels].astype(np.float64) * (sides >= CLOSE_UP)
    if not chances.any():
        return random_crop(photo, rng)
    x0, y0, x1, y1 = photo.boxes[rng.choice(len(chances), p=chances / chances.sum())].tolist()
    left, top, right, bottom = rng.uniform(0, MARGIN, 4)
    width, height = photo.size
    return (
        max(0.0, x0 - left * (x1 - x0)),
        max(0.0, y0 - top * (y1 - y0)),
        min(float(width), x1 + right * (x1 - x0)),
        min(float(height), y1 + bottom * (y1 - y0)),
    )


def jitter_colour(pixels: UInt8, rng: Rng) -> UInt8:
    """Change brightness, saturation and contrast."""
    brightness, saturation, contrast = rng.uniform(1 - JITTER, 1 + JITTER, 3).astype(np.float32)
    values = pixels.astype(np.float32) * brightness
    grey = values.mean(axis=2, keepdims=True)
    values = grey + saturation * (values - grey)
    mean = values.mean()
    jittered: UInt8 = (mean + contrast * (values - mean)).clip(0, 255).astype(np.uint8)
    return jittered
