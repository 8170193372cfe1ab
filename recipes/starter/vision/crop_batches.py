"""Cuts to learn from: boxes of COCO photos, and Tiny-ImageNet tiles of the same names.

Pictures lie decoded in memory; a cut is made anew each time, with the box shifted and scaled, and
the colours changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from recipes.starter.vision.classifier import AT_LEAST
from recipes.starter.vision.photos import Floats, Ints, Photo, PhotoSet, Tiles
from regionqa.export.modules.crops import CropConfig, box_mask, grown, within
from regionqa.export.modules.positions import PLACES, box_position

SAME_NAMES: dict[str, tuple[int, ...]] = {
    "cat": (30, 31, 32), "dog": (24, 25, 26, 27, 28, 29), "bear": (35,), "elephant": (57,),
    "bird": (11, 20, 21, 22), "cow": (49,), "sheep": (51,), "teddy bear": (161,), "orange": (186,),
    "banana": (188,), "pizza": (191,), "cup": (193,), "bottle": (73, 135), "bus": (145, 166),
    "car": (70, 94, 116, 153), "train": (81, 103), "truck": (121, 133), "umbrella": (168,),
    "backpack": (63,), "refrigerator": (140,), "keyboard": (92,), "remote": (141,),
    "dining table": (98,), "chair": (142,), "parking meter": (127,), "sports ball": (68, 143, 171),
    "boat": (108, 115), "tie": (77,), "spoon": (175,), "cell phone": (110,), "book": (176,),
}  # fmt: skip
"""Labels of Tiny-ImageNet that show what COCO calls by a name."""
TILE = 64
"""Side of a tile in pixels."""
TOO_SMALL = 12
"""A box of a tile with fewer pixels on its shorter side does not show what the tile does."""


@dataclass(frozen=True)
class CropSettings:
    """What is drawn how often, and how it is changed."""

    tiles: float = 0.3
    """Share of boxes that are tiles."""
    balance: float = 0.35
    """A box is drawn in proportion to (count of its class) ** -balance."""
    tile_balance: float = 0.15
    """A class of tiles is drawn in proportion to (count of its boxes in photos) ** -this."""
    smallest: float = 12.0
    """Boxes with a shorter side of fewer pixels are not learned from."""
    sharp: float = 32.0
    """Boxes with a shorter side of fewer pixels are drawn less often."""
    shift: float = 0.12
    """A box moves, and grows or shrinks, by up to this share of its sides."""
    placeless: float = 0.2
    """Share of boxes whose place is not told."""
    crop: float = 0.4
    """The part of a tile that is taken for the picture covers at least this share of it."""
    colour: float = 0.3
    """Contrast changes by up to this share, brightness and saturation by about it."""


@dataclass(frozen=True)
class CropBatch:
    """N boxes to learn from."""

    close: Tensor
    """(N, 4, S, S)."""
    wide: Tensor
    """(N, 4, S, S)."""
    places: Tensor
    """(N, PLACES); zeros where it is not told."""
    names: Tensor
    """(N, classes): how much of each class is in the box; all of one, but in mixtures."""
    shown: Tensor
    """(N, 3 classes): whether the wide cut shows at least 1, 2, 4 of a class."""
    tiles: Tensor
    """(M, 4, S, S): cuts of tiles of any name."""
    tile_labels: Tensor
    """(M,) int64."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the class that each box has most of."""
        return self.names.argmax(1)


@dataclass
class DrawnBox:
    """A box and its picture: corners in pixels, class; the photo it is from, if it is no tile."""

    image: Image.Image
    box: Tensor
    label: int
    photo: Photo | None


