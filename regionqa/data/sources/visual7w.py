"""Visual7W's pointing questions: which of four regions answers a question."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import Part
from regionqa.data.sources import wording
from regionqa.data.sources.json_files import document, element
from regionqa.data.sources.placement import DatasetUnit, RecordRules, listed, reference
from regionqa.data.sources.refcoco import ALL_SPLITS
from regionqa.errors import DataError
from regionqa.regions import BoxFormat, WrittenBox

UNPLACED = "questions with a choice that has no usable box"
CROWDED = "questions with more choices than a record has regions"


class ChoiceBox(msgspec.Struct, gc=False):
    """A box that may be an answer, in pixels."""

    box_id: int
    x: float
    y: float
    width: float
    height: float


class PointingQuestion(msgspec.Struct, gc=False):
    """A question, the number of the right box and those of the wrong ones."""

    question: str
    answer: int
    multiple_choices: list[int]


class PointingImage(msgspec.Struct, gc=False):
    """An image and its questions."""

    filename: str
    split: str
    qa_pairs: list[PointingQuestion]


class PointingDocument(msgspec.Struct):
    """`dataset_v7w_pointing.json`."""

    images: list[msgspec.Raw]
    boxes: list[ChoiceBox]


class Visual7wReader:
    """Reads pointing questions: each is a record with its four choices, answered by a region."""

    def __init__(self, path: Path, rules: RecordRules, *, split: str = "train") -> None:
        """Create a reader.

        Args:
            path: `dataset_v7w_pointing.json`.
            rules: What to make of images and boxes.
            split: Split to read, or `all`.
        """
        self._path = path
        self._rules = rules
        self._split = split

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images of the split, in file order."""
        layout = "Visual7W's dataset_v7w_pointing.json, with images and boxes"
        found = document(self._path, PointingDocument, layout)
        boxes = {
            each.box_id: WrittenBox((each.x, each.y, each.width, each.height), BoxFormat.xywh)
            for each in found.boxes
        }
        splits = set()
        for index, content in enumerate(found.images):
            where = f"{self._path.name}: images[{index}]"
            try:
                image = element(content, PointingImage)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            splits.add(image.split)
            if self._split in (image.split, ALL_SPLITS):
                yield DatasetUnit(where, image.filename, (image, boxes))
        if not splits & {self._split} and self._split != ALL_SPLITS:
            raise DataError(
                f"{self._path}: has no split {self._split!r}; give --split "
                f"{' or '.join(sorted(splits))}, or {ALL_SPLITS}"
            )

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read a record from every question about an image."""
        assert isinstance(unit.content, tuple)
        image, boxes = unit.content
        random = self._rules.random(unit.key)
        for asked in image.qa_pairs:
            choices = list(dict.fromkeys([asked.answer, *asked.multiple_choices]))
            random.shuffle(choices)
            unknown = [number for number in choices if number not in boxes]
            if unknown:
                raise DataError(f"names box {unknown[0]}, which 'boxes' lacks; add it")
            written = [boxes[number] for number in choices]
            placed = self._rules.place(image.filename, written, unit.where)
            yield from placed.left_out
            if len(choices) > self._rules.max_regions:
                yield LeftOut(unit.where, CROWDED)
            elif len(placed.usable) < len(choices):
                yield LeftOut(unit.where, UNPLACED)
            else:
                names = [reference(number) for number in range(1, len(choices) + 1)]
                asks = random.choice(wording.CHOOSE)
                question = f"{asked.question.strip()} {asks.format(regions=listed(names, 'or'))}"
                answer = names[choices.index(asked.answer)]
                yield placed.record(placed.usable, [(question, answer)], unit.where)
