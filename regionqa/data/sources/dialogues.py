"""Datasets that are conversations already: LLaVA-Instruct, Osprey-724K, and PVIT's own."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from regionqa.boxes.files import BoxFile
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.shapes import segmentation_bounds
from regionqa.data.boxes import Part
from regionqa.data.containers.json_files import document, element, unreadable
from regionqa.data.conversations import ROLES, read_record
from regionqa.data.english import with_article
from regionqa.data.records import Record
from regionqa.data.sources import wording
from regionqa.data.sources.placement import (
    TOO_MANY,
    DatasetUnit,
    PlacedBoxes,
    RecordRules,
    chunks,
    listed,
    reference,
)
from regionqa.errors import DataError, ImageError, message_of
from regionqa.language.references import LONGEST_NUMBER, REFERENCE, question_text, renumber
from regionqa.regions import BoxFormat, WrittenBox

BLIND = "conversations without an image"
UNPLACED = "conversations about a region that has no usable box"
CROWDED = "conversations about more regions than a record has"
PROBABILITY = 0.5
"""Share of the conversations that are given detected boxes, as in GPT4RoI's training data."""

SHORT = ("short_form", "part_level")
"""In the names of Osprey's files whose answers are a word or a phrase."""
MAPPING = "mapping.yaml"
_DESCRIBED = re.compile(r"\s*<[^>]*>\s*:\s*(.*)", re.DOTALL)


class LlavaReader:
    """Reads conversations; half of those whose image has boxes begin with a list of them."""

    def __init__(self, path: Path, rules: RecordRules, *, detections: BoxFile | None) -> None:
        """Create a reader.

        Args:
            path: A JSON array such as `llava_instruct_150k.json`.
            rules: What to make of images and boxes.
            detections: Labelled boxes by image, the best first.
        """
        self._path = path
        self._rules = rules
        self._detections = detections

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the conversations, in file order."""
        layout = "LLaVA's JSON array of conversations"
        for index, content in enumerate(document(self._path, list[msgspec.Raw], layout), start=1):
            yield DatasetUnit(f"{self._path.name}: record {index}", str(index), content)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read a conversation."""
        assert isinstance(unit.content, msgspec.Raw)
        fields: dict[str, object] = element(unit.content, dict)
        if not fields.get("image"):
            yield LeftOut(unit.where, BLIND)
            return
        for part in read_record(fields, unit.where, self._rules.images, strict=False):
            told = isinstance(part, Record) and not part.regions and self._detections is not None
            if told and self._rules.random(unit.key).random() < PROBABILITY:
                assert isinstance(part, Record)
                yield from self._with_boxes(part, str(fields["image"]))
            else:
                yield part

    def _with_boxes(self, record: Record, name: str) -> Iterator[Part]:
        assert self._detections is not None
        boxes = self._detections.boxes_for(name) or ()
        boxes = tuple(box for box in boxes if box.label and not box.is_crowd)
        entry = self._detections.entry_for(name)
        placed = self._rules.place(name, boxes, record.where, entry.size if entry else None)
        yield from placed.left_out
        kept = placed.usable[: self._rules.max_regions]
        yield from [LeftOut(record.where, TOO_MANY)] * (len(placed.usable) - len(kept))
        if not kept:
            yield record
            return
        names = [
            f"{reference(number)} may be {with_article(boxes[index].label or '')}"
            for number, index in enumerate(kept, start=1)
        ]
        first = record.turns[0]
        question = f"{wording.DETECTED.format(regions=listed(names))} {first.question}"
        turns = [(question, first.answer)]
        turns += [(turn.question, turn.answer) for turn in record.turns[1:]]
        yield placed.record(kept, turns, record.where)


# ---- Osprey-724K ----


class OspreyRegion(msgspec.Struct, gc=False):
    """A region: COCO's box, and its segmentation."""

    bbox: tuple[float, float, float, float] | None = None
    segmentation: Any = None


