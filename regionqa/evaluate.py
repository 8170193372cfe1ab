"""How well a model does on the user's own data, always through `Engine.answer`.

Knows annotated boxes and replies; it does not know how either was made.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from regionqa.boxfiles import BoxFile
from regionqa.engine import Engine
from regionqa.errors import DataError
from regionqa.images import open_picture
from regionqa.regions import clip_all
from regionqa.requests import NAMING_QUESTION, Request


@dataclass(frozen=True)
class Recognition:
    """Whether each box was named rightly, by the box's class."""

    outcomes: Mapping[str, tuple[bool, ...]]

    def accuracy(self, *, without: str | None = None) -> float:
        """Share of boxes named rightly, in percent; `without`: a class that does not count."""
        return share([r for name, each in self.outcomes.items() if name != without for r in each])

    def count(self, *, without: str | None = None) -> int:
        """Boxes that were asked about."""
        return sum(len(each) for name, each in self.outcomes.items() if name != without)

    @property
    def class_mean(self) -> float:
        """Mean over classes of the share named rightly, in percent."""
        return sum(share(each) for each in self.outcomes.values()) / max(1, len(self.outcomes))

    def most_frequent(self, *, without: str | None = None) -> tuple[str, float]:
        """The class most boxes are of, and what always answering it reaches, in percent."""
        counts = Counter({n: len(each) for n, each in self.outcomes.items() if n != without})
        name, count = counts.most_common(1)[0]
        return name, 100 * count / counts.total()


def recognise(engine: Engine, boxfile: BoxFile, folder: Path, smallest: float = 32) -> Recognition:
    """Ask what every labelled box is whose shorter side is at least `smallest` pixels.

    folder: where the pictures lie that the file names. A reply counts as the longest class name
    that stands in it as whole words; one that names no class is wrong.
    Raises DataError where no box is large enough, PictureError for a picture that is missing.
    """
    names = class_names(boxfile)
    outcomes: dict[str, list[bool]] = {}
    for answer in engine.answer(requests(boxfile, folder, smallest), unsure_below=0):
        if answer.error:
            raise answer.error
        label = answer.request.regions[0].label or ""
        outcomes.setdefault(label, []).append(named_class(answer.text, names) == label)
    if not outcomes:
        raise DataError(f"{boxfile.source}: no labelled box of {smallest:g} pixels or more")
    return Recognition({name: tuple(each) for name, each in outcomes.items()})


def requests(boxfile: BoxFile, folder: Path, smallest: float) -> Iterator[Request]:
    """One request per labelled box that is large enough."""
    for name in boxfile.pictures:
        picture = open_picture(folder / name)
        size = (picture.width, picture.height)
        for written in boxfile.boxes_for(name) or ():
            region = written.resolve(*size)
            if region.label and min(region.box.width, region.box.height) >= smallest:
                yield Request(name, NAMING_QUESTION, clip_all((region,), *size)[0], picture)


def class_names(boxfile: BoxFile) -> list[str]:
    """All labels of the file, sorted."""
    boxes = (box for name in boxfile.pictures for box in boxfile.boxes_for(name) or ())
    return sorted({box.label for box in boxes if box.label})


def named_class(reply: str, names: Sequence[str]) -> str | None:
    """The longest class name that stands in a reply as whole words, whatever its case."""
    for name in sorted(names, key=len, reverse=True):
        if re.search(rf"\b{re.escape(name.lower())}\b", reply.lower()):
            return name
    return None


def share(outcomes: Sequence[bool]) -> float:
    """Percent that are true; 0 of none."""
    return 100 * sum(outcomes) / max(1, len(outcomes))
