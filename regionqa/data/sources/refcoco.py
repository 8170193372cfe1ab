"""RefCOCO, RefCOCO+, RefCOCOg and Ref-L4: referring expressions for objects.

Three layouts are read: the original `refs(unc).p` beside `instances.json`, as the REFER API reads
them; MDETR's `finetune_refcoco_train.json`, a COCO document with an image per expression; and
Ref-L4's Parquet, with a row per expression.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from regionqa.boxes.entries import Size
from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import Part
from regionqa.data.containers.json_files import document, mapped
from regionqa.data.containers.pickles import load_plain
from regionqa.data.containers.tables import table_rows
from regionqa.data.sources import wording
from regionqa.data.sources.placement import DatasetUnit, RecordRules, chunks, reference
from regionqa.errors import DataError
from regionqa.regions import BoxFormat, WrittenBox

ALL_SPLITS = "all"
MIN_WORDS = 3
"""Words of an expression of RefCOCO and RefCOCO+; shorter ones are left out, as GPT4RoI does."""
SHORT = f"expressions of fewer than {MIN_WORDS} words"
Numbers = tuple[float, float, float, float]


class RefImage(msgspec.Struct, gc=False):
    """An image of `instances.json`, or MDETR's image, which stands for one expression."""

    id: int
    file_name: str
    width: int | None = None
    height: int | None = None
    original_id: int | None = None
    caption: str = ""


class RefBox(msgspec.Struct, gc=False):
    """An annotation: a box, left, top, width and height in pixels."""

    image_id: int
    bbox: Numbers
    id: int | None = None


class RefDocument(msgspec.Struct):
    """`instances.json`, or MDETR's file."""

    images: list[RefImage]
    annotations: list[RefBox]


class Expression(msgspec.Struct, gc=False):
    """A sentence of a reference."""

    sent: str


class ReferredObject(msgspec.Struct, gc=False):
    """An object that expressions refer to, in `refs(unc).p`."""

    ann_id: int
    image_id: int
    split: str
    sentences: list[Expression]


class ReferredRow(msgspec.Struct, gc=False):
    """A row of Ref-L4."""

    file_name: str
    caption: str
    bbox: Numbers
    width: int
    height: int


@dataclass
class ReferredImage:
    """An image, and the expressions for each of its objects, by box."""

    name: str
    stated: Size | None
    expressions: dict[Numbers, list[str]] = field(default_factory=dict)


