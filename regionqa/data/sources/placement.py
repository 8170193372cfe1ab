"""What all datasets share: units to convert one at a time, and boxes as regions of records.

A box is clipped to its image. It is left out, and counted, where it lies outside or has no area,
and where it is narrower or lower than 2 pixels once the image is squashed to 224 x 224, as
GPT4RoI's training data leaves it out. A record has at most 15 regions unless asked otherwise.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from regionqa.boxes.entries import BoxEntry, Size
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.sizes import SizeCheck
from regionqa.data.boxes import Part
from regionqa.data.images import ImageFile, ImageFinder, place_region
from regionqa.data.records import Record, Turn
from regionqa.errors import BoxError
from regionqa.regions import Region, WrittenBox

Item = TypeVar("Item")

SIDE = 224
"""Width and height, in pixels, of the square in which boxes are measured."""
MIN_SIDE = 2
"""Shortest side of a box in that square, in pixels."""
MAX_REGIONS = 15
"""Regions of a record, by default."""
SMALL = f"boxes below {MIN_SIDE} pixels of {SIDE}"
OUTSIDE = "boxes without area or outside their image"
TOO_MANY = "boxes above the limit of a record"


@dataclass(frozen=True, slots=True)
class DatasetUnit:
    """An image with its annotations, or one question: the smallest part of a dataset."""

    where: str
    """Its place, like `train.jsonl:12`."""
    key: str
    """What its random numbers derive from."""
    content: object
    """What the reader that made it needs to convert it."""


class DatasetReader(Protocol):
    """Reads one dataset."""

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the units in the dataset's order; DataError if its files are broken."""

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Convert a unit.

        Raises:
            DataError: If the unit is malformed.
            ImageError: If its image is missing or broken.
            BoxError: If its boxes are.
        """


@dataclass(frozen=True)
class PlacedBoxes:
    """An image, and the regions that its boxes became."""

    image: ImageFile
    regions: tuple[Region | None, ...]
    """One per box; None: left out."""
    clipped: tuple[bool, ...]
    """Whether each region reached outside the image."""
    left_out: tuple[LeftOut, ...]

    @property
    def usable(self) -> list[int]:
        """Indices of the boxes that became regions, in order."""
        return [index for index, region in enumerate(self.regions) if region is not None]

    def record(self, kept: Sequence[int], turns: Sequence[tuple[str, str]], where: str) -> Record:
        """Build a record.

        Args:
            kept: Indices of the regions to keep; the first is called `<region1>`.
            turns: Questions and their answers.
            where: The record's place, for messages.
        """
        regions = tuple(region for index in kept if (region := self.regions[index]) is not None)
        return Record(
            self.image.path,
            regions,
            tuple(Turn(question.strip(), answer.strip()) for question, answer in turns),
            where,
            sum(self.clipped[index] for index in kept),
        )


@dataclass(frozen=True)
class RecordRules:
    """What a conversion makes of images, boxes and wordings."""

    images: ImageFinder
    sizes: SizeCheck
    """Compares images with the sizes that a dataset states for them."""
    seed: int = 0
    max_regions: int = MAX_REGIONS

    def random(self, key: object) -> Random:
        """Return the random numbers of one sample, the same in every run and shard."""
        return Random(f"{self.seed}:{key}")

    def place(
        self,
        name: str | BoxEntry,
        boxes: Sequence[WrittenBox],
        where: str,
        stated: Size | None = None,
    ) -> PlacedBoxes:
        """Find an image, and turn boxes on it into regions.

        Args:
            name: The image's name, or a box file's entry for it.
            boxes: The boxes.
            where: Their place, for messages.
            stated: Size of the image as the dataset states it; None if it does not.

        Raises:
            ImageError: If the image is missing or broken.
            BoxError: If a box is to be scaled to the image and cannot be.
        """
        image = self.images.find(name)
        entry = name if isinstance(name, BoxEntry) else BoxEntry(name, tuple(boxes), size=stated)
        actual = (image.width, image.height)
        regions: list[Region | None] = []
        clipped: list[bool] = []
        left_out: list[LeftOut] = []
        for written in self.sizes.fit(entry, entry.name or "", actual):
            region, cut = None, False
            try:
                region, cut = place_region(written, image)
            except BoxError:
                left_out.append(LeftOut(where, OUTSIDE))
            if region is not None and too_small(region, image):
                left_out.append(LeftOut(where, SMALL))
                region = None
            regions.append(region)
            clipped.append(cut)
        return PlacedBoxes(image, tuple(regions), tuple(clipped), tuple(left_out))


def too_small(region: Region, image: ImageFile) -> bool:
    """Whether a side of a region is below `MIN_SIDE` once its image is `SIDE` pixels square."""
    width = region.box.width * SIDE / image.width
    height = region.box.height * SIDE / image.height
    return min(width, height) < MIN_SIDE


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Split items into parts of at most this size, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def reference(number: int) -> str:
    """Return how texts name the region of this number, from 1."""
    return f"<region{number}>"


def listed(parts: Sequence[str], word: str = "and") -> str:
    """Join parts with commas, and the last with a word."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
