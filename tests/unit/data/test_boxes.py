"""Boxes of every format as training data."""

import json
from pathlib import Path

import pytest
from PIL import Image

from regionqa.boxes.entries import ImageRegions
from regionqa.boxes.files import FORMATS, write_boxes
from regionqa.data.convert import write_training_data
from regionqa.data.files import read_training_data
from regionqa.errors import DataError
from regionqa.regions import Box, BoxFormat, Region

SUFFIXES = {"csv": ".csv", "cvat": ".xml", "requests": ".jsonl", "huggingface": ".jsonl"}
FOLDERS = ("labelme", "voc", "yolo")
BLOB = Region(Box(10, 20, 90, 80), "blob")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a.jpg and b.jpg, 100 x 100 pixels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("L", (100, 100)).save(folder / name)
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_boxes_is_training_data(tmp_path: Path, images: Path, format: str) -> None:
    path = tmp_path / "boxes" / ("" if format in FOLDERS else f"x{SUFFIXES.get(format, '.json')}")
    path.parent.mkdir(exist_ok=True)
    write_boxes(path, [ImageRegions("a.jpg", 100, 100, (BLOB,))], format)
    data = read_training_data(path, images)
    assert data.problems == ()
    (record,) = data.records
    assert record.image.resolve() == images / "a.jpg"
    assert record.regions[0].box.xyxy == pytest.approx(BLOB.box.xyxy)
    assert record.regions[0].label == "blob"
    assert (record.turns[0].question, record.turns[0].answer) == ("what is this?", "a blob.")
    assert len(data.sha256) == 64
    write_training_data(tmp_path / "mine.jsonl", data.records)
    assert read_training_data(tmp_path / "mine.jsonl").records[0].turns == record.turns


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_labels_of_a_published_layout_find_their_images(tmp_path: Path) -> None:
    (tmp_path / "images/train").mkdir(parents=True)
    Image.new("L", (100, 100)).save(tmp_path / "images/train/a.png")
    save(tmp_path / "data.yaml", "names: [cat]\n")
    save(tmp_path / "labels/train/a.txt", "0 .5 .5 .2 .2\n")
    for path in (tmp_path, tmp_path / "labels", tmp_path / "labels/train"):
        (record,) = read_training_data(path).records
        assert record.image.name == "a.png"
        assert record.turns[0].answer == "a cat."


def test_problems_name_the_image_and_the_box(tmp_path: Path, images: Path) -> None:
    rows = ["a.jpg,10,10,20,20,", "a.jpg,10,10,20,20,cat", "c.jpg,1,1,9,9,cat", "b.jpg,1,1,x,9,cat"]
    path = save(tmp_path / "l.csv", "image,x0,y0,x1,y1,label\n" + "\n".join(rows))
    data = read_training_data(path, images)
    assert [record.where for record in data.records] == ["l.csv: a.jpg: box 2"]
    assert [str(problem).split(";")[0] for problem in data.problems] == [
        "l.csv: a.jpg: box 1: has no label, so there is no answer to learn",
        f"l.csv: c.jpg: {images}/c.jpg: no such file",
        f"l.csv: b.jpg: box in line 5 of {path}: 'x' is not a finite number",
    ]


def test_what_is_left_out_is_told(tmp_path: Path, images: Path) -> None:
    shapes = [
        {"label": "x", "shape_type": "point", "points": [[1, 1]]},
        {"label": "x", "shape_type": "rectangle", "points": [[1, 1], [30, 30]]},
    ]
    path = save(tmp_path / "a.json", {"imagePath": "a.jpg", "shapes": shapes})
    data = read_training_data(path, images)
    assert (len(data.records), len(data.left_out)) == (1, 1)
    assert data.remarks == (f"{path}: points left out: 1, at shapes[0] (point) of {path}",)
    assert data.title == "LabelMe"


def test_the_user_may_say_what_the_numbers_mean(tmp_path: Path, images: Path) -> None:
    path = save(tmp_path / "l.json", {"a.jpg": [{"box": [10, 10, 20, 30], "label": "x"}]})
    (record,) = read_training_data(path, images, format=BoxFormat.xywh).records
    assert record.regions[0].box.xyxy == (10, 10, 30, 40)


def test_boxes_of_no_image_are_refused(tmp_path: Path, images: Path) -> None:
    path = save(tmp_path / "q.json", {"boxes": [[1, 2, 3, 4]]})
    with pytest.raises(DataError, match="names no image that its boxes belong to"):
        read_training_data(path, images)


def test_answers_with_labels_are_training_data(tmp_path: Path, images: Path) -> None:
    region = {"id": 1, "box": [1, 2, 30, 40], "label": "cup"}
    line = {"image": "a.jpg", "regions": [region], "question": "what?", "answer": "a mug."}
    data = read_training_data(save(tmp_path / "out.jsonl", json.dumps(line) + "\n"), images)
    assert [record.turns[0].answer for record in data.records] == ["a cup."]
