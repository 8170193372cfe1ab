"""Training pictures with labelled boxes: COCO photos, and Tiny-ImageNet tiles.

A photo comes out as `TrainingImage`: a square image as the model sees it, with boxes and class
numbers. Nothing here knows about models, losses or language.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from regionqa.boxes.formats.coco import CocoAnnotation, CocoDocument

UInt8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
HELD_OUT = 1 / 16
"""Share of the training photos that nothing is learned from, to calibrate on."""


@dataclass(frozen=True)
class TrainingImage:
    """A square training picture.

    pixels: (S, S, 3) uint8. boxes: (N, 4) float32 xyxy in [0, 1]. labels: (N,) int64.
    """

    pixels: UInt8
    boxes: Floats
    labels: Ints


@dataclass(frozen=True)
class Photo:
    """One COCO photo with its boxes in pixels (N, 4 xyxy), class indices and captions."""

    path: Path
    width: int
    height: int
    boxes: Floats
    labels: Ints
    captions: tuple[str, ...]

    @property
    def scale(self) -> Floats:
        """What pixels are divided by to give fractions: width, height, width, height (4,)."""
        return np.array([self.width, self.height] * 2, np.float32)


@dataclass(frozen=True)
class PhotoSet:
    """Photos of one split, and the class names their labels index."""

    photos: tuple[Photo, ...]
    names: tuple[str, ...]


def read_photos(folder: Path, part: str) -> PhotoSet:
    """The photos of `instances_<part>.json`, with those captions `captions_<part>.json` has."""
    coco = CocoDocument.load(folder / f"instances_{part}.json")
    captions = json.loads((folder / f"captions_{part}.json").read_text())
    categories = sorted(coco.categories, key=int)
    index_of = {category: index for index, category in enumerate(categories)}
    by_image: dict[str, list[CocoAnnotation]] = {}
    for annotation in coco.annotations():
        by_image.setdefault(annotation.image.id, []).append(annotation)
    photos = []
    for image in coco.images.values():
        annotations = by_image.get(image.id, [])
        width, height = image.size
        xywh = np.array([a.bbox for a in annotations], np.float32).reshape(-1, 4)
        photos.append(
            Photo(
                path=folder / "images" / image.name,
                width=width,
                height=height,
                boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),  # (N, 4)
                labels=np.array([index_of[a.category_id or ""] for a in annotations], np.int64),
                captions=tuple(captions.get(image.id, ())),
            )
        )
    return PhotoSet(tuple(photos), tuple(coco.categories[category] for category in categories))


def split(photos: PhotoSet) -> tuple[PhotoSet, PhotoSet]:
    """Photos to learn from, and those held out; always the same ones."""
    order = np.random.default_rng(0).permutation(len(photos.photos))
    count = max(1, round(len(order) * HELD_OUT))
    held = set(order[:count].tolist())
    parts: tuple[list[Photo], list[Photo]] = ([], [])
    for number, photo in enumerate(photos.photos):
        parts[number in held].append(photo)
    return PhotoSet(tuple(parts[0]), photos.names), PhotoSet(tuple(parts[1]), photos.names)


@dataclass(frozen=True)
class Tiles:
    """Tiny-ImageNet pictures, decoded.

    pixels: (N, 64, 64, 3) uint8. labels: (N,). boxes: (N, 4) float32 xyxy, where the thing is.
    """

    pixels: UInt8
    labels: Ints
    boxes: Floats


def read_tiles(folder: Path, parts: Sequence[str]) -> Tiles:
    """Decode the named `.npz` parts; about 1.2 GB in memory for the whole training set."""
    pixels, labels, boxes = [], [], []
    for part in parts:
        with np.load(folder / f"{part}.npz") as archive:
            data, offsets = archive["data"].tobytes(), archive["offsets"]
            labels.append(archive["label"].astype(np.int64))
            corners = archive["box"].astype(np.float32)
        boxes.append(corners + np.array([0, 0, 1, 1], np.float32))  # both ends are inside
        for start, end in pairwise(offsets):
            with Image.open(io.BytesIO(data[start:end])) as image:
                pixels.append(np.asarray(image.convert("RGB")))
    return Tiles(np.stack(pixels), np.concatenate(labels), np.concatenate(boxes))


def photo_view(
    photo: Photo, size: int, rng: np.random.Generator, smallest_side: float = 10.0
) -> TrainingImage:
    """A random crop of a photo, squashed to the square, with the boxes that stay in sight.

    A box stays when at least half of it is inside the crop and its shorter side is at least
    `smallest_side` pixels of the square.
    """
    crop = random_crop(photo.width, photo.height, rng, smallest=0.4)
    with Image.open(photo.path) as image:
        pixels = np.asarray(
            image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=crop)
        )
    scale = np.array([crop[2] - crop[0], crop[3] - crop[1]] * 2, np.float32)
    corner = np.array([crop[0], crop[1]] * 2, np.float32)
    placed = (photo.boxes - corner) / scale  # (N, 4)
    seen = placed.clip(0, 1)
    visible = box_areas(seen) / np.maximum(box_areas(placed), 1e-9)
    shorter = np.minimum(seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1]) * size
    keep = (visible >= 0.5) & (shorter >= smallest_side)
    view = TrainingImage(pixels, seen[keep], photo.labels[keep])
    if rng.random() < 0.5:
        view = mirrored(view)
    return TrainingImage(jitter_colour(view.pixels, rng), view.boxes, view.labels)


def mirrored(canvas: TrainingImage) -> TrainingImage:
    """The view flipped left to right."""
    boxes = canvas.boxes
    flipped = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    return TrainingImage(np.ascontiguousarray(canvas.pixels[:, ::-1]), flipped, canvas.labels)


def whole_photo(photo: Photo, size: int) -> TrainingImage:
    """The photo as asking sees it: squashed to the square, nothing random."""
    with Image.open(photo.path) as image:
        pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    return TrainingImage(pixels, photo.boxes / photo.scale, photo.labels)


def random_crop(
    width: float, height: float, rng: np.random.Generator, smallest: float
) -> tuple[float, float, float, float]:
    """A rectangle of `smallest` to 1 of the area, its aspect within 3/4 to 4/3 of the picture's."""
    share = rng.uniform(smallest, 1.0)
    stretch = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
    w = min(width, width * float(np.sqrt(share * stretch)))
    h = min(height, height * float(np.sqrt(share / stretch)))
    x = rng.uniform(0, width - w)
    y = rng.uniform(0, height - h)
    return (x, y, x + w, y + h)


