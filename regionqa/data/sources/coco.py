"""COCO instances, or labelled boxes in any other format, as questions for the names of regions."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.files import BoxFile
from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import BARE, CROWDS, Part
from regionqa.data.records import Problem
from regionqa.data.sources import wording
from regionqa.data.sources.placement import DatasetUnit, RecordRules, chunks, reference

MOST_NAMES = 100
"""Names of classes that a question lists at most."""


class CocoReader:
    """Reads a box file: every region of an image is a turn, answered by its label."""

    def __init__(self, boxes: BoxFile, rules: RecordRules) -> None:
        self._boxes = boxes
        self._rules = rules
        self._names = _class_names(boxes)

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images, in file order."""
        source: Path = self._boxes.source
        for entry in self._boxes.entries:
            yield DatasetUnit(f"{source.name}: {entry.name}", str(entry.name), entry)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of an image, its regions in random order."""
        entry = unit.content
        assert isinstance(entry, BoxEntry)
        yield from named_parts(entry, self._names, unit, self._rules)


def named_parts(
    entry: BoxEntry, names: Sequence[str], unit: DatasetUnit, rules: RecordRules
) -> Iterator[Part]:
    """Build the records of an image whose regions are answered by their labels.

    Args:
        entry: The image's boxes.
        names: Names of all classes, to choose from; the first question lists them unless there are
            too many.
        unit: What is converted; its key decides the random order.
        rules: What to make of images and boxes.
    """
    if entry.name is None:
        yield Problem(unit.where, "names no image that its boxes belong to; add its name")
        return
    if not entry.checked_boxes():
        yield LeftOut(unit.where, BARE)
        return
    placed = rules.place(entry, entry.boxes, unit.where)
    yield from placed.left_out
    named = []
    for index in placed.usable:
        if entry.boxes[index].is_crowd:
            yield LeftOut(unit.where, CROWDS)
        elif entry.boxes[index].label is None:
            yield LeftOut(unit.where, "boxes without a label")
        else:
            named.append(index)
    rules.random(unit.key).shuffle(named)
    for kept in chunks(named, rules.max_regions):
        labels = [entry.boxes[index].label or "" for index in kept]
        yield placed.record(kept, _turns(labels, names), unit.where)


def _turns(labels: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    joined = ", ".join(names) if len(names) <= MOST_NAMES else ""
    first = wording.NAME_REGION if joined else wording.NAME_ANYTHING
    questions = [first.format(names=joined, region=reference(1))]
    questions += [reference(number) for number in range(2, len(labels) + 1)]
    return list(zip(questions, labels, strict=True))


def _class_names(boxes: BoxFile) -> tuple[str, ...]:
    """The names that the file declares, each once."""
    return tuple(dict.fromkeys(boxes.classes or ()))
