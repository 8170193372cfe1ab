"""Training records, and the problems of those that cannot be used."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Self

from regionqa.boxes.remarks import LeftOut
from regionqa.data.english import counted
from regionqa.errors import DataError, brief
from regionqa.regions import Region

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
"""Characters that break a line, control the terminal, or cannot be encoded."""


class DataFormat(StrEnum):
    """Formats of training data."""

    lines = "JSON lines"
    array = "a JSON array of conversations"
    coco = "COCO"
    boxes = "boxes"
    """Boxes with labels in another format."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    question: str
    """`<region1>` names the first region of the record, and so on."""
    answer: str
    """The target text; may name regions too."""


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation about one image."""

    image: Path
    """The image's file."""
    regions: tuple[Region, ...]
    """Inside the image, in pixels of the image as displayed; empty: the whole image."""
    turns: tuple[Turn, ...]
    """At least one."""
    where: str
    """Its place, like `mine.jsonl:12`."""
    clipped: int = field(default=0, compare=False)
    """Number of regions that reached outside the image and were clipped to it."""
    kind: str = field(default="", compare=False)
    """What the record is of, such as `refcoco` or `relations`; empty: not told."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason why a record cannot be used."""

    where: str
    """The record's place, like `mine.jsonl:12`."""
    text: str
    """What is wrong, and what to do."""

    @property
    def number(self) -> int:
        """The number at the end of the place, in whose order problems are listed."""
        digits = re.search(r"[0-9]*$", self.where)
        return int(digits[0] or 0) if digits else 0

    def __str__(self) -> str:
        return brief(one_line(f"{self.where}: {self.text}"))


@dataclass
class ProblemCounts:
    """Numbers of usable and bad records of a file."""

    records: int = 0
    """Usable records."""
    bad: int = 0
    """Records that cannot be used."""
    problems: int = 0
    """Their problems; a record may have several."""
    first: Sequence[Problem] = ()
    """The first of them."""

    def or_stop(self, source: Path, *, skip_bad: bool, check: str = "") -> None:
        """Raise DataError where the file cannot be used; see `TrainingData.or_stop`."""
        if not self.problems and not self.records:
            raise DataError(f"{source}: holds no records; add some, see docs/guide/data.md")
        if self.problems and not (skip_bad and self.records):
            more = self.problems - 1
            others = f" (and {counted(more, 'more problem')})" if more else ""
            skip = ", or leave bad records out with --skip-bad" if self.records else ""
            raise DataError(
                f"{source}: {self.bad:,} of {self.bad + self.records:,} records cannot "
                f"be used: {self.first[0]}{others}; "
                f"see all with: regionqa data check {shlex.quote(str(source))}{check}{skip}"
            )


@dataclass(frozen=True)
class TrainingData:
    """Everything that was read from a file of training data."""

    source: Path
    """The file."""
    format: DataFormat
    """Its format."""
    records: tuple[Record, ...]
    """Usable records, in file order."""
    problems: tuple[Problem, ...]
    """Problems of the other records, in file order; a record may have several."""
    sha256: str
    """Digest of the file's bytes, kept with a model that was trained on it."""
    left_out: tuple[LeftOut, ...] = ()
    """What is not learned and no problem, such as crowds and images without annotations."""
    remarks: tuple[str, ...] = ()
    """What was left out or adjusted: a line per reason, with its count and first place."""
    title: str = ""
    """The format's name, if it is `boxes`."""
    missing_images: int = 0
    """Number of images that are named and were not found."""
    broken_images: int = 0
    """Number of images that were found and are none."""

    @property
    def bad(self) -> int:
        """Number of records that cannot be used."""
        return len({problem.where for problem in self.problems})

    @property
    def images(self) -> tuple[Path, ...]:
        """The images of the usable records, each once, in order of appearance."""
        return tuple(dict.fromkeys(record.image for record in self.records))

    def with_problems(self, problems: Sequence[Problem]) -> Self:
        """Return the data with further problems, without the records that have them."""
        bad = {problem.where for problem in problems}
        records = tuple(record for record in self.records if record.where not in bad)
        everything = (*self.problems, *problems)
        if problems:
            everything = tuple(sorted(everything, key=lambda problem: problem.number))
        return replace(self, records=records, problems=everything)

    def or_stop(self, *, skip_bad: bool, check: str = "") -> Self:
        """Return the data if it can be trained on.

        Args:
            skip_bad: Whether bad records may be left out.
            check: Options with which `regionqa data check` shows the same problems.

        Raises:
            DataError: With the first problem, if there are bad records and they may not be left
                out, or if no usable record is left.
        """
        counts = ProblemCounts(len(self.records), self.bad, len(self.problems), self.problems[:1])
        counts.or_stop(self.source, skip_bad=skip_bad, check=check)
        return self


def one_line(text: str) -> str:
    """Replace characters that cannot be printed within a line."""
    return CONTROLS.sub(" ", text)
