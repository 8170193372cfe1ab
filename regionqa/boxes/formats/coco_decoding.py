"""COCO files without faults, decoded in a fraction of the time and memory that `json` takes.

Every function returns None where there may be a fault; the caller then reads the file in the way
that finds the fault's place.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from regionqa.boxes.source import SourceFile


class CocoFields(msgspec.Struct, frozen=True, gc=False):
    """The fields of an annotation that boxes are read from, as decoded from a large file."""

    image_id: int | str
    bbox: tuple[float, float, float, float] | None = None
    category_id: int | str | None = None
    iscrowd: int | bool | None = None
    segmentation: msgspec.Raw = msgspec.Raw()

    def as_dict(self) -> dict[str, object]:
        """Return the fields that are given, as the JSON object they stand in."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        shape = bytes(self.segmentation)
        fields["segmentation"] = msgspec.json.decode(shape) if shape else None
        if self.bbox is not None:
            fields["bbox"] = list(self.bbox)
        return {name: value for name, value in fields.items() if value is not None}


class CocoImageFields(msgspec.Struct):
    """An element of `images`."""

    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class CocoCategoryFields(msgspec.Struct):
    """An element of `categories`."""

    id: int | str
    name: int | str | None = None


class CocoInstances(msgspec.Struct):
    """A document of instances."""

    images: list[CocoImageFields]
    annotations: list[CocoFields]
    categories: list[CocoCategoryFields] = []


Kind = TypeVar("Kind")


def _decoded(file: SourceFile, kind: type[Kind]) -> Kind | None:
    """Decode a file several times faster, and in a third of the memory, if it has no faults.

    None: it may have one, so it must be read in the way that finds its place.
    """
    try:
        return msgspec.json.decode(file.json, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _has_keys(
    file: SourceFile, annotations: Sequence[CocoFields], others: Mapping[str, int]
) -> bool:
    """Whether keys occur as often as they were read: more often, one was given twice."""
    content = file.json if isinstance(file.json, bytes) else file.json.encode()
    boxes = sum(each.bbox is not None for each in annotations)
    expected = {"image_id": len(annotations), "bbox": boxes, **others}
    return all(content.count(f'"{key}"'.encode()) == count for key, count in expected.items())


def decode_instances(file: SourceFile) -> CocoInstances | None:
    """Decode a document of instances."""
    parsed = _decoded(file, CocoInstances)
    if parsed is None:
        return None
    counts = {"images": 1, "annotations": 1, "file_name": len(parsed.images)}
    return parsed if _has_keys(file, parsed.annotations, counts) else None


def decode_results(file: SourceFile) -> list[CocoFields] | None:
    """Decode an array of results."""
    parsed = _decoded(file, list[CocoFields])
    return parsed if parsed is not None and _has_keys(file, parsed, {}) else None


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the search for reference cycles, which would pass over all boxes again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