class OspreyText(msgspec.Struct, rename={"role": "from"}, gc=False):
    """A question or an answer."""

    role: str
    value: str


class OspreySample(msgspec.Struct):
    """An element of Osprey's files, with a conversation or a description of every region."""

    file_name: str
    annotation: list[OspreyRegion]
    height: int | None = None
    width: int | None = None
    conversations: list[OspreyText] = []
    description: list[str] = []

    def texts(self) -> list[str]:
        """Return questions and answers in turn.

        Raises:
            DataError: If they do not alternate.
        """
        roles = [text.role for text in self.conversations]
        if roles != [*ROLES] * (len(roles) // 2):
            raise DataError("is not questions from human and answers from gpt in turn; correct it")
        return [question_text(text.value) for text in self.conversations]


class OspreyReader:
    """Reads conversations about numbered regions, and detailed descriptions of regions."""

    def __init__(self, path: Path, rules: RecordRules) -> None:
        """Create a reader.

        Args:
            path: One of Osprey's files, such as `osprey_conversation.json`. Those whose name says
                that answers are short have questions that ask for it.
            rules: What to make of images and boxes.
        """
        self._path = path
        self._rules = rules
        is_short = any(part in path.name for part in SHORT)
        self._suffix = f" {wording.BRIEFLY}" if is_short else ""

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the samples, in file order."""
        layout = "a JSON array of Osprey-724K"
        for index, content in enumerate(document(self._path, list[msgspec.Raw], layout), start=1):
            yield DatasetUnit(f"{self._path.name}: record {index}", str(index), content)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of a sample."""
        assert isinstance(unit.content, msgspec.Raw)
        sample = element(unit.content, OspreySample)
        name = self._image_name(sample.file_name)
        stated = (sample.width, sample.height) if sample.width and sample.height else None
        boxes = [_osprey_box(region, unit.where) for region in sample.annotation]
        placed = self._rules.place(name, boxes, unit.where, stated)
        yield from placed.left_out
        if sample.conversations:
            yield from self._conversation(sample, placed, unit.where)
        if sample.description:
            yield from self._descriptions(sample, placed, unit)

    def _image_name(self, name: str) -> str:
        """The name of a sample's image, of which the published one may lack COCO's prefix."""
        for spelling in (name, name.rpartition("_")[2]):
            try:
                self._rules.images.find(spelling)
            except ImageError:
                continue
            return spelling
        return name

    def _conversation(
        self, sample: OspreySample, placed: PlacedBoxes, where: str
    ) -> Iterator[Part]:
        texts = sample.texts()
        texts[::2] = [f"{text}{self._suffix}" for text in texts[::2]]
        yield from numbered_conversation(texts, placed, self._rules, where)

    def _descriptions(
        self, sample: OspreySample, placed: PlacedBoxes, unit: DatasetUnit
    ) -> Iterator[Part]:
        if len(sample.description) != len(sample.annotation):
            raise DataError(
                f"has {len(sample.description)} descriptions of {len(sample.annotation)} regions; "
                "correct it"
            )
        texts = []
        for text in sample.description:
            match = _DESCRIBED.fullmatch(text)
            texts.append(match[1] if match else text)
        yield from detailed_descriptions(texts, placed, self._rules, unit)


def numbered_conversation(
    texts: Sequence[str], placed: PlacedBoxes, rules: RecordRules, where: str
) -> Iterator[Part]:
    """Build a record of a conversation whose texts number all boxes of an image.

    Args:
        texts: Questions and answers in turn; `<region1>` is the first box.
        placed: The boxes.
        rules: Limits the regions of a record; those that no text names are left out first.
        where: The record's place.

    Raises:
        DataError: A text names a box that is not there.
    """
    count, limit = len(placed.regions), rules.max_regions
    digits = [number for text in texts for number in REFERENCE.findall(text)]
    numbers = [int(each) if len(each) <= LONGEST_NUMBER else 0 for each in digits]
    unknown = [number for number in numbers if not 1 <= number <= count]
    if unknown:
        raise DataError(f"names region {unknown[0]}, but has {count}; correct it")
    named = {number - 1 for number in numbers}
    if not placed.usable or not named <= set(placed.usable):
        yield LeftOut(where, UNPLACED)
        return
    if len(named) > limit:
        yield LeftOut(where, CROWDED)
        return
    others = [index for index in placed.usable if index not in named]
    kept = sorted([*named, *others[: limit - len(named)]])
    yield from [LeftOut(where, TOO_MANY)] * (len(placed.usable) - len(kept))
    own = [renumber(text, [index + 1 for index in kept]) for text in texts]
    yield placed.record(kept, list(zip(own[::2], own[1::2], strict=True)), where)


def detailed_descriptions(
    texts: Sequence[str], placed: PlacedBoxes, rules: RecordRules, unit: DatasetUnit
) -> Iterator[Part]:
    """Build records that describe regions in detail, each in a turn.

    Args:
        texts: A description for each box.
        placed: The boxes.
        rules: Limits the regions of a record; the others make further records.
        unit: What the texts are from.
    """
    random = rules.random(unit.key)
    for kept in chunks(placed.usable, rules.max_regions):
        questions = [
            random.choice(wording.DETAIL).format(region=reference(number))
            for number in range(1, len(kept) + 1)
        ]
        answers = [texts[index] for index in kept]
        yield placed.record(kept, list(zip(questions, answers, strict=True)), unit.where)


def _osprey_box(region: OspreyRegion, where: str) -> WrittenBox:
    if region.bbox is not None:
        return WrittenBox(region.bbox, BoxFormat.xywh)
    bounds = segmentation_bounds(region.segmentation, where)
    return WrittenBox(bounds or (0, 0, 0, 0))


# ---- PVIT ----


class PvitMapping(msgspec.Struct):
    """`mapping.yaml`: folders of images by name, and a name by data file without its suffix."""

    image_paths: dict[str, str]
    mapping: dict[str, str]


class PvitReader:
    """Reads the JSON files that a mapping lists; their records have inline regions."""

    def __init__(self, folder: Path, rules: RecordRules) -> None:
        """Create a reader.

        Args:
            folder: The folder of `mapping.yaml` and the files that it lists.
            rules: What to make of images; regions are kept as they are.
        """
        self._folder = folder
        self._rules = rules

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the records of all files, in the order of the mapping."""
        mapping = self._mapping()
        for stem, name in mapping.mapping.items():
            if name not in mapping.image_paths:
                raise DataError(
                    f"{self._folder / MAPPING}: names no folder of images {name!r}, which {stem} "
                    "needs; add it to image_paths"
                )
            path = self._folder / f"{stem}.json"
            records = document(path, list[msgspec.Raw], "PVIT's JSON array of conversations")
            for index, content in enumerate(records, start=1):
                where = f"{path.name}: record {index}"
                yield DatasetUnit(where, where, (mapping.image_paths[name], content))

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read a record."""
        assert isinstance(unit.content, tuple)
        folder, content = unit.content
        fields: dict[str, object] = element(content, dict)
        if isinstance(fields.get("image"), str):
            fields["image"] = str(Path(folder, str(fields["image"])))
        for part in read_record(fields, unit.where, self._rules.images, strict=False):
            if isinstance(part, Record) and len(part.regions) > self._rules.max_regions:
                yield LeftOut(unit.where, CROWDED)
            else:
                yield part

    def _mapping(self) -> PvitMapping:
        path = self._folder / MAPPING
        try:
            return msgspec.convert(yaml.safe_load(path.read_bytes()), PvitMapping)
        except OSError as error:
            raise unreadable(path, error) from None
        except (yaml.YAMLError, msgspec.ValidationError, UnicodeError) as error:
            reason = message_of(error)
            raise DataError(
                f"{path}: is not PVIT's mapping of image_paths and files: {reason}; correct it"
            ) from None
