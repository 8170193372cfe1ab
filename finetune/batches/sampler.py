"""Sampling of training records, as a function of seed and step number alone.

A resumed run therefore draws the same records, and so do processes that share a batch. Reading a
data file looks at the headers of its images only, so an image may turn out to be broken when it is
drawn. With `--skip-bad`, another record of the batch takes its place, so that batches keep their
size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from regionqa.data.english import counted
from regionqa.data.records import Record
from regionqa.errors import ImageError, TrainingError

Ints = npt.NDArray[np.int64]
Seed = tuple[int, ...]
Batch = TypeVar("Batch", covariant=True)


class RecordStream:
    """Endless passes over records, shuffled anew in each.

    Up to `group` records of one image stay together, so that a batch encodes few images.
    """

    def __init__(self, records: Sequence[Record], group: int, seed: Seed) -> None:
        self.records = records
        numbers = {record.image: number for number, record in enumerate(records)}
        self._images = np.array([numbers[record.image] for record in records], np.int64)  # (R,)
        self._group = group
        self._seed = seed
        self._known: tuple[int, Ints] | None = None

    def take(self, start: int, count: int) -> Iterator[Record]:
        """Yield `count` records from position `start` on."""
        for position in range(start, start + count):
            epoch, place = divmod(position, len(self.records))
            yield self.records[int(self._order(epoch)[place])]

    def _order(self, epoch: int) -> Ints:
        """Return the order (R,) of one pass."""
        if self._known is None or self._known[0] != epoch:
            rng = np.random.default_rng([*self._seed, epoch])
            self._known = (epoch, grouped_order(self._images, self._group, rng))
        return self._known[1]


def grouped_order(images: Ints, group: int, rng: np.random.Generator) -> Ints:
    """Draw a random order (R,) that keeps up to `group` records of one image together.

    images: (R,) the number of each record's image.
    """
    shuffled = rng.permutation(len(images))
    by_image = shuffled[np.argsort(images[shuffled], kind="stable")]  # (R,)
    sorted_images = images[by_image]
    new_image = np.flatnonzero(np.r_[True, sorted_images[1:] != sorted_images[:-1]])
    first = np.repeat(new_image, np.diff(np.r_[new_image, len(images)]))
    within = np.arange(len(images)) - first  # (R,) position among the image's own
    group_number = np.cumsum(within % group == 0) - 1  # (R,)
    place_of_group = rng.permutation(int(group_number[-1]) + 1)
    return by_image[np.argsort(place_of_group[group_number], kind="stable")]


@dataclass(frozen=True)
class DrawnRecord:
    """One record of a step."""

    record: Record
    seed: Seed
    """Random seed of its box jitter."""
    replayed: bool


@dataclass(frozen=True)
class StepSampler:
    """Sample the records of every step of a stage."""

    fresh: RecordStream
    """The records the stage trains on."""
    replay: RecordStream | None
    """Older records that are mixed in."""
    effective_batch: int
    """Records of one step, over all processes."""
    replay_share: float
    """Share of them that comes from `replay`."""
    seed: int = field(default=0)
    """Random seed of the box jitter."""

    @property
    def replayed(self) -> int:
        """Number of replayed records in each step."""
        return round(self.replay_share * self.effective_batch) if self.replay else 0

    @property
    def drawn(self) -> int:
        """Number of fresh records in each step."""
        return self.effective_batch - self.replayed

    @property
    def first_pass(self) -> int:
        """Number of steps after which every record has been drawn."""
        streams = [(self.fresh, self.drawn)]
        if self.replay:
            streams.append((self.replay, self.replayed))
        return max(math.ceil(len(s.records) / count) for s, count in streams if count)

    def steps(self, epochs: float) -> int:
        """Return the number of steps of so many passes over the fresh records."""
        return max(1, round(epochs * len(self.fresh.records) / max(1, self.drawn)))

    def step(self, step: int) -> list[DrawnRecord]:
        """Draw the records of one step, fresh ones first; step counts from 0."""
        count = self.drawn
        chosen = list(self.fresh.take(step * count, count))
        if self.replay:
            chosen += self.replay.take(step * self.replayed, self.replayed)
        return [
            DrawnRecord(record, (self.seed, step, row), row >= count)
            for row, record in enumerate(chosen)
        ]


class Collates(Protocol[Batch]):
    """What makes a batch of records; ImageError, naming the image, if one is broken."""

    def batch(
        self, records: Sequence[Record], noise: float = 0.0, seeds: Sequence[Sequence[int]] = ()
    ) -> Batch:
        """Collate records; see `Collator`."""


class BrokenImages:
    """The broken images of a run, and the batches without them."""

    def __init__(self, *, skip: bool = False, say: Callable[[str], None] | None = None) -> None:
        """Begin without any.

        Args:
            skip: Whether their records may be left out.
            say: Called with a line for each broken image.
        """
        self.errors: dict[Path, str] = {}
        """What is wrong, by image."""
        self._skip = skip
        self._say = say

    def batch(
        self,
        collator: Collates[Batch],
        records: Sequence[Record],
        spare: Sequence[Record],
        noise: float = 0.0,
        seeds: Sequence[Sequence[int]] = (),
    ) -> Batch:
        """Collate records, with others in the place of those whose image is broken.

        Args:
            collator: Makes the batch.
            records: The records.
            spare: Records to choose from where all images of a batch are broken.
            noise: See `Collator.batch`.
            seeds: See `Collator.batch`.

        Raises:
            TrainingError: An image is broken and may not be left out, or none is left.
        """
        while True:
            usable = self._replaced(records, spare)
            try:
                return collator.batch(usable, noise, seeds)
            except ImageError as error:
                self._add(usable, error)

    def without(self, records: Sequence[Record]) -> list[Record]:
        """Return the records whose images are not known to be broken."""
        return [record for record in records if record.image not in self.errors]

    def summarise(self) -> None:
        """Say how many images were left out, and which."""
        if self._say and self.errors:
            names = ", ".join(map(str, self.errors))
            self._say(f"{counted(len(self.errors), 'broken image')} left out: {names}")

    def _replaced(self, records: Sequence[Record], spare: Sequence[Record]) -> Sequence[Record]:
        usable = self.without(records)
        if len(usable) == len(records):
            return records
        usable = usable or self.without(spare)[:1]
        if not usable:
            raise TrainingError(
                "no image of the data can be decoded; see all problems with: regionqa data check"
            )
        return [
            usable[place % len(usable)] if record.image in self.errors else record
            for place, record in enumerate(records)
        ]

    def _add(self, records: Sequence[Record], error: ImageError) -> None:
        message = str(error)
        broken = [record for record in records if message.startswith(f"{record.image}: ")]
        if not broken:
            raise error
        if not self._skip:
            raise TrainingError(
                f"{broken[0].where}: {message}; or remove the record, or leave it out with "
                "--skip-bad; then continue with --resume"
            ) from error
        self.errors[broken[0].image] = message
        if self._say:
            self._say(f"left out: {broken[0].where}: {message}")
