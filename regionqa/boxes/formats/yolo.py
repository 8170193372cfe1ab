"""YOLO: a text file of labels per image, with class names in classes.txt or data.yaml.

Lines have no header, so their numbers are told apart by what data.yaml says and by what all lines
of a folder allow: a box, perhaps with confidence and track id; a polygon, which four corners are
too; or a box with key points. A line that may still mean two boxes is refused.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    file_per_image,
    labels_of,
)
from regionqa.boxes.fields import excerpt, four, numbers_of
from regionqa.boxes.remarks import LeftOut
from regionqa.boxes.shapes import FLAT, bounding, has_area, pairs
from regionqa.boxes.source import SourceFile
from regionqa.boxes.unreadable import other_labels
from regionqa.boxes.yolo_names import CLASS_NAMES, DATASET, YoloDataset, find_dataset
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Box, BoxFormat, BoxUnits, Region, WrittenBox

TITLE = "YOLO"
IMAGE_SUFFIX = ".txt"
OWN_CONVENTION = True
ABSENT_IS_EMPTY = True
_BOX = 4
_MIN_POLYGON = 6
_CORNERS = 8
_LONG = 6
"""Numbers from which on a line may mean two things."""
_TASKS = "task: detect, segment, pose or obb"


class _Shape(StrEnum):
    """What a line describes."""

    box = "a box"
    polygon = "a polygon"
    keypoints = "a box with key points"


class _Extras(StrEnum):
    """What stands behind the shape."""

    none = ""
    confidence = " with confidence"
    track = " with track id"
    both = " with confidence and track id"

    @property
    def length(self) -> int:
        """How many numbers they are."""
        return {"": 0, _Extras.both.value: 2}.get(self.value, 1)

    def fit(self, values: Sequence[float]) -> bool:
        """Whether the last numbers can be these: a track id is a whole number from 1 on."""
        rest = list(values[len(values) - self.length :])
        if self in (_Extras.track, _Extras.both):
            track = rest.pop()
            if track < 1 or not track.is_integer():
                return False
        return all(0 <= value <= 1 for value in rest)


@dataclass(frozen=True)
class _Layout:
    """A meaning that the numbers of a line may have."""

    shape: _Shape
    extras: _Extras
    keypoints: int = 0
    """How many numbers the key points are, which is the same in all lines."""

    def __str__(self) -> str:
        return f"{self.shape}{self.extras}"


@dataclass(frozen=True)
class _Line:
    where: str
    label: str | None
    values: tuple[float, ...]


def recognise(file: SourceFile) -> bool:
    """Whether the file has the suffix of YOLO's labels, or begins with such a line."""
    if file.kind == ".txt":
        return True
    first = next((line for line in file.text.split("\n") if line.strip()), "").split()
    if file.kind or len(first) < 1 + _BOX or not first[0].isdecimal():
        return False
    try:
        return all(math.isfinite(float(text)) for text in first)
    except ValueError:
        return False


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read lines of a class number, then centre, width and height as fractions of the image.

    Boxes are unlabelled if there are no class names. A polygon is read as the upright box around
    it. Confidences, track ids and key points are not used. An image of a folder without a file has
    no boxes.
    """
    everything = list(files)
    datasets: dict[Path, YoloDataset] = {}
    entries: list[BoxEntry | None] = []
    layouts: dict[Path | None, set[_Layout]] = {}
    left_out: list[LeftOut] = []
    for file in everything:
        if file.path.parent not in datasets:
            datasets[file.path.parent] = find_dataset(file.path.parent, file.top)
        dataset = datasets[file.path.parent]
        # not the file itself, which would keep the text of every file
        source = file if file.is_stream else SourceFile(file.path, file.top)
        lines = _long_lines(source, dataset)
        for line in lines:
            found = set(_layouts(line.values, dataset))
            layouts[dataset.path] = layouts.get(dataset.path, found) & found
        boxes = _boxes(source, dataset, None, left_out)
        entries.append(None if lines else BoxEntry.of_file(file, "", boxes))
    for place, file in enumerate(everything):
        if entries[place] is None:
            dataset = datasets[file.path.parent]
            boxes = _boxes(file, dataset, layouts[dataset.path], left_out)
            entries[place] = BoxEntry.of_file(file, "", boxes)
            vars(file).pop("content", None)
            vars(file).pop("text", None)
    return BoxContents(tuple(entry for entry in entries if entry), tuple(left_out))


def _long_lines(file: SourceFile, dataset: YoloDataset) -> list[_Line]:
    """Return the lines that may mean two things, without those that mean nothing."""
    if not any(len(line.split()) > _LONG for line in file.text.split("\n")):
        return []
    found = list[_Line]()
    lines = _lines(file, dataset)
    while True:
        try:
            line = next(lines)
        except StopIteration:
            return found
        except (BoxError, BoxFileError):  # told when the boxes are read
            return found
        if len(line.values) >= _LONG:
            found.append(line)


def _lines(file: SourceFile, dataset: YoloDataset) -> Iterator[_Line]:
    for number, text in enumerate(file.text.split("\n"), 1):
        if text.strip():
            where = f"line {number} of {file.path}"
            first, *rest = text.split()
            label = _class_name(first, rest, dataset, where) or None
            yield _Line(where, label, tuple(numbers_of(rest, where)))


def _class_name(text: str, rest: list[str], dataset: YoloDataset, where: str) -> str:
    number = dataset.class_number(text)
    if number is None:
        advice = other_labels([text, *rest]) or "a YOLO line is: class cx cy width height"
        raise BoxFileError(
            f"{where}: begins with {excerpt(text)}, not with a class number; {advice}"
        )
    if dataset.names and number not in dataset.names:
        raise BoxFileError(
            f"{where}: the class {number} has no name; add it to {CLASS_NAMES} or {DATASET}"
        )
    return dataset.names.get(number, "")


def _layouts(values: Sequence[float], dataset: YoloDataset) -> Iterator[_Layout]:
    """Yield every meaning that the numbers may have."""
    for extras in sorted(_Extras, key=lambda each: -each.length):
        count = len(values) - extras.length
        if count < _BOX or not extras.fit(values):
            continue
        if count == _BOX and dataset.task in (None, "detect"):
            yield _Layout(_Shape.box, extras)
            if dataset.task == "detect":
                return
        # a little outside the image is allowed
        if not all(-1 < value <= 2 for value in values[:count]):
            continue
        is_even = count >= _MIN_POLYGON and count % 2 == 0 and 2 not in values[:count]
        if is_even and dataset.task != "pose" and (dataset.task != "obb" or count == _CORNERS):
            yield _Layout(_Shape.polygon, extras)
        if dataset.may_be_keypoints(count - _BOX, len(values)):
            yield _Layout(_Shape.keypoints, extras, count - _BOX)


def _boxes(
    file: SourceFile,
    dataset: YoloDataset,
    layouts: set[_Layout] | None,
    left_out: list[LeftOut],
) -> Iterator[WrittenBox]:
    for line in _lines(file, dataset):
        if len(line.values) < _LONG:
            values = four(line.values[:_BOX], line.where)
            yield WrittenBox(values, BoxFormat.cxcywh, BoxUnits.fraction, line.label)
        else:
            yield from _long_box(line, dataset, layouts or set(), left_out)


def _long_box(
    line: _Line, dataset: YoloDataset, layouts: set[_Layout], left_out: list[LeftOut]
) -> Iterator[WrittenBox]:
    """Read a line by all meanings that the folder leaves it, which must be the same box."""
    own = set(_layouts(line.values, dataset))
    possible = own & layouts or own
    found: dict[WrittenBox | None, _Layout] = {}
    for layout in sorted(possible, key=str):
        found.setdefault(_placed(line, layout), layout)
    count = len(line.values)
    if not found:
        raise BoxError(
            f"box in {line.where}: {count} numbers are none of {_describe(dataset)}; mend the line"
        )
    if len(found) > 1:
        meanings = " or ".join(str(layout) for layout in found.values())
        add = _TASKS
        if any(layout.shape is _Shape.keypoints for layout in found.values()):
            add += ", and kpt_shape: [N, 2] or [N, 3] for key points"
        raise BoxError(
            f"box in {line.where}: {count} numbers may be {meanings}; state which in {DATASET} "
            f"beside the labels, with {add}"
        )
    (box,) = found
    if box is None:
        left_out.append(LeftOut(line.where, FLAT))
    else:
        yield box


def _describe(dataset: YoloDataset) -> str:
    if dataset.keypoints:
        count, size = dataset.keypoints
        return f"a box with {count} x {size} numbers of key points (kpt_shape in {dataset.path})"
    if dataset.task == "obb":
        return f"four corners (task in {dataset.path})"
    return "a box or a polygon, as fractions of the image"


def _placed(line: _Line, layout: _Layout) -> WrittenBox | None:
    """Return the box of a line under a meaning; None for a polygon without area."""
    if layout.shape is not _Shape.polygon:
        values = four(line.values[:_BOX], line.where)
        return WrittenBox(values, BoxFormat.cxcywh, BoxUnits.fraction, line.label)
    count = len(line.values) - layout.extras.length
    points = pairs(line.values[:count], line.where)
    if not has_area(points):
        return None
    return WrittenBox(bounding(points, line.where), BoxFormat.xyxy, BoxUnits.fraction, line.label)


# ---- writing ----


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a file per image, and classes.txt with the labels in the order of their numbers."""
    labels = labels_of(images)
    numbers = {label: number for number, label in enumerate(labels)}

    def text_of(image: ImageRegions) -> str:
        return "".join(
            f"{numbers[region.label or '']} {_fractions(region.box, image)}{_confidence(region)}\n"
            for region in image.regions
        )

    names = {PurePosixPath(CLASS_NAMES): "".join(f"{name}\n" for name in labels)}
    return names | file_per_image(images, IMAGE_SUFFIX, text_of)


def _confidence(region: Region) -> str:
    return "" if region.score is None else f" {region.score:g}"


def _fractions(box: Box, image: ImageRegions) -> str:
    centre = ((box.x0 + box.x1) / 2 / image.width, (box.y0 + box.y1) / 2 / image.height)
    extent = (box.width / image.width, box.height / image.height)
    return " ".join(f"{value:.9f}" for value in (*centre, *extent))
