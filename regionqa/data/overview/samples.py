"""Records drawn at random, as many of each kind as there are of others where possible."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from regionqa.data.records import ProblemCounts, Record
from regionqa.data.streams.training import Key, TrainingStream, UsableRecords

OTHER = "other"
"""Kind of a record that has none."""


@dataclass
class KindSample:
    """The records of a kind that were drawn."""

    kind: str
    total: int = 0
    """Records of the kind in the file."""
    drawn: list[tuple[int, Key, str]] = field(default_factory=list)
    """A heap of the lowest ranks, negated, with the records' keys and places."""

    def offer(self, rank: int, key: Key, where: str, most: int) -> None:
        """Count a record, and keep it while its rank is among the lowest."""
        self.total += 1
        entry = (-rank, key, where)
        if len(self.drawn) < most:
            heapq.heappush(self.drawn, entry)
        else:
            heapq.heappushpop(self.drawn, entry)


@dataclass
class RecordSample:
    """Records drawn from a file, by kind, and counts of the others."""

    kinds: list[KindSample]
    """In order of first appearance."""
    counts: ProblemCounts
    stream: TrainingStream

    def records(self, kind: KindSample) -> Iterator[Record]:
        """Read the records of a kind that were drawn, in file order."""
        for _, key, where in sorted(kind.drawn, key=lambda entry: entry[1]):
            yield replace(self.stream.record(key), where=where)


def sample_records(stream: TrainingStream, count: int, seed: int) -> RecordSample:
    """Draw records at random, evenly over the kinds; those with many records fill up for others.

    Args:
        stream: The file; it is read once, and the records that were drawn again.
        count: Number of records to draw.
        seed: Random seed.
    """
    kinds: dict[str, KindSample] = {}
    usable = UsableRecords(stream)
    for key, record in usable.keyed():
        kind = kinds.setdefault(record.kind or OTHER, KindSample(record.kind or OTHER))
        kind.offer(_rank(seed, key), key, record.where, count)
    found = [*kinds.values()]
    left = count
    for place, kind in enumerate(sorted(found, key=lambda each: len(each.drawn))):
        share = left // (len(found) - place)
        kind.drawn = sorted(kind.drawn, reverse=True)[:share]
        left -= len(kind.drawn)
    return RecordSample([kind for kind in found if kind.drawn], usable.counts, stream)


def _rank(seed: int, key: Key) -> int:
    """Return a number that orders records at random."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
