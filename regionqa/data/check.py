"""Summary of training data: counts, histograms and problems."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.data.boxes import BARE, CROWDS
from regionqa.data.english import counted
from regionqa.data.overview.histograms import LENGTHS, SIZES, Bar, binned, histogram
from regionqa.data.records import DataFormat, Problem, TrainingData, one_line
from regionqa.errors import ImageError
from regionqa.images.reading import open_image

MOST_FREQUENT = 10
"""Number of answers listed."""


@dataclass(frozen=True)
class Report:
    """The summary of a file of training data."""

    data: TrainingData
    counts: tuple[Bar, ...]
    """Numbers of records, images, regions and so on."""
    sizes: tuple[Bar, ...]
    """Regions by their shorter side in pixels."""
    lengths: tuple[Bar, ...]
    """Answers by their number of words."""
    answers: tuple[Bar, ...]
    """The most frequent answers."""

    def lines(self, show: int = 20) -> Iterator[str]:
        """Render the report as lines of text.

        show: Number of problems to list; 0 for all.
        """
        yield f"{self.data.source}: {self.data.title or self.data.format}"
        width = max(len(bar.name) for bar in self.counts)
        yield from (f"  {bar.name:{width}}  {bar.count:>10,}" for bar in self.counts)
        regions = sum(bar.count for bar in self.sizes)
        turns = sum(bar.count for bar in self.lengths)
        yield from histogram("regions by shorter side, in pixels", self.sizes, regions)
        yield from histogram("answers by length, in words", self.lengths, turns)
        yield from histogram("most frequent answers", self.answers, turns)
        yield from _listed(self.data.problems, show)


def decoded(data: TrainingData, warn: Callable[[str], None]) -> TrainingData:
    """Decode every image; return the data without the records of those that are broken.

    warn: called with a line for each image that is odd but can be decoded.
    """
    broken: dict[Path, str] = {}
    for path in data.images:
        try:
            image = open_image(path)
            image.load()
        except ImageError as error:
            broken[path] = str(error)
        else:
            for line in image.take_warnings():
                warn(line)
    return data.with_problems(
        [
            Problem(record.where, broken[record.image])
            for record in data.records
            if record.image in broken
        ]
    )


def summarise(data: TrainingData) -> Report:
    """Summarise a file of training data."""
    records = data.records
    sides = [min(r.box.width, r.box.height) for record in records for r in record.regions]
    answers = [turn.answer for record in records for turn in record.turns]
    counts = {
        "records": len(records),
        "bad records": data.bad,
        "images": len(data.images),
        "regions": len(sides),
        "clipped regions": sum(record.clipped for record in records),
        "turns": len(answers),
        "records without regions": sum(not record.regions for record in records),
    }
    reasons = Counter(each.reason for each in data.left_out)
    if data.format is DataFormat.coco:
        counts["crowds left out"] = reasons[CROWDS]
    elif data.format is DataFormat.boxes:
        counts["annotations left out"] = len(data.left_out) - reasons[BARE]
    if data.format in (DataFormat.coco, DataFormat.boxes):
        counts["images without annotations"] = reasons[BARE]
    common = Counter(answers).most_common(MOST_FREQUENT)
    return Report(
        data=data,
        counts=tuple(Bar(name, count) for name, count in counts.items()),
        sizes=binned(sides, SIZES),
        lengths=binned([len(answer.split()) for answer in answers], LENGTHS, whole=True),
        answers=tuple(Bar(one_line(answer), count) for answer, count in common),
    )


def _listed(problems: Sequence[Problem], show: int) -> Iterator[str]:
    if not problems:
        return
    yield from ("", counted(len(problems), "problem"))
    shown = problems[:show] if show else problems
    yield from (f"  {problem}" for problem in shown)
    if len(shown) < len(problems):
        yield f"  and {len(problems) - len(shown):,} more; --show 0 lists all"
