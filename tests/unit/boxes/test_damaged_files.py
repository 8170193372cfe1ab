"""Damaged box files: truncated, corrupted or reordered, they never give other boxes."""

import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regionqa.boxes.entries import ImageRegions
from regionqa.boxes.files import FORMATS, read_boxes, write_boxes
from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import Box, Region

FOLDERS = ("labelme", "voc", "yolo")
LINES = {"csv": ".csv", "requests": ".jsonl", "huggingface": ".jsonl", "yolo": ".txt"}
"""Formats of lines, which do not say how many there are."""
SUFFIXES = {**LINES, "cvat": ".xml"}
Boxes = Mapping[str, list[tuple[tuple[float, ...], str | None]] | None]
IMAGES = [
    ImageRegions(
        name,
        200,
        100,
        tuple(
            Region(Box(10 + at, 20, 90.5 + at, 80), label)
            for at, label in enumerate(("cat", "dog", "ant"))
        ),
    )
    for name in ("a.jpg", "b.jpg", "c.jpg")
]


def written(folder: Path, format: str) -> tuple[Path, list[Path]]:
    """Write the images; the path to read, and the files to damage."""
    path = folder / ("boxes" if format in FOLDERS else f"boxes{SUFFIXES.get(format, '.json')}")
    write_boxes(path, IMAGES, format)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return path, [file for file in files if file.name != "classes.txt"]


def boxes_of(path: Path) -> Boxes:
    """Boxes by image, sorted; None for an image that fails. BoxFileError if the file does."""
    found = read_boxes(path)
    boxes: dict[str, list[tuple[tuple[float, ...], str | None]] | None] = {}
    for image in IMAGES:
        try:
            read = found.boxes_for(image.name) or ()
            regions = [box.resolve(image.width, image.height) for box in read]
            boxes[image.name] = sorted(
                (tuple(round(number, 3) for number in region.box.xyxy), region.label)
                for region in regions
            )
        except BoxError as error:
            assert "\n" not in str(error)
            boxes[image.name] = None
    return boxes


def is_part_of(some: Boxes, everything: Boxes) -> bool:
    """Whether no image has a box that it does not have."""
    return all(
        box in (everything[image] or []) for image, boxes in some.items() for box in boxes or []
    )


ORIGINAL: dict[str, tuple[dict[str, bytes], Boxes]] = {}


def original(format: str) -> tuple[dict[str, bytes], Boxes]:
    """The contents of the files of a format by name, and the boxes in them; written once."""
    if format not in ORIGINAL:
        with tempfile.TemporaryDirectory() as folder:
            path, _ = written(Path(folder), format)
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            contents = {
                file.relative_to(folder).as_posix(): file.read_bytes()
                for file in files
                if file.is_file()
            }
            ORIGINAL[format] = contents, boxes_of(path)
    return ORIGINAL[format]


def read_damaged(format: str, name: str, content: bytes) -> Boxes | None:
    """The boxes when one file has this content; None if the file is refused."""
    with tempfile.TemporaryDirectory() as folder:
        for each, text in original(format)[0].items():
            path = Path(folder, each)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if each == name else text)
        first = next(iter(original(format)[0])).partition("/")[0]
        try:
            return boxes_of(Path(folder, first))
        except BoxFileError as error:
            assert "\n" not in str(error)
            return None


def damaged_name(format: str, number: int) -> str:
    names = [name for name in original(format)[0] if not name.endswith("classes.txt")]
    return names[number % len(names)]


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in LINES])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_truncated_document_is_refused(format: str, data: st.DataObject) -> None:
    name = damaged_name(format, data.draw(st.integers(0, 9)))
    content = original(format)[0][name]
    end = data.draw(st.integers(0, len(content.rstrip()) - 1))
    found = read_damaged(format, name, content[:end])
    if format in FOLDERS and found is not None:  # only its own image may fail
        assert is_part_of(found, original(format)[1])
    else:
        assert found is None


@pytest.mark.parametrize("format", LINES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_truncated_lines_give_no_other_boxes(format: str, data: st.DataObject) -> None:
    """A file of lines does not say how many it has, nor where its last word ends."""
    name = damaged_name(format, data.draw(st.integers(0, 9)))
    content = original(format)[0][name]
    ends = [at + 1 for at, byte in enumerate(content) if byte in b" \n,"]
    found = read_damaged(format, name, content[: data.draw(st.sampled_from(ends))].rstrip(b" ,"))
    if found is not None:
        everything = original(format)[1]
        for image, boxes in found.items():
            positions = [box for box, _ in everything[image] or []]
            assert all(box in positions for box, _ in boxes or [])


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_junk_in_the_place_of_a_number_gives_no_other_boxes(
    format: str, data: st.DataObject
) -> None:
    name = damaged_name(format, data.draw(st.integers(0, 9)))
    content = original(format)[0][name].decode()
    number = data.draw(st.sampled_from(["90.5", "91.5", "92.5", "80"]))
    junk = data.draw(st.sampled_from(["x", "nan", "1e999", "[]", "null", "--1", '"9']))
    at = content.find(number)
    if at >= 0:
        damaged = content[:at] + junk + content[at + len(number) :]
        found = read_damaged(format, name, damaged.encode())
        assert found is None or is_part_of(found, original(format)[1])


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_corrupted_bytes_are_read_or_refused(format: str, data: st.DataObject) -> None:
    """With an error of box files in one line, and nothing else."""
    name = damaged_name(format, data.draw(st.integers(0, 9)))
    content = bytearray(original(format)[0][name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_damaged(format, name, bytes(content))


def shuffled(content: bytes, format: str, rng: random.Random) -> bytes:
    """The same content in another order, wherever order means nothing."""
    text = content.decode()
    if format == "cvat":
        root = ElementTree.fromstring(text)
        for parent in (root, *root):
            children = [*parent]
            rng.shuffle(children)
            parent[:] = children
        return ElementTree.tostring(root)
    if format == "voc":
        root = ElementTree.fromstring(text)
        children = [*root]
        rng.shuffle(children)
        root[:] = children
        return ElementTree.tostring(root)
    if format in LINES:
        header, *lines = (
            text.splitlines(keepends=True)
            if format == "csv"
            else ["", *text.splitlines(keepends=True)]
        )
        rng.shuffle(lines)
        return "".join((header, *lines)).encode()
    return json.dumps(reordered(json.loads(text), rng)).encode()


def reordered(value: object, rng: random.Random) -> object:
    """A JSON value with its keys, and its lists of objects, in another order."""
    if isinstance(value, dict):
        items = [(key, reordered(each, rng)) for key, each in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        values = [reordered(each, rng) for each in value]
        rng.shuffle(values)
        return values
    return value


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=6, deadline=None)
@given(number=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_order_makes_no_difference(format: str, number: int, seed: int) -> None:
    name = damaged_name(format, number)
    content = shuffled(original(format)[0][name], format, random.Random(seed))
    assert read_damaged(format, name, content) == original(format)[1]


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in FOLDERS])
def test_stray_bytes_are_refused_wherever_they_stand(format: str) -> None:
    """Also in keys that are passed over, and in shapes that are read when they are needed."""
    name = damaged_name(format, 0)
    content = original(format)[0][name]
    for place in [at for at, byte in enumerate(content) if byte in b"ag"][::7]:
        assert read_damaged(format, name, content[:place] + b"\xf8" + content[place:]) is None
    if format == "coco":
        mask = content.replace(b'"bbox"', b'"segmentation": {"counts": "\xf8"}, "bbox"')
        assert read_damaged(format, name, mask) is None
