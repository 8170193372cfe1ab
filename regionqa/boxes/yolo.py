"""The box files that are not JSON: Pascal VOC, YOLO and CSV, each read and written.

Reading takes a path and gives `BoxEntry`s; writing takes images and gives text. How a file's format
is recognised, and where files lie, is not known here.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from regionqa.boxes.fields import (
    BoxEntry,
    ImageRegions,
    bounding,
    excerpt,
    four,
    load_text,
    numbers_of,
)
from regionqa.errors import BoxFileError
from regionqa.regions import Box, BoxFormat, BoxUnits, WrittenBox

CLASS_NAMES = "classes.txt"


# ---- YOLO ----
def yolo_entry(path: Path, names: dict[int, str]) -> BoxEntry:
    """A YOLO file: a class number, then centre, width and height as fractions, on every line.

    names: what the class numbers mean; where it is empty the boxes stay unlabelled. A sixth number
    is a confidence and is passed over; a longer line is a polygon, which counts as the upright box
    around it.
    """
    return BoxEntry.of_file(path, "", _yolo_boxes(load_text(path), path, names))


def _yolo_boxes(text: str, path: Path, names: dict[int, str]) -> Iterator[WrittenBox]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        first, *rest = line.split()
        label = _class_name(first, names, where) or None
        values = numbers_of(rest, where)
        if len(values) > 5:
            corners = bounding([*zip(values[::2], values[1::2], strict=False)], where)
            yield WrittenBox(corners, BoxFormat.xyxy, BoxUnits.fraction, label)
        else:
            yield WrittenBox(four(values[:4], where), BoxFormat.cxcywh, BoxUnits.fraction, label)


def _class_name(text: str, names: dict[int, str], where: str) -> str:
    if not re.fullmatch(r"\d{1,9}(\.0*)?", text):  # numpy's savetxt writes classes as 0.0
        raise BoxFileError(
            f"{where}: begins with {excerpt(text)}, but a class number is due; "
            "a YOLO line is: class cx cy width height"
        )
    number = int(float(text))
    if names and number not in names:
        raise BoxFileError(
            f"{where}: the class {number} has no name; add it to {CLASS_NAMES} or data.yaml"
        )
    return names.get(number, "")


def class_names(folder: Path, top: Path) -> dict[int, str]:
    """The names of the YOLO classes in a folder of labels; empty where none are given.

    They stand in classes.txt, or under `names` in data.yaml: in the folder, above it up to `top`,
    or at most two above that, for a dataset keeps its labels in `labels/train`.
    """
    inner = folder.relative_to(top)
    innermost = top.resolve() / inner
    for place in (innermost, *innermost.parents[: len(inner.parts) + 2]):
        if (path := place / CLASS_NAMES).is_file():
            return dict(enumerate(map(str.strip, load_text(path).removesuffix("\n").split("\n"))))
        if (path := place / "data.yaml").is_file():
            return _yaml_names(load_text(path), path)
    return {}


def _yaml_names(text: str, path: Path) -> dict[int, str]:
    """The names in data.yaml: `names: [a, b]`, or lines `- a`, or lines `0: a` below `names:`."""
    text = re.sub(r"(^|[ \t])#.*", "", text, flags=re.MULTILINE)
    start = re.search(r"^names:[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
    if start is None:
        return {}
    if inline := re.fullmatch(r"\[(.*)\]", start[1]):
        items = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)\s*,?""", inline[1])
        return dict(enumerate(map(_unquoted, items)))
    names: dict[int, str] = {}
    for line in filter(str.strip, text[start.end() :].splitlines()):
        item = re.match(r"\s*(?:-|(\d+):)\s+(.+)", line)
        if item is None:
            break
        names[int(item[1] or len(names))] = _unquoted(item[2])
    if start[1] or not names:
        raise BoxFileError(f"{path}: 'names' is not a simple list; write them into {CLASS_NAMES}")
    return names


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")


def yolo_writer(labels: Sequence[str]) -> Callable[[ImageRegions], str]:
    """What writes the lines of one image; labels: all there are, in their numbers' order."""
    numbers = {label: number for number, label in enumerate(labels)}

    def text_of(image: ImageRegions) -> str:
        return "".join(
            f"{numbers[region.label or '']} {_yolo_numbers(region.box, image)}\n"
            for region in image.regions
        )

    return text_of


def _yolo_numbers(box: Box, image: ImageRegions) -> str:
    centre = ((box.x0 + box.x1) / 2 / image.width, (box.y0 + box.y1) / 2 / image.height)
    extent = (box.width / image.width, box.height / image.height)
    return " ".join(f"{value:.9f}" for value in (*centre, *extent))
