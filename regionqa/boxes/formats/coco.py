"""COCO: images, annotations and categories of a JSON document, read and written; results read.

The only reader of COCO documents: asking, evaluation and training all go through `CocoDocument`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import msgspec

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    Size,
    labels_of,
    score_field,
)
from regionqa.boxes.fields import (
    Numbers,
    four,
    json_text,
    member,
    optional_text,
    plain_number,
    size_of,
)
from regionqa.boxes.formats.coco_decoding import (
    CocoFields,
    decode_instances,
    decode_results,
    without_collection,
)
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.shapes import FLAT, FLAT_MASKS, segmentation_bounds, segmentation_mask
from regionqa.boxes.source import SourceFile
from regionqa.errors import BoxError, BoxFileError
from regionqa.masks import WrittenMask
from regionqa.regions import BoxFormat, BoxUnits, WrittenBox

TITLE = "COCO"
UNPLACED = "annotations of images that are not listed"
IMAGE_SUFFIX = None
OWN_CONVENTION = True
ABSENT_IS_EMPTY = False


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An element of `images`."""

    id: str
    name: str
    """`file_name`."""
    width: int | None
    """In pixels; None if not stated."""
    height: int | None
    """In pixels; None if not stated."""

    @property
    def stated_size(self) -> Size | None:
        """Width and height in pixels; None if they are not stated."""
        return size_of(self.width, self.height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; BoxFileError if they are not stated."""
        if self.width is None or self.height is None:
            raise BoxFileError(f"image {self.id}: has no 'width' and 'height' in pixels; add them")
        return self.width, self.height


@dataclass(frozen=True)
class CocoDocument:
    """A COCO document: its images and categories by id, and its annotations."""

    path: Path
    """The file, for messages."""
    images: Mapping[str, CocoImage]
    """By id, in file order; numeric ids as text."""
    categories: Mapping[str, str]
    """Names by id, in file order; empty if the file has none."""
    elements: Sequence[object]
    """The elements of `annotations`, not checked yet."""

    @classmethod
    def of(cls, document: object, path: Path) -> Self:
        """Check the images and categories of a parsed document.

        Raises:
            BoxFileError: If a required key is missing, or an id appears twice.
        """
        return cls(
            path,
            images=_images(document, path),
            categories=_categories(document, path),
            elements=member(document, "annotations", list, str(path)),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file; BoxFileError as for `of`."""
        return cls.of(SourceFile(path, path.parent).document, path)

    def annotations(self) -> Iterator["CocoAnnotation"]:
        """Iterate over the annotations in file order; each is checked where its fields are used."""
        return (CocoAnnotation(self, index, each) for index, each in enumerate(self.elements))


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """An element of `annotations`.

    Its properties raise BoxFileError where a field is wrong, and BoxError where its box is.
    """

    document: CocoDocument
    index: int
    fields: object

    @property
    def where(self) -> str:
        """The annotation's place in the file, for messages."""
        return f"annotations[{self.index}] of {self.document.path}"

    @property
    def id(self) -> object:
        """The annotation's own id; None if it has none."""
        return self.fields.get("id") if isinstance(self.fields, dict) else None

    @property
    def is_crowd(self) -> bool:
        """Whether the box is around a group, and not around a single object."""
        return isinstance(self.fields, dict) and bool(self.fields.get("iscrowd"))

    @property
    def image(self) -> CocoImage:
        """The annotated image."""
        number = str(member(self.fields, "image_id", object, self.where))
        if number not in self.document.images:
            raise BoxFileError(f"{self.where}: no image has the id {number}; add it to 'images'")
        return self.document.images[number]

    @property
    def category_id(self) -> str | None:
        """The id of the category; None if the annotation has none."""
        number = optional_text(self.fields, "category_id", self.where)
        if self.document.categories and number and number not in self.document.categories:
            raise BoxFileError(
                f"{self.where}: no category has the id {number}; add it to 'categories'"
            )
        return number or None

    @property
    def bbox(self) -> Numbers:
        """Left, top, width and height in pixels; BoxError if they are malformed or missing."""
        if not isinstance(self.fields, dict) or "bbox" not in self.fields:
            raise BoxError(
                f"box in {self.where}: has no 'bbox' and no 'segmentation'; add one of them"
            )
        return four(self.fields["bbox"], self.where)

    @property
    def box(self) -> WrittenBox | None:
        """`bbox`, or else the upright box around `segmentation`; None if that has no area.

        Raises:
            BoxError: If it is malformed, or neither is given.
        """
        label = self.document.categories.get(self.category_id or "") or None
        fields = self.fields if isinstance(self.fields, dict) else {}
        if fields.get("bbox") is not None or fields.get("segmentation") is None:
            return WrittenBox(self.bbox, BoxFormat.xywh, label=label, is_crowd=self.is_crowd)
        bounds = segmentation_bounds(fields["segmentation"], self.where)
        return bounds and WrittenBox(bounds, label=label, is_crowd=self.is_crowd)

    @property
    def mask(self) -> WrittenMask | None:
        """`segmentation`; None if it is not given or has no area, BoxError if malformed."""
        given = self.fields.get("segmentation") if isinstance(self.fields, dict) else None
        return segmentation_mask(given, self.where) if given else None

    @property
    def caption(self) -> str:
        """The text of an annotation in a file of captions."""
        return member(self.fields, "caption", str, self.where)


def is_coco(document: object) -> bool:
    """Whether a JSON document has the two lists that every COCO file has."""
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def _images(document: object, path: Path) -> dict[str, CocoImage]:
    images: dict[str, CocoImage] = {}
    for index, image in enumerate(member(document, "images", list, str(path))):
        where = f"images[{index}] of {path}"
        number = str(member(image, "id", object, where))
        if number in images:
            raise BoxFileError(f"{where}: the id {number} appears twice; give every image its own")
        name = member(image, "file_name", str, where)
        images[number] = CocoImage(number, name, _length(image, "width"), _length(image, "height"))
    return images


def _length(image: object, key: str) -> int | None:
    value = image.get(key) if isinstance(image, dict) else None
    return value if isinstance(value, int) else None


def _categories(document: object, path: Path) -> dict[str, str]:
    if not isinstance(document, dict) or "categories" not in document:
        return {}
    names = {}
    for index, category in enumerate(member(document, "categories", list, str(path))):
        where = f"categories[{index}] of {path}"
        names[str(member(category, "id", object, where))] = optional_text(category, "name", where)
    return names


# ---- format ----


def recognise(file: SourceFile) -> bool:
    """Whether the file has COCO's lists of images and annotations, or is an array of results."""
    if file.kind != ".json":
        return False
    if file.is_array:
        return "image_id" in file.keys and bool(file.keys & {"bbox", "segmentation"})
    return {"images", "annotations"} <= file.keys


@without_collection()
def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read instances, or results; crowds are kept and marked.

    Results have numbers instead of names for images and categories: their boxes are unlabelled, and
    belong to the image whose name is the number.
    """
    entries: list[BoxEntry] = []
    left_out: list[LeftOut] = []
    classes: list[str] = []
    for file in files:
        document = _results(file) if file.is_array else _large(file)
        if document is None:
            document = CocoDocument.of(file.document, file.path)
        if not file.is_array:
            _refuse_captions(document)
        found: dict[str, list[WrittenBox]] = {number: [] for number in document.images}
        defects: dict[str, str] = {}
        _sort_boxes(document, found, defects, left_out, masks=convention.masks)
        for number, image in document.images.items():
            boxes, defect = tuple(found.pop(number)), defects.get(number)
            entry = BoxEntry(
                image.name,
                () if defect else boxes,
                defect,
                by_stem=file.is_array,
                numbered=file.is_array and _is_whole(number),
                size=image.stated_size,
            )
            entries.append(entry)
        classes += filter(None, document.categories.values())
    return BoxContents(
        tuple(entries), tuple(left_out), None if not entries and not classes else tuple(classes)
    )


def _sort_boxes(
    document: CocoDocument,
    found: dict[str, list[WrittenBox]],
    defects: dict[str, str],
    left_out: list[LeftOut],
    *,
    masks: bool,
) -> None:
    """Append each box to the boxes of its image; a malformed one becomes the image's defect.

    masks: whether masks are read too.
    """
    names: dict[object, str | None] = {
        None: None,
        **{key: name or None for key, name in document.categories.items()},
        **{int(key): name or None for key, name in document.categories.items() if _is_whole(key)},
    }
    lists: dict[object, list[WrittenBox]] = {
        key: boxes
        for number, boxes in found.items()
        for key in (number, int(number) if _is_whole(number) else number)
    }
    unplaced: list[tuple[str, BoxFileError]] = []
    xywh, pixel = BoxFormat.xywh, BoxUnits.pixel
    for index, fields in enumerate(document.elements):
        if isinstance(fields, CocoFields):
            values, category, boxes = fields.bbox, fields.category_id, lists.get(fields.image_id)
            plain = not masks or not bytes(fields.segmentation)
            if plain and values is not None and boxes is not None and category in names:
                crowd = bool(fields.iscrowd)
                boxes.append(WrittenBox(values, xywh, pixel, names[category], crowd))
                continue
        given = fields.as_dict() if isinstance(fields, CocoFields) else fields
        annotation = CocoAnnotation(document, index, given)
        try:
            number = annotation.image.id
        except BoxFileError as error:
            unplaced.append((annotation.where, error))
            continue
        try:
            if (read := annotation.box) is None:
                left_out.append(LeftOut(annotation.where, FLAT))
            else:
                mask = annotation.mask if masks else None
                if masks and mask is None and isinstance(given, dict) and given.get("segmentation"):
                    left_out.append(LeftOut(annotation.where, FLAT_MASKS))
                found[number].append(msgspec.structs.replace(read, mask=mask) if mask else read)
        except (BoxError, BoxFileError) as error:
            defects.setdefault(number, str(error))
    if unplaced and len(unplaced) == len(document.elements):
        raise unplaced[0][1]
    left_out += (LeftOut(where, UNPLACED) for where, _ in unplaced)


def _is_whole(text: str) -> bool:
    """Whether the text is that of a whole number, without leading zeros."""
    return text.isdecimal() and text.isascii() and str(int(text)) == text


def _refuse_captions(document: CocoDocument) -> None:
    """Refuse the other files of COCO, which have texts or segments instead of boxes."""
    first = document.elements[0] if document.elements else None
    if not isinstance(first, dict) or first.keys() & {"bbox", "segmentation"}:
        return
    for key, what in (("caption", "captions"), ("segments_info", "panoptic segments")):
        if key in first:
            raise BoxFileError(
                f"{document.path}: is COCO's file of {what}, which has no boxes; give instances"
            )


def _results(file: SourceFile) -> CocoDocument:
    """Read an array of results as a document whose images are called by their ids."""
    elements: Any = decode_results(file)
    if elements is None:
        elements = file.document
        numbers = [
            str(member(each, "image_id", object, f"annotations[{index}] of {file.path}"))
            for index, each in enumerate(elements)
        ]
    else:
        numbers = [str(each.image_id) for each in elements]
    images = {number: CocoImage(number, number, None, None) for number in dict.fromkeys(numbers)}
    return CocoDocument(file.path, images, {}, elements)


def _large(file: SourceFile) -> CocoDocument | None:
    """Read a document quickly; None if it may have a fault."""
    parsed = decode_instances(file)
    if parsed is None:
        return None
    images = {
        (number := str(each.id)): CocoImage(number, each.file_name, each.width, each.height)
        for each in parsed.images
    }
    names = {
        str(each.id): "" if each.name is None else str(each.name).strip()
        for each in parsed.categories
    }
    first = next(iter(parsed.annotations), None)
    is_other = first is not None and first.bbox is None and not bytes(first.segmentation)
    if is_other or len(images) < len(parsed.images):  # perhaps captions; an id is given twice
        return None
    return CocoDocument(file.path, images, names, parsed.annotations)


def write(images: Sequence[ImageRegions]) -> Files:
    """Render instances; an unlabelled box has no `category_id`, a detected one a `score`."""
    numbers = {label: index for index, label in enumerate(filter(None, labels_of(images)), 1)}
    records: list[object] = []
    annotations: list[object] = []
    for number, image in enumerate(images, 1):
        size = {"width": image.width, "height": image.height}
        records.append({"id": number, "file_name": image.name, **size})
        for region in image.regions:
            box = region.box
            category = {"category_id": numbers[region.label]} if region.label else {}
            bbox = [plain_number(value) for value in (box.x0, box.y0, box.width, box.height)]
            mask: dict[str, object] = {}
            area: float = plain_number(box.width * box.height)
            if region.mask is not None:
                mask["segmentation"], area = region.mask.as_rle(), region.mask.area
            ids = {"id": len(annotations) + 1, "image_id": number, **category}
            fields = {**ids, "bbox": bbox, "area": area, "iscrowd": 0, **mask}
            annotations.append(fields | score_field(region))
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    document = {"images": records, "annotations": annotations, "categories": categories}
    return {PurePosixPath(): json_text(document)}