class CropSource:
    """All boxes and tiles that are learned from, in memory; about 2 GB with all of them."""

    def __init__(
        self, photos: PhotoSet, tiles: Tiles, config: CropConfig, settings: CropSettings
    ) -> None:
        """photos: those to learn from."""
        self.photos, self.tiles, self.config, self.settings = photos, tiles, config, settings
        self.images = [open_photo(photo) for photo in photos.photos]
        sides = [shorter_sides(photo.boxes) for photo in photos.photos]
        self.rows = [
            (number, row)
            for number, each in enumerate(sides)
            for row in np.flatnonzero(each >= settings.smallest).tolist()
        ]
        labels = np.array([photos.photos[number].labels[row] for number, row in self.rows])
        weights = np.array([sides[number][row] for number, row in self.rows]) / settings.sharp
        weights = weights.clip(0.25, 1)
        self.counts = np.maximum(np.bincount(labels, weights, len(photos.names)), 1)
        chances = weights * self.counts[labels] ** -settings.balance
        self.chances = np.cumsum(chances / chances.sum())
        self.of_class = named_tiles(tiles.labels, photos.names)
        rare = self.counts[list(self.of_class)] ** -settings.tile_balance
        self.tile_chances = rare / rare.sum()

    def draw(self, rng: np.random.Generator) -> DrawnBox:
        """A box of a photo or a tile."""
        if self.of_class and rng.random() < self.settings.tiles:
            label = int(rng.choice(list(self.of_class), p=self.tile_chances))
            return self.tile(int(rng.choice(self.of_class[label])), label, rng)
        chosen = min(int(np.searchsorted(self.chances, rng.random())), len(self.rows) - 1)
        number, row = self.rows[chosen]
        photo = self.photos.photos[number]
        box = torch.from_numpy(photo.boxes[row])
        return DrawnBox(self.images[number], box, int(photo.labels[row]), photo)

    def tile(self, row: int, label: int, rng: np.random.Generator) -> DrawnBox:
        """A part of a tile, with a label of its own or of photos."""
        box = torch.from_numpy(self.tiles.boxes[row])
        if (box[2:] - box[:2]).min() < TOO_SMALL:
            box = torch.tensor([0.0, 0.0, TILE, TILE])
        whole = Image.fromarray(self.tiles.pixels[row])
        image, box = cropped(whole, box, self.settings.crop, rng)
        return DrawnBox(image, box, label, None)

    def tile_cuts(self, count: int, side: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`count` tiles of any name, cut to `side` pixels (M, 4, side, side), and labels (M,)."""
        rows = rng.integers(0, len(self.tiles.labels), count).tolist()
        drawn = [self.tile(row, int(self.tiles.labels[row]), rng) for row in rows]
        if not drawn:
            return torch.zeros(0, 4, side, side), torch.zeros(0, dtype=torch.int64)
        windows = torch.tensor([[0, 0, *each.image.size] for each in drawn], dtype=torch.float32)
        boxes = torch.stack([each.box for each in drawn])
        made = cuts_of([each.image for each in drawn], windows, boxes, side)
        labels = torch.tensor([each.label for each in drawn])
        return augment_crops(made, self.settings.colour, rng), labels

    def batch(self, count: int, tiles: int, side: int, rng: np.random.Generator) -> CropBatch:
        """`count` boxes and `tiles` tiles, cut to `side` pixels, changed at random."""
        settings, config = self.settings, self.config
        drawn = [self.draw(rng) for _ in range(count)]
        boxes = torch.cat(
            [within(moved(each.box, settings.shift, rng)[None], *each.image.size) for each in drawn]
        )  # (N, 4)
        places = torch.zeros(count, PLACES)
        shown = np.zeros((count, len(AT_LEAST), len(self.photos.names)), np.float32)
        seed = int(rng.integers(1 << 31))  # both cuts of a box change alike
        cuts: list[Tensor] = []
        for grow, wobble in ((config.close, 0.1), (config.wide, 0.15)):
            factors = grow * np.exp(rng.uniform(-wobble, wobble, count))
            windows = torch.cat(
                [
                    within(grown(box[None], float(factor), config.slim), *each.image.size)
                    for each, box, factor in zip(drawn, boxes, factors, strict=True)
                ]
            )  # (N, 4)
            made = cuts_of([each.image for each in drawn], windows, boxes, side)
            cuts.append(augment_crops(made, settings.colour, np.random.default_rng(seed)))
        for index, each in enumerate(drawn):  # windows are the wide ones here
            shown[index, 0, each.label] = 1
            if each.photo is not None:
                seen = shows(each.photo, windows[index], shown.shape[2])
                shown[index] = np.maximum(shown[index], seen)
            if rng.random() >= settings.placeless:
                places[index] = placed(boxes[index : index + 1], each.image)[0]
        labels = torch.tensor([each.label for each in drawn])
        names = F.one_hot(labels, shown.shape[2]).float()
        seen_around = torch.from_numpy(shown).flatten(1)
        others = self.tile_cuts(tiles, side, rng)
        return CropBatch(cuts[0], cuts[1], places, names, seen_around, *others)


def open_photo(photo: Photo) -> Image.Image:
    """The photo, decoded."""
    with Image.open(photo.path) as image:
        return image.convert("RGB")


def shorter_sides(boxes: Floats) -> Floats:
    """Shorter sides (N,) of boxes (N, 4)."""
    sides: Floats = np.asarray((boxes[:, 2:] - boxes[:, :2]).min(axis=1))
    return sides


def named_tiles(labels: Ints, names: Sequence[str]) -> dict[int, Ints]:
    """Rows of the tiles that show each class of `names`; classes without tiles are left out."""
    rows = {
        names.index(name): np.flatnonzero(np.isin(labels, same))
        for name, same in sorted(SAME_NAMES.items())
        if name in names
    }
    return {label: found for label, found in rows.items() if len(found)}


def cropped(
    image: Image.Image, box: Tensor, smallest: float, rng: np.random.Generator
) -> tuple[Image.Image, Tensor]:
    """A part of a tile of at least the share `smallest`, and what is there of the box (4,).

    All of the part where too little is.
    """
    share, stretch = rng.uniform(smallest, 1), np.exp(rng.uniform(-0.25, 0.25))
    width = min(TILE, round(TILE * float(np.sqrt(share * stretch))))
    height = min(TILE, round(TILE * float(np.sqrt(share / stretch))))
    left, top = int(rng.integers(TILE + 1 - width)), int(rng.integers(TILE + 1 - height))
    part = image.crop((left, top, left + width, top + height))
    size = torch.tensor([width, height] * 2, dtype=torch.float32)
    seen = torch.minimum((box - torch.tensor([left, top] * 2)).clamp(min=0), size)
    if (seen[2:] - seen[:2]).min() < TOO_SMALL:
        return part, torch.cat([torch.zeros(2), size[2:]])
    return part, seen


def moved(box: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """The box (4,) shifted and scaled by up to `share` of its sides, each way on its own."""
    shift, scale = torch.from_numpy(rng.uniform(-share, share, (2, 2)).astype(np.float32))
    sides = box[2:] - box[:2]
    middle = (box[:2] + box[2:]) / 2 + shift * sides
    half = sides * (1 + scale) / 2
    return torch.cat([middle - half, middle + half])


def placed(boxes: Tensor, image: Image.Image) -> Tensor:
    """(N, PLACES): where boxes (N, 4) in pixels are in their picture."""
    return box_position(boxes / torch.tensor(image.size * 2))


def cuts_of(images: Sequence[Image.Image], windows: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(N, 4, side, side) float32: colours in [-1, 1], and the mark of the box.

    windows, boxes: (N, 4) in pixels of the image of the same row.
    """
    resized = []
    for image, window in zip(images, windows.tolist(), strict=True):
        x0, y0, x1, y1 = window
        size = (side, side)
        resized.append(
            np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1)))
        )
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([pixels, box_mask(windows, boxes, side)], 1)


