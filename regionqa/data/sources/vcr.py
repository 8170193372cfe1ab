"""Visual Commonsense Reasoning: questions, answers and rationales with tags of objects.

A tag in the tokenized texts counts objects from 0; only the plain texts (`question_orig`) count
from 1. The tokenized ones are read, so a tag names the object that it stands for.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import Part
from regionqa.data.containers.json_files import document, element, lines
from regionqa.data.sources import wording
from regionqa.data.sources.placement import (
    TOO_MANY,
    DatasetUnit,
    PlacedBoxes,
    RecordRules,
    listed,
    reference,
)
from regionqa.errors import DataError
from regionqa.regions import WrittenBox

BARE = "samples whose image has no usable box"
UNANSWERED = "questions without an answer"
UNTAGGED = "questions that name no object"
UNBOXED = "questions or answers that name an object without a usable box"
ELSEWHERE = "answers that name other objects than the question"
ELSEWHERE_WHY = "rationales that name other objects than the question"
Tokens = list[str | list[int]]
"""Words, and lists of the objects that stand in their place, counted from 0."""


class VcrSample(msgspec.Struct):
    """A line of `train.jsonl`."""

    img_fn: str
    metadata_fn: str
    objects: list[str]
    question: Tokens
    answer_choices: list[Tokens] = []
    rationale_choices: list[Tokens] = []
    answer_label: int | None = None
    rationale_label: int | None = None

    def chosen(self) -> tuple[Tokens, Tokens] | None:
        """Return the right answer and its rationale; None if the sample does not tell them."""
        if self.answer_label is None or self.rationale_label is None:
            return None
        try:
            return self.answer_choices[self.answer_label], self.rationale_choices[
                self.rationale_label
            ]
        except IndexError:
            raise DataError("its label is none of its choices; correct it") from None


class VcrBoxes(msgspec.Struct):
    """The metadata of an image: boxes as left, top, right, bottom and score."""

    boxes: list[tuple[float, float, float, float, float]]
    width: int | None = None
    height: int | None = None


class VcrReader:
    """Reads samples: the question is answered, then the answer is explained."""

    def __init__(self, path: Path, rules: RecordRules, *, only_named: bool = False) -> None:
        """Create a reader.

        Args:
            path: `train.jsonl` or `val.jsonl`.
            rules: What to make of images and boxes.
            only_named: Whether a record has only the regions that its question names, instead of
                all, which a first sentence lists.
        """
        self._path = path
        self._rules = rules
        self._only_named = only_named

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the lines."""
        for number, line in lines(self._path):
            yield DatasetUnit(f"{self._path.name}:{number}", str(number), line)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the record of a sample."""
        assert isinstance(unit.content, bytes)
        sample = element(unit.content, VcrSample)
        chosen = sample.chosen()
        if chosen is None:
            yield LeftOut(unit.where, UNANSWERED)
            return
        texts = (sample.question, *chosen)
        named = [tags(text, len(sample.objects)) for text in texts]
        placed = self._placed(sample, unit.where)
        yield from placed.left_out
        if self._only_named:
            yield from self._single(sample, texts, named, placed, unit.where)
        else:
            yield from self._whole(sample, texts, named, placed, unit.where)

    def _placed(self, sample: VcrSample, where: str) -> PlacedBoxes:
        image = self._rules.images.find(sample.img_fn)
        path = image.path.with_name(Path(sample.metadata_fn).name)
        found = document(path, VcrBoxes, "VCR's metadata of an image, with its boxes")
        if len(found.boxes) != len(sample.objects):
            raise DataError(
                f"{path}: has {len(found.boxes)} boxes for {len(sample.objects)} objects; give "
                "the metadata of this image"
            )
        boxes = [WrittenBox(values[:4]) for values in found.boxes]
        stated = (found.width, found.height) if found.width and found.height else None
        return self._rules.place(sample.img_fn, boxes, where, stated)

    def _whole(
        self,
        sample: VcrSample,
        texts: Sequence[Tokens],
        named: Sequence[Sequence[int]],
        placed: PlacedBoxes,
        where: str,
    ) -> Iterator[Part]:
        """The record with all regions, those that the texts name before others."""
        usable = placed.usable
        if not usable:
            yield LeftOut(where, BARE)
            return
        wanted = {index for group in named for index in group}
        limit = self._rules.max_regions
        if not wanted <= set(usable) or len(wanted) > limit:
            yield LeftOut(where, UNBOXED)
            return
        others = [index for index in usable if index not in wanted]
        kept = sorted([*wanted, *others[: limit - len(wanted)]])
        yield from [LeftOut(where, TOO_MANY)] * (len(usable) - len(kept))
        random = self._rules.random(where)
        question, answer, why = (tagged_text(text, sample.objects, kept) for text in texts)
        regions = listed([reference(number) for number in range(1, len(kept) + 1)])
        question = f"{random.choice(wording.GIVEN).format(regions=regions)} {question}"
        turns = [(question, answer), (random.choice(wording.WHY), why)]
        yield placed.record(kept, turns, where)

    def _single(
        self,
        sample: VcrSample,
        texts: Sequence[Tokens],
        named: Sequence[Sequence[int]],
        placed: PlacedBoxes,
        where: str,
    ) -> Iterator[Part]:
        """The record with the regions of the question, in the order in which it names them."""
        kept = list(named[0])
        if not kept:
            yield LeftOut(where, UNTAGGED)
        elif not set(kept) <= set(placed.usable) or len(kept) > self._rules.max_regions:
            yield LeftOut(where, UNBOXED)
        elif not set(named[1]) <= set(kept):
            yield LeftOut(where, ELSEWHERE)
        else:
            question, answer = (tagged_text(text, sample.objects, kept) for text in texts[:2])
            turns = [(question, answer)]
            if set(named[2]) <= set(kept):
                why = self._rules.random(where).choice(wording.WHY)
                turns.append((why, tagged_text(texts[2], sample.objects, kept)))
            else:
                yield LeftOut(where, ELSEWHERE_WHY)
            yield placed.record(kept, turns, where)


def tags(tokens: Tokens, count: int) -> list[int]:
    """Return the objects that a text names, each once, in order.

    Raises:
        DataError: If it names one that is not among `count` objects.
    """
    found = dict.fromkeys(tag for token in tokens if isinstance(token, list) for tag in token)
    for tag in found:
        if not 0 <= tag < count:
            raise DataError(f"names object {tag}, but has objects 0 to {count - 1}; correct it")
    return list(found)


def tagged_text(tokens: Tokens, objects: Sequence[str], kept: Sequence[int]) -> str:
    """Write a text with its objects as `person at <region1>`.

    Args:
        tokens: The text.
        objects: Class of each object.
        kept: Objects that are regions; the first is `<region1>`.
    """
    numbers: Mapping[int, int] = {index: place for place, index in enumerate(kept, start=1)}
    words = []
    for token in tokens:
        if isinstance(token, str):
            words.append(token)
        elif token:
            words.append(listed([f"{objects[tag]} at {reference(numbers[tag])}" for tag in token]))
    return wording.sentence(words)