def jitter_colour(pixels: UInt8, rng: np.random.Generator) -> UInt8:
    """Brightness, contrast and saturation changed by up to 30 %."""
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, 3).astype(np.float32)
    values = pixels.astype(np.float32) * brightness
    grey = values.mean(axis=2, keepdims=True)
    values = grey + saturation * (values - grey)
    mean = values.mean()
    jittered: UInt8 = (mean + contrast * (values - mean)).clip(0, 255).astype(np.uint8)
    return jittered


def box_areas(boxes: Floats) -> Floats:
    """Areas (N,) of boxes (N, 4) xyxy; zero where a side is negative."""
    sides: Floats = (boxes[:, 2:] - boxes[:, :2]).clip(0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def normalise(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) in [-1, 1], channels last in memory."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return values.to(torch.float32).div_(127.5).sub_(1)


def batch_of(canvases: list[TrainingImage]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pixel_values (B, 3, S, S), boxes (N, 4), image_index (N,), labels (N,) of some canvases."""
    index = np.repeat(np.arange(len(canvases)), [len(canvas.labels) for canvas in canvases])
    return (
        normalise(np.stack([canvas.pixels for canvas in canvases])),
        torch.from_numpy(np.concatenate([canvas.boxes for canvas in canvases])),
        torch.from_numpy(index),
        torch.from_numpy(np.concatenate([canvas.labels for canvas in canvases])),
    )