def shows(photo: Photo, window: Tensor, classes: int) -> npt.NDArray[np.float32]:
    """(3, classes): whether the middles of at least 1, 2, 4 boxes of a class are in the window."""
    x0, y0, x1, y1 = window.tolist()
    x, y = (photo.boxes[:, 0] + photo.boxes[:, 2]) / 2, (photo.boxes[:, 1] + photo.boxes[:, 3]) / 2
    near = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    counts = np.bincount(photo.labels[near], minlength=classes)
    return np.stack([counts >= number for number in AT_LEAST]).astype(np.float32)


def augment_crops(cuts: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Cuts (N, 4, S, S) with other colours, half of them flipped; the mark only flips along."""

    def drawn(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(
            rng.uniform(low, high, (len(cuts), channels, 1, 1)).astype(np.float32)
        )

    brightness, contrast = drawn(-0.8 * share, 0.8 * share), drawn(1 - share, 1 + share)
    saturation, tint = drawn(1 - 4 / 3 * share, 1 + share), drawn(-share / 5, share / 5, 3)
    colours, mark = cuts[:, :3], cuts[:, 3:]
    grey = colours.mean(1, keepdim=True)
    colours = (grey + saturation * (colours - grey)) * contrast + brightness + tint
    whole = torch.cat([colours.clamp(-1, 1), mark], 1)
    flip = torch.from_numpy(rng.random(len(cuts)) < 0.5).reshape(-1, 1, 1, 1)
    return torch.where(flip, whole.flip(3), whole).contiguous(memory_format=torch.channels_last)
