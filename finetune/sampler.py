"""Which records every step takes, as a function of the seed and the step alone.

So a resumed run draws the very same ones, and so do processes that share a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from regionqa.data.records import Record

Ints = npt.NDArray[np.int64]
Seed = tuple[int, ...]


class RecordStream:
    """Records without end: pass after pass over all of them, newly shuffled each time.

    Up to `group` records of one image follow each other, so that a batch encodes few images.
    """

    def __init__(self, records: Sequence[Record], group: int, seed: Seed) -> None:
        self.records = records
        numbers = {record.image: number for number, record in enumerate(records)}
        self._images = np.array([numbers[record.image] for record in records], np.int64)  # (R,)
        self._group = group
        self._seed = seed
        self._known: tuple[int, Ints] | None = None

    def take(self, start: int, count: int) -> Iterator[Record]:
        """Records from position `start` on."""
        for position in range(start, start + count):
            epoch, place = divmod(position, len(self.records))
            yield self.records[int(self._order(epoch)[place])]

    def _order(self, epoch: int) -> Ints:
        """The order (R,) of one pass."""
        if self._known is None or self._known[0] != epoch:
            rng = np.random.default_rng([*self._seed, epoch])
            self._known = (epoch, grouped_order(self._images, self._group, rng))
        return self._known[1]


def grouped_order(images: Ints, group: int, rng: np.random.Generator) -> Ints:
    """A random order (R,) in which up to `group` records of one image stand together.

    images: (R,) a number for each record's image.
    """
    shuffled = rng.permutation(len(images))
    by_image = shuffled[np.argsort(images[shuffled], kind="stable")]  # (R,)
    sorted_images = images[by_image]
    new_image = np.flatnonzero(np.r_[True, sorted_images[1:] != sorted_images[:-1]])
    first = np.repeat(new_image, np.diff(np.r_[new_image, len(images)]))
    within = np.arange(len(images)) - first  # (R,) place among the image's own
    group_number = np.cumsum(within % group == 0) - 1  # (R,)
    place_of_group = rng.permutation(int(group_number[-1]) + 1)
    return by_image[np.argsort(place_of_group[group_number], kind="stable")]


@dataclass(frozen=True)
class DrawnRecord:
    """One record of a step."""

    record: Record
    seed: Seed
    """What the noise of its boxes is drawn from."""
    replayed: bool


@dataclass(frozen=True)
class StepSampler:
    """What every step of a stage takes."""

    fresh: RecordStream
    """The records the stage trains on."""
    replay: RecordStream | None
    """Older records that are mixed in."""
    effective_batch: int
    """Records of one step, over all processes."""
    replay_share: float
    """Share of them that is drawn from `replay`."""
    seed: int = field(default=0)
    """What the noise of boxes is drawn from."""

    @property
    def replayed(self) -> int:
        """Records of each step that come from the replay."""
        return round(self.replay_share * self.effective_batch) if self.replay else 0

    def steps(self, epochs: float) -> int:
        """Steps that so many passes over the records take."""
        per_step = max(1, self.effective_batch - self.replayed)
        return max(1, round(epochs * len(self.fresh.records) / per_step))

    def step(self, step: int) -> list[DrawnRecord]:
        """The records of one step."""
        count = self.effective_batch - self.replayed
        chosen = list(self.fresh.take(step * count, count))
        if self.replay:
            chosen += self.replay.take(step * self.replayed, self.replayed)
        return [
            DrawnRecord(record, (self.seed, step, row), row >= count)
            for row, record in enumerate(chosen)
        ]
