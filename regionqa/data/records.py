"""What training learns from: records, and what is wrong with those that cannot be used.

    data = read_training_data(Path("mine.jsonl")).or_stop(skip_bad=False)   # datafiles.py

Plain values, checked by whoever reads them. Nothing here knows a file format, pixels or a model.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from regionqa.boxes.entries import LeftOut
from regionqa.errors import DataError
from regionqa.regions import Region

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
"""What would break a line, steer the terminal, or cannot be printed at all."""


class DataFormat(StrEnum):
    """What a file of training data was recognised as."""

    lines = "JSON lines"
    array = "a JSON array of conversations"
    coco = "COCO"


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    question: str
    """`<region1>` names the first region of the record, and so on."""
    answer: str
    """What the model is to say; may name regions too."""


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation about one image."""

    image: Path
    """The image's file."""
    regions: tuple[Region, ...]
    """Inside the image, in pixels of the image as displayed; none: the whole image."""
    turns: tuple[Turn, ...]
    """At least one."""
    where: str
    """Where it stands, like `mine.jsonl:12`."""
    clipped: int = field(default=0, compare=False)
    """How many regions reached outside the image, and were cut off at its edge."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a record, which cannot be used therefore."""

    where: str
    """The record, like `mine.jsonl:12`."""
    text: str
    """What is wrong, and what to do."""

    def __str__(self) -> str:
        return one_line(f"{self.where}: {self.text}")


@dataclass(frozen=True)
class TrainingData:
    """All that was read of a file of training data."""

    source: Path
    """The file."""
    format: DataFormat
    """What it was recognised as."""
    records: tuple[Record, ...]
    """Those that can be used, in file order."""
    problems: tuple[Problem, ...]
    """What is wrong with the others, in file order."""
    sha256: str
    """Of the file's bytes, to tell later what a model has learned from."""
    left_out: tuple[LeftOut, ...] = ()
    """Annotations that are not meant to be learned, such as COCO's crowds, in file order."""

    @property
    def bad(self) -> int:
        """Records that cannot be used."""
        return len({problem.where for problem in self.problems})

    @property
    def images(self) -> tuple[Path, ...]:
        """The images of the usable records, each once, in order of appearance."""
        return tuple(dict.fromkeys(record.image for record in self.records))

    def or_stop(self, *, skip_bad: bool) -> Self:
        """The data itself, where one can train on it.

        skip_bad: whether to do without the bad records. Raises DataError, with the first problem,
        where there are bad records and they may not be left out, or where no good one is left.
        """
        if not self.problems and not self.records:
            raise DataError(f"{self.source}: holds no records; add some, see docs/guide/data.md")
        if self.problems and not (skip_bad and self.records):
            more = len(self.problems) - 1
            others = f" (and {counted(more, 'more problem')})" if more else ""
            skip = ", or leave bad records out with --skip-bad" if self.records else ""
            raise DataError(
                f"{self.source}: {self.bad:,} of {self.bad + len(self.records):,} records cannot "
                f"be used: {self.problems[0]}{others}; "
                f"see all with regionqa data check {self.source}{skip}"
            )
        return self


def counted(count: int, noun: str) -> str:
    """`1 record`, `2,478 records`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def one_line(text: str) -> str:
    """The text as it can be printed in one line."""
    return CONTROLS.sub(" ", text)
