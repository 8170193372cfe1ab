"""YOLO: a text file of labels per image, with class names in classes.txt or data.yaml."""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import yaml

from regionqa.boxes.entries import (
    BoxContents,
    BoxEntry,
    Convention,
    Files,
    ImageRegions,
    SourceFile,
    file_per_image,
    labels_of,
)
from regionqa.boxes.fields import bounding, excerpt, four, load_text, numbers_of
from regionqa.errors import BoxFileError
from regionqa.regions import Box, BoxFormat, BoxUnits, WrittenBox

TITLE = "YOLO"
IMAGE_SUFFIX = ".txt"
CLASS_NAMES = "classes.txt"
DATASET = "data.yaml"


def recognise(file: SourceFile) -> bool:
    """Whether the file has the suffix of YOLO's labels."""
    return file.kind == ".txt"


def read(files: Iterable[SourceFile], convention: Convention) -> BoxContents:
    """Read lines of a class number, then centre, width and height as fractions of the image.

    A sixth number is a confidence, which is not used. A longer line is a polygon, read as the
    upright box around it. Boxes are unlabelled if there are no class names.
    """
    names_in = functools.cache(class_names)
    return BoxContents(tuple(_entry(file, names_in(file.path.parent, file.top)) for file in files))


def _entry(file: SourceFile, names: dict[int, str]) -> BoxEntry:
    return BoxEntry.of_file(file, "", _boxes(file.text, file.path, names))


def _boxes(text: str, path: Path, names: dict[int, str]) -> Iterator[WrittenBox]:
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
            f"{where}: begins with {excerpt(text)}, not with a class number; "
            "a YOLO line is: class cx cy width height"
        )
    number = int(float(text))
    if names and number not in names:
        raise BoxFileError(
            f"{where}: the class {number} has no name; add it to {CLASS_NAMES} or {DATASET}"
        )
    return names.get(number, "")


# ---- class names ----


def class_names(folder: Path, top: Path) -> dict[int, str]:
    """Find the class names for a folder of labels; empty if there are none.

    classes.txt, or `names` in data.yaml, is looked for in the folder, above it up to `top`, and at
    most two folders above that, because datasets keep their labels in `labels/train`.
    """
    inner = folder.relative_to(top)
    innermost = top.resolve() / inner
    for place in (innermost, *innermost.parents[: len(inner.parts) + 2]):
        if (path := place / CLASS_NAMES).is_file():
            return dict(enumerate(map(str.strip, load_text(path).removesuffix("\n").split("\n"))))
        if (path := place / DATASET).is_file():
            return _names_of_dataset(path)
    return {}


def _names_of_dataset(path: Path) -> dict[int, str]:
    try:
        # BaseLoader keeps every scalar as text: a class called `no` or `1` stays what it is
        document = yaml.load(load_text(path), yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} of {path}" if mark else f"{path}"
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise BoxFileError(f"{where}: is not valid YAML: {problem}") from None
    if not isinstance(document, dict) or "names" not in document:
        return {}
    names = document["names"]
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not all(map(_is_class, numbered.items())):
        raise BoxFileError(
            f"{path}: 'names' is {excerpt(names)}; write a list of class names, "
            f"or put them into {CLASS_NAMES}"
        )
    return {int(number): name for number, name in numbered.items()}


def _is_class(item: tuple[object, object]) -> bool:
    number, name = item
    return isinstance(name, str) and re.fullmatch(r"\d{1,9}", str(number)) is not None


# ---- writing ----


def write(images: Sequence[ImageRegions]) -> Files:
    """Render a file per image, and classes.txt with the labels in the order of their numbers."""
    labels = labels_of(images)
    numbers = {label: number for number, label in enumerate(labels)}

    def text_of(image: ImageRegions) -> str:
        return "".join(
            f"{numbers[region.label or '']} {_fractions(region.box, image)}\n"
            for region in image.regions
        )

    names = {PurePosixPath(CLASS_NAMES): "".join(f"{name}\n" for name in labels)}
    return names | file_per_image(images, IMAGE_SUFFIX, text_of)


def _fractions(box: Box, image: ImageRegions) -> str:
    centre = ((box.x0 + box.x1) / 2 / image.width, (box.y0 + box.y1) / 2 / image.height)
    extent = (box.width / image.width, box.height / image.height)
    return " ".join(f"{value:.9f}" for value in (*centre, *extent))
