"""COCO: images, annotations and categories of a JSON document, read and written.

The only reader of COCO documents: asking, evaluation and training all go through `CocoDocument`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    SourceFile,
    labels_of,
)
from regionqa.boxes.fields import (
    four,
    json_text,
    load_json,
    member,
    optional_text,
    plain_number,
    size_of,
)
from regionqa.errors import BoxFileError
from regionqa.regions import BoxFormat, WrittenBox

TITLE = "COCO"
IMAGE_SUFFIX = None


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
        return cls.of(load_json(path), path)

    def annotations(self) -> Iterator["CocoAnnotation"]:
        """Iterate over the annotations in file order; each is checked where its fields are used."""
        return (CocoAnnotation(self, index, each) for index, each in enumerate(self.elements))


@dataclass(frozen=True, slots=True)
class CocoAnnotation:
    """An element of `annotations`; its properties raise BoxFileError where a field is wrong."""

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
    def box(self) -> WrittenBox:
        """`bbox`, in left, top, width, height in pixels; BoxError if it is malformed."""
        label = self.document.categories.get(self.category_id or "") or None
        values = four(member(self.fields, "bbox", object, self.where), self.where)
        return WrittenBox(values, BoxFormat.xywh, label=label, is_crowd=self.is_crowd)

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
    """Whether the file is a COCO document."""
    return file.kind == ".json" and is_coco(file.document)


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read instances; crowds are kept and marked."""
    entries: list[BoxEntry] = []
    classes: list[str] = []
    for file in files:
        document = CocoDocument.of(file.document, file.path)
        found: dict[str, list[CocoAnnotation]] = {number: [] for number in document.images}
        for annotation in document.annotations():
            found[annotation.image.id].append(annotation)
        entries += (
            BoxEntry.of(
                image.name,
                (annotation.box for annotation in found[number]),
                size=size_of(image.width, image.height),
            )
            for number, image in document.images.items()
        )
        classes += filter(None, document.categories.values())
    return BoxContents(tuple(entries), classes=tuple(classes))


def write(images: Sequence[ImageRegions]) -> Files:
    """Render instances; an unlabelled box has no `category_id`."""
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
            area = plain_number(box.width * box.height)
            ids = {"id": len(annotations) + 1, "image_id": number, **category}
            annotations.append({**ids, "bbox": bbox, "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": label} for label, number in numbers.items()]
    document = {"images": records, "annotations": annotations, "categories": categories}
    return {PurePosixPath(): json_text(document)}
