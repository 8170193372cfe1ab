"""Units of a dataset: what is converted on its own, so that shards and seeds agree on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from regionqa.data.boxes import Part


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
