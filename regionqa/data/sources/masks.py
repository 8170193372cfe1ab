"""Datasets whose regions are masks: DAM's detailed captions and Grasp Any Region's conversations.

A mask becomes the upright box around it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from regionqa.boxes.shapes import mask_bounds
from regionqa.data.boxes import Part
from regionqa.data.containers.embedded import ImageArchives, SavedImages
from regionqa.data.containers.json_files import document, element
from regionqa.data.containers.tables import TableRow, table_rows
from regionqa.data.conversations import ROLES, read_record
from regionqa.data.sources.dialogues import detailed_descriptions, numbered_conversation
from regionqa.data.sources.placement import DatasetUnit, RecordRules, reference
from regionqa.errors import DataError
from regionqa.language.references import LONGEST_NUMBER, question_text
from regionqa.regions import WrittenBox

GAR_LAYOUT = "a folder of Grasp Any Region's data-*.arrow, with image, mask_rle and conversations"
PROMPT = re.compile(r"<Prompt(\d+)>")
"""How Grasp Any Region's texts name a mask, from 0."""


class MaskText(msgspec.Struct):
    """A run-length mask, as COCO writes it."""

    size: list[int]
    counts: Any


# -- DAM -------------------------------------------------------------------------------------------


class DamRegion(msgspec.Struct, gc=False):
    """A region of `annotations.json`, with its caption."""

    image: str
    mask_rle: MaskText
    caption: str
    tar_file: str = ""


class DamReader:
    """Reads a part of DAM's data: every region of an image is described in detail."""

    def __init__(self, path: Path, rules: RecordRules, saved: SavedImages) -> None:
        """Create a reader.

        Args:
            path: `annotations.json` of a part such as `COCOStuff`.
            rules: What to make of images and boxes.
            saved: Where images of the archives beside it are written; without a folder, images are
                looked up.
        """
        self._path = path
        self._rules = rules
        self._saved = saved
        self._archives = ImageArchives(path.parent / "images")

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images, in file order."""
        layout = "annotations.json of DAM's data, an object of regions by image"
        for key, content in document(self._path, dict[str, msgspec.Raw], layout).items():
            yield DatasetUnit(f"{self._path.name}: image {key}", key, content)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of an image."""
        assert isinstance(unit.content, msgspec.Raw)
        regions = element(unit.content, list[DamRegion])
        if not regions:
            raise DataError("has no regions; correct it")
        if len({region.image for region in regions}) > 1:
            raise DataError("has regions of several images; correct it")
        name, archive = regions[0].image, regions[0].tar_file
        if self._saved.folder is not None and archive:
            name = self._saved.save(self._archives.read(archive, name))
        boxes, stated = _mask_boxes([region.mask_rle for region in regions], unit.where)
        placed = self._rules.place(name, boxes, unit.where, stated)
        yield from placed.left_out
        texts = [region.caption.strip() for region in regions]
        yield from detailed_descriptions(texts, placed, self._rules, unit)


# -- Grasp Any Region ------------------------------------------------------------------------------


class GarReader:
    """Reads Grasp Any Region's rows: conversations about masks, or a description of each."""

    def __init__(self, path: Path, rules: RecordRules, saved: SavedImages) -> None:
        """Create a reader.

        Args:
            path: The folder of `data-*.arrow`, or one of these files.
            rules: What to make of images and boxes.
            saved: Where the rows' images are written.
        """
        self._path = path
        self._rules = rules
        self._saved = saved

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the rows, in file order."""
        columns = ("image", "mask_rle", "conversations")
        for where, row in table_rows(self._path, GAR_LAYOUT, columns):
            yield DatasetUnit(where, where, row)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of a row."""
        assert isinstance(unit.content, TableRow)
        row = unit.content.values()
        texts = _alternating(row["conversations"])
        name = self._saved.name_of(row["image"])
        masks = row["mask_rle"]
        if not masks:  # about the whole image
            said = [{"from": ROLES[n % 2], "value": text} for n, text in enumerate(texts)]
            fields = {"image": name, "conversations": said}
            yield from read_record(fields, unit.where, self._rules.images, strict=False)
            return
        boxes, stated = _mask_boxes(masks if isinstance(masks, list) else [masks], unit.where)
        placed = self._rules.place(name, boxes, unit.where, stated)
        yield from placed.left_out
        if any(PROMPT.search(text) for text in texts):
            named = [question_text(PROMPT.sub(_numbered_from_1, text)) for text in texts]
            yield from numbered_conversation(named, placed, self._rules, unit.where)
            return
        answers = texts[1::2]
        if len(answers) != len(boxes):
            raise DataError(f"has {len(answers)} answers about {len(boxes)} masks; correct it")
        yield from detailed_descriptions(answers, placed, self._rules, unit)


def _numbered_from_1(found: re.Match[str]) -> str:
    digits = found[1]
    return reference(int(digits) + 1) if len(digits) < LONGEST_NUMBER else found[0]


def _alternating(conversation: object) -> list[str]:
    """Return questions and answers in turn; DataError if they are not."""
    said = conversation if isinstance(conversation, list) else []
    pairs = [(each.get("from"), each.get("value")) for each in said if isinstance(each, Mapping)]
    roles = [role for role, _ in pairs]
    if not pairs or len(pairs) != len(said) or roles != [*ROLES] * (len(roles) // 2):
        raise DataError("is not questions from human and answers from gpt in turn; correct it")
    return [str(text or "").strip() for _, text in pairs]


def _mask_boxes(
    masks: Sequence[object], where: str
) -> tuple[list[WrittenBox], tuple[int, int] | None]:
    """Return the boxes around masks, without area for an empty one, and the size they state."""
    boxes, size = [], None
    for number, given in enumerate(masks, 1):
        try:
            mask = msgspec.convert(given, MaskText, from_attributes=True)
        except msgspec.ValidationError as error:
            raise DataError(f"mask {number} is no run-length mask: {error}; correct it") from None
        counts = mask.counts.decode("ascii", "replace") if isinstance(mask.counts, bytes) else (
            mask.counts
        )  # fmt: skip
        boxes.append(WrittenBox(mask_bounds(counts, mask.size, where) or (0, 0, 0, 0)))
        size = (mask.size[1], mask.size[0])
    return boxes, size
