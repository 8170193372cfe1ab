"""Visual7W: pointing questions, answered by a region, and telling questions, by a text."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import Part
from regionqa.data.containers.json_files import document, element
from regionqa.data.sources import wording
from regionqa.data.sources.placement import (
    TOO_MANY,
    DatasetUnit,
    RecordRules,
    listed,
    reference,
)
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


class GroundedBox(msgspec.Struct, gc=False):
    """A box of an object that the answer to a telling question names, in pixels."""

    qa_id: int
    x: float
    y: float
    width: float
    height: float


class GroundingDocument(msgspec.Struct):
    """`v7w_telling_answers.json`."""

    boxes: list[GroundedBox]


class TellingQuestion(msgspec.Struct, gc=False):
    """A question and its answer."""

    question: str
    answer: str
    qa_id: int


class TellingImage(msgspec.Struct, gc=False):
    """An image and its telling questions."""

    filename: str
    split: str
    qa_pairs: list[TellingQuestion]


class TellingDocument(msgspec.Struct):
    """`dataset_v7w_telling.json`."""

    images: list[msgspec.Raw]


class PointingImage(msgspec.Struct, gc=False):
    """An image and its questions."""

    filename: str
    split: str
    qa_pairs: list[PointingQuestion]


Image = TypeVar("Image", PointingImage, TellingImage)


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
        boxes = {each.box_id: _box(each) for each in found.boxes}
        for where, image in _of_split(self._path, found.images, PointingImage, self._split):
            yield DatasetUnit(where, image.filename, (image, boxes))

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


class TellingReader:
    """Reads telling questions: those whose answer has boxes are about these, others the image."""

    def __init__(
        self, path: Path, rules: RecordRules, *, answers: Path | None, split: str = "train"
    ) -> None:
        """Create a reader.

        Args:
            path: `dataset_v7w_telling.json`.
            rules: What to make of images and boxes.
            answers: `v7w_telling_answers.json`, the boxes of what answers name; None: all questions
                are about the whole image.
            split: Split to read, or `all`.
        """
        self._path = path
        self._rules = rules
        self._answers = answers
        self._split = split

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images of the split, in file order."""
        boxes: dict[int, list[WrittenBox]] = {}
        if self._answers is not None:
            layout = "Visual7W's v7w_telling_answers.json, with boxes by qa_id"
            for each in document(self._answers, GroundingDocument, layout).boxes:
                boxes.setdefault(each.qa_id, []).append(_box(each))
        layout = "Visual7W's dataset_v7w_telling.json, with images"
        found = document(self._path, TellingDocument, layout)
        for where, image in _of_split(self._path, found.images, TellingImage, self._split):
            yield DatasetUnit(where, image.filename, (image, boxes))

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read a record for all questions about an image, and one for each about boxes."""
        assert isinstance(unit.content, tuple)
        image, boxes = unit.content
        random = self._rules.random(unit.key)
        whole = []
        for asked in image.qa_pairs:
            pair = (asked.question.strip(), asked.answer.strip())
            written = boxes.get(asked.qa_id, ())
            if not written:
                whole.append(pair)
                continue
            placed = self._rules.place(image.filename, written, unit.where)
            yield from placed.left_out
            kept = placed.usable[: self._rules.max_regions]
            yield from [LeftOut(unit.where, TOO_MANY)] * (len(placed.usable) - len(kept))
            if not kept:
                whole.append(pair)
                continue
            names = listed([reference(number) for number in range(1, len(kept) + 1)])
            asks = random.choice(wording.LOOK).format(regions=names)
            yield placed.record(kept, [(f"{pair[0]} {asks}", pair[1])], unit.where)
        if whole:
            yield self._rules.place(image.filename, (), unit.where).record((), whole, unit.where)


def _of_split(
    path: Path, images: Iterable[msgspec.Raw], kind: type[Image], split: str
) -> Iterator[tuple[str, Image]]:
    """Decode the images of a split, with their places; DataError if it has none."""
    splits = set()
    for index, content in enumerate(images):
        where = f"{path.name}: images[{index}]"
        try:
            image = element(content, kind)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        splits.add(image.split)
        if split in (image.split, ALL_SPLITS):
            yield where, image
    if not splits & {split} and split != ALL_SPLITS:
        raise DataError(
            f"{path}: has no split {split!r}; give --split "
            f"{' or '.join(sorted(splits))}, or {ALL_SPLITS}"
        )


def _box(found: ChoiceBox | GroundedBox) -> WrittenBox:
    return WrittenBox((found.x, found.y, found.width, found.height), BoxFormat.xywh)
