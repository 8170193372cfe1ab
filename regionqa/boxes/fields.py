"""What the formats of box files have in common: entries, and how text and numbers are read.

A file can be wrong in two ways. What leaves it unreadable (a missing key, a reference to nothing)
is a BoxFileError and ends the run. A box whose four numbers are wrong spoils its own image only:
it stays behind as `Entry.defect`. This module knows no format, and no size of an image: boxes stay
in the convention they were written in.
"""

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self, TypeVar

from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Region, WrittenBox, four_numbers

Numbers = tuple[float, float, float, float]
Point = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class BoxEntry:
    """What a file says about one image."""

    name: str | None
    """The image as the file names it; None where the boxes are for any image."""
    boxes: tuple[WrittenBox, ...] = ()
    """Its boxes in file order; empty where there is a defect."""
    defect: str | None = None
    """What is wrong with the first malformed box, as one line."""
    by_stem: bool = False
    """Whether `name` lacks the image's suffix, as the names of YOLO's files do."""

    @classmethod
    def of(cls, name: str | None, boxes: Iterable[WrittenBox], *, by_stem: bool = False) -> Self:
        """The entry of an image whose boxes are read now; a BoxError becomes its defect."""
        try:
            return cls(name, tuple(boxes), by_stem=by_stem)
        except BoxError as error:
            return cls(name, defect=str(error), by_stem=by_stem)

    @classmethod
    def of_file(cls, path: Path, named: str, boxes: Iterable[WrittenBox]) -> Self:
        """The entry of a file about one image: the image it names, else one of its own stem."""
        return cls.of(named or path.stem, boxes, by_stem=not PurePosixPath(named).suffix)


@dataclass(frozen=True)
class ImageRegions:
    """An image and its regions, to be written to a box file."""

    name: str
    """The image's path or file name, as the box file is to name it."""
    width: int
    """In pixels, as displayed."""
    height: int
    """In pixels, as displayed."""
    regions: tuple[Region, ...]
    """In pixels of the image as displayed; there may be none."""


def labels_of(images: Sequence[ImageRegions]) -> list[str]:
    """Every label of the images once, in order of appearance; empty text for unlabelled ones."""
    return list(dict.fromkeys(r.label or "" for image in images for r in image.regions))


def plain_number(value: float) -> float | int:
    """The same number, without `.0` where it is whole."""
    return int(value) if float(value).is_integer() else float(value)


def load_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, its lines ended by a line feed."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BoxFileError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None


def load_json(path: Path) -> object:
    """The document of a JSON file; NaN is let through, for it spoils one box and not the file."""
    text = load_text(path)
    if not text.strip():
        raise BoxFileError(f"{path}: is empty; write at least {{}}")
    try:
        return parse_json(text)
    except ValueError as error:
        raise BoxFileError(f"{path}: is not JSON that can be read: {error}") from None


def parse_json(text: str) -> object:
    """The document of a JSON text; ValueError also for a key given twice and for absurd depth."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):  # the later one would silently replace the boxes of the earlier
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice; merge the two")
    return record


def member(record: object, key: str, kind: type[T], where: str) -> T:
    """record[key] of a JSON object, which must be there and of this kind."""
    if not isinstance(record, dict) or key not in record:
        raise BoxFileError(f"{where}: has no {key!r}; add it, or export the file again")
    value = record[key]
    if not isinstance(value, kind):
        raise BoxFileError(f"{where}: {key!r} is {excerpt(value)}, but a {kind.__name__} is due")
    return value


def optional_text(record: object, key: str, where: str) -> str:
    """The text, or whole number, under a key of a JSON object; empty where there is none."""
    value = record.get(key) if isinstance(record, dict) else None
    if value is None:
        return ""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise BoxFileError(f"{where}: {key!r} is {excerpt(value)}, but text is due")
    return str(value).strip()


def excerpt(value: object) -> str:
    """The value as it was written, cut to what fits an error's one line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def four(values: object, where: str) -> Numbers:
    """The values as a box's four finite numbers; BoxError, saying where, otherwise."""
    return four_numbers(values, f"in {where}")


def numbers_of(texts: Iterable[str], where: str) -> list[float]:
    """The texts as finite numbers; BoxError, saying where, for the first that is none."""
    numbers = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BoxError(f"box in {where}: {excerpt(text)} is not a finite number; write one")
        numbers.append(number)
    return numbers


def points_of(values: Iterable[object], where: str) -> list[Point]:
    """Pairs of finite numbers from JSON; BoxError, saying where, for anything else."""
    points = []
    for pair in values:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_finite, pair)):
            raise BoxError(f"box in {where}: the point {excerpt(pair)} is not two finite numbers")
        points.append((float(pair[0]), float(pair[1])))
    return points


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN, and exact for a huge whole number


def bounding(points: Sequence[Point], where: str) -> Numbers:
    """The smallest upright rectangle around two or more points, xyxy in their units."""
    if len(points) < 2:
        raise BoxError(f"box in {where}: {len(points)} points span no box; give two or more")
    xs, ys = zip(*points, strict=True)
    return four((min(xs), min(ys), max(xs), max(ys)), where)
