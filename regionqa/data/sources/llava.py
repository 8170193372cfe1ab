"""LLaVA-Instruct: conversations about whole images, with boxes of a detector if there are any."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from regionqa.boxes.files import BoxFile
from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import Part
from regionqa.data.conversations import read_record
from regionqa.data.english import with_article
from regionqa.data.records import Record
from regionqa.data.sources import wording
from regionqa.data.sources.json_files import document, element
from regionqa.data.sources.placement import TOO_MANY, RecordRules, listed, reference
from regionqa.data.sources.units import DatasetUnit

BLIND = "conversations without an image"
PROBABILITY = 0.5
"""Share of the conversations that are given detected boxes, as in GPT4RoI's training data."""


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