class RefcocoReader:
    """Reads referring expressions: every object of an image is a turn, answered by its expression.

    An object with several expressions has one in each of several records.
    """

    def __init__(
        self,
        path: Path,
        rules: RecordRules,
        *,
        instances: Path | None = None,
        split: str = "train",
        question: str = wording.REFER,
        min_words: int = MIN_WORDS,
    ) -> None:
        """Create a reader.

        Args:
            path: `refs(unc).p`, `refs(umd).p`, `refs(google).p`, MDETR's JSON, or Ref-L4's Parquet.
            rules: What to make of images and boxes.
            instances: `instances.json`; by default beside the pickle.
            split: Split of the pickle to read, or `all`.
            question: First question, with `{region}`; empty: one of `wording.DESCRIBE` every time.
            min_words: Words that an expression has at least.
        """
        self._path = path
        self._rules = rules
        self._instances = instances or path.parent / "instances.json"
        self._split = split
        self._question = question
        self._min_words = min_words

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images, in the order in which expressions mention them."""
        start = bytes(mapped(self._path)[:64]).lstrip()
        images: Mapping[Any, ReferredImage]
        if start.startswith(b"PAR1"):
            images = self._of_parquet()
        else:
            images = self._of_mdetr() if start.startswith(b"{") else self._of_pickle()
        for key, image in images.items():
            yield DatasetUnit(f"{self._path.name}: image {key}", str(key), image)

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of an image."""
        image = unit.content
        assert isinstance(image, ReferredImage)
        boxes = [WrittenBox(numbers, BoxFormat.xywh) for numbers in image.expressions]
        placed = self._rules.place(image.name, boxes, unit.where, image.stated)
        yield from placed.left_out
        long: list[list[str]] = []
        for texts in image.expressions.values():
            long.append([text for text in texts if len(text.split()) >= self._min_words])
            yield from [LeftOut(unit.where, SHORT)] * (len(texts) - len(long[-1]))
        random = self._rules.random(unit.key)
        for turn in range(max(map(len, long), default=0)):
            having = [index for index in placed.usable if len(long[index]) > turn]
            for kept in chunks(having, self._rules.max_regions):
                numbers = range(1, len(kept) + 1)
                questions = [
                    self._asked(number, random.choice(wording.DESCRIBE)) for number in numbers
                ]
                answers = [long[index][turn] for index in kept]
                yield placed.record(kept, list(zip(questions, answers, strict=True)), unit.where)

    def _asked(self, number: int, described: str) -> str:
        if not self._question:
            return described.format(region=reference(number))
        first = number == 1
        return self._question.format(region=reference(1)) if first else reference(number)

    def _of_mdetr(self) -> dict[int, ReferredImage]:
        layout = "MDETR's JSON of referring expressions, with images, captions and annotations"
        coco = document(self._path, RefDocument, layout)
        boxes = {box.image_id: box.bbox for box in coco.annotations}
        if not any(image.caption for image in coco.images):
            raise DataError(
                f"{self._path}: has no captions, so it holds no referring expressions; give "
                "MDETR's finetune_refcoco_train.json, or refs(unc).p with its instances.json"
            )
        found: dict[int, ReferredImage] = {}
        for image in coco.images:
            key = image.id if image.original_id is None else image.original_id
            if image.id not in boxes:
                raise DataError(f"{self._path}: image {image.id} has no annotation; add its box")
            known = found.setdefault(key, ReferredImage(image.file_name, _size(image)))
            known.expressions.setdefault(boxes[image.id], []).append(image.caption)
        return found

    def _of_parquet(self) -> dict[str, ReferredImage]:
        layout = "a Parquet file of captions, boxes and images as Ref-L4 has"
        found: dict[str, ReferredImage] = {}
        for where, values in table_rows(self._path, layout, [*ReferredRow.__struct_fields__]):
            try:
                row = msgspec.convert(values.values(), ReferredRow)
            except msgspec.ValidationError as error:
                raise DataError(
                    f"{self._path}: is not {layout}: {where}: {error}; download it again"
                ) from None
            image = ReferredImage(row.file_name, (row.width, row.height))
            known = found.setdefault(row.file_name, image)
            known.expressions.setdefault(row.bbox, []).append(row.caption)
        return found

    def _of_pickle(self) -> dict[int, ReferredImage]:
        references = self._references()
        coco = document(self._instances, RefDocument, "COCO instances of the referred objects")
        images = {image.id: image for image in coco.images}
        boxes = {box.id: box.bbox for box in coco.annotations}
        found: dict[int, ReferredImage] = {}
        for ref in references:
            if ref.image_id not in images or ref.ann_id not in boxes:
                raise DataError(
                    f"{self._instances}: lacks image {ref.image_id} or annotation {ref.ann_id}, "
                    f"which {self._path.name} refers to; give the instances.json that belongs to it"
                )
            image = images[ref.image_id]
            known = found.setdefault(image.id, ReferredImage(image.file_name, _size(image)))
            texts = known.expressions.setdefault(boxes[ref.ann_id], [])
            texts += [sentence.sent for sentence in ref.sentences]
        return found

    def _references(self) -> Sequence[ReferredObject]:
        try:
            references = msgspec.convert(load_plain(self._path), list[ReferredObject])
        except msgspec.ValidationError as error:
            raise DataError(
                f"{self._path}: is not a list of references with ann_id, image_id, split and "
                f"sentences: {error}; give refs(unc).p as it was published"
            ) from None
        splits = sorted({ref.split for ref in references})
        kept = [ref for ref in references if self._split in (ref.split, ALL_SPLITS)]
        if not kept:
            raise DataError(
                f"{self._path}: has no split {self._split!r}; give --split {' or '.join(splits)}, "
                f"or {ALL_SPLITS}"
            )
        return kept


def _size(image: RefImage) -> Size | None:
    if image.width is None or image.height is None:
        return None
    return image.width, image.height
