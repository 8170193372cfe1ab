"""Training data read a record at a time, in memory that does not grow with the file.

    stream = open_training_stream(Path("mine.jsonl"))
    for part in stream.parts():
        ...

JSON lines are read line by line. Other formats are one document, or many files that belong
together, and are read as a whole.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Protocol

from regionqa.boxes.source import SourceFile
from regionqa.data.boxes import Part
from regionqa.data.files import read_training_data, records_of
from regionqa.data.images import ImageFinder
from regionqa.data.jsonl import LINES_SUFFIXES, parse_line
from regionqa.data.records import DataFormat, Problem, ProblemCounts, Record, TrainingData
from regionqa.data.streams.shards import WHOLE, Shard
from regionqa.errors import DataError
from regionqa.regions import BoxFormat, BoxUnits

Key = int
"""Where a record stands, for `TrainingStream.record`."""
Keyed = tuple[Key, Part]


class TrainingStream(Protocol):
    """Training data that can be read several times."""

    source: Path
    format: DataFormat

    def keyed(self, shard: Shard = WHOLE) -> Iterator[Keyed]:
        """Iterate over keys and parts of a shard in file order; DataError if the file cannot be
        read."""

    def record(self, key: Key) -> Record:
        """Read the usable record of a key again."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was left out or adjusted; JSON lines have none."""

    @property
    def title(self) -> str:
        """The format's name."""

    @property
    def unusable_images(self) -> tuple[int, int]:
        """Numbers of images that are missing and broken, once everything was read."""


@dataclass
class UsableRecords:
    """The usable records of a stream, and counts of the others."""

    stream: TrainingStream
    shard: Shard = WHOLE
    """The part of the records to take."""
    counts: ProblemCounts = field(default_factory=ProblemCounts)

    def keyed(self) -> Iterator[tuple[Key, Record]]:
        """Iterate over the usable records, with their keys, and count."""
        before = None
        for key, part in self.stream.keyed(self.shard):
            if isinstance(part, Record):
                self.counts.records += 1
                yield key, part
            elif isinstance(part, Problem):
                self.counts.bad += part.where != before
                self.counts.problems += 1
                self.counts.first = self.counts.first or [part]
                before = part.where

    def or_stop(self, *, skip_bad: bool) -> Iterator[tuple[Key, Record]]:
        """Iterate as `keyed` does.

        Raises:
            DataError: At the end, if there are bad records that may not be left out, or no others
                in the whole file; no records follow the first bad one.
        """
        for key, record in self.keyed():
            if skip_bad or not self.counts.bad:
                yield key, record
        if self.shard.whole or (self.counts.problems and not skip_bad):
            self.counts.or_stop(self.stream.source, skip_bad=skip_bad)


class LinesStream:
    """JSON lines; a key is the offset of a line in bytes."""

    def __init__(self, path: Path, images: Path | None) -> None:
        """Open a file.

        Args:
            path: The file.
            images: Folder of its images; None: its own.
        """
        self.source = path
        self.format = DataFormat.lines
        self.title = str(DataFormat.lines)
        self.remarks: tuple[str, ...] = ()
        self._images = ImageFinder(path, [path.parent if images is None else images])

    def keyed(self, shard: Shard = WHOLE) -> Iterator[Keyed]:
        """See `TrainingStream.keyed`."""
        for offset, number, line in shard.take(self._lines()):
            yield from ((offset, part) for part in self._parts(line, self.source.name, number))

    def record(self, key: Key) -> Record:
        """See `TrainingStream.record`."""
        try:
            with self.source.open("rb") as file:
                file.seek(key)
                line = file.readline()
        except OSError as error:
            raise _unreadable(self.source, error) from None
        for part in self._parts(line, self.source.name, 0):
            if isinstance(part, Record):
                return part
        raise DataError(f"{self.source}: has changed since it was read; start again")

    @property
    def unusable_images(self) -> tuple[int, int]:
        """See `TrainingStream.unusable_images`."""
        return self._images.missing, self._images.broken

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Iterate over offsets, numbers and bytes of the lines that are not blank."""
        offset = 0
        try:
            with self.source.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield offset, number, line
                    offset += len(line)
        except OSError as error:
            raise _unreadable(self.source, error) from None

    def _parts(self, line: bytes, name: str, number: int) -> Iterable[Part]:
        text = line.decode("utf-8-sig" if number <= 1 else "utf-8", "surrogateescape")
        parsed = parse_line(text.rstrip("\n"), f"{name}:{number}", number)
        return records_of([parsed], self._images, strict=True)


class LoadedStream:
    """Data of another format, read as a whole; a key is the number of a record."""

    def __init__(self, data: TrainingData) -> None:
        self.data = data
        self.source = data.source
        self.format = data.format

    def keyed(self, shard: Shard = WHOLE) -> Iterator[Keyed]:
        """See `TrainingStream.keyed`; problems and what is left out come last."""
        every = (self.data.records, self.data.problems, self.data.left_out)
        parts: Iterator[Keyed] = enumerate(chain.from_iterable(every))
        # all problems of a record are in one shard, so that it is counted once
        records = (list(group) for _, group in groupby(parts, _place))
        yield from chain.from_iterable(shard.take(records))

    def record(self, key: Key) -> Record:
        """See `TrainingStream.record`."""
        return self.data.records[key]

    @property
    def remarks(self) -> tuple[str, ...]:
        """See `TrainingStream.remarks`."""
        return self.data.remarks

    @property
    def title(self) -> str:
        """See `TrainingStream.title`."""
        return self.data.title or str(self.format)

    @property
    def unusable_images(self) -> tuple[int, int]:
        """See `TrainingStream.unusable_images`."""
        return self.data.missing_images, self.data.broken_images


def open_training_stream(
    path: Path,
    images: Path | None = None,
    *,
    format: BoxFormat | None = None,
    units: BoxUnits | None = None,
    scale_boxes: bool = False,
) -> TrainingStream:
    """Open training data of any format; arguments and errors as of `read_training_data`."""
    if not (format or units or scale_boxes) and _is_lines(path):
        return LinesStream(path, images)
    return LoadedStream(
        read_training_data(path, images, format=format, units=units, scale_boxes=scale_boxes)
    )


def _is_lines(path: Path) -> bool:
    """Whether a file is JSON lines of conversations for sure, by its suffix and first line."""
    if path.suffix.lower() not in LINES_SUFFIXES or SourceFile(path, path.parent).is_stream:
        return False
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
        document = parse_line(first.decode("utf-8-sig"), "").document
    except (OSError, UnicodeDecodeError):
        return False
    return isinstance(document, dict) and "conversations" in document


def _place(keyed: Keyed) -> str:
    return keyed[1].where


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read: {error.strerror or error}; name a file")
