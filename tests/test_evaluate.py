"""What a reply counts as, and what the shares are shares of."""

import json
from pathlib import Path

import pytest
from PIL import Image

from regionqa.boxfiles import read_boxes
from regionqa.engine import Engine
from regionqa.errors import DataError, PictureError
from regionqa.evaluate import Recognition, named_class, recognise

NAMES = ("bear", "dog", "hot dog", "person", "teddy bear", "tv")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("a dog.", "dog"),
        ("A hot dog.", "hot dog"),
        ("it is a teddy bear", "teddy bear"),
        ("a doghouse.", None),
        ("two dogs.", None),
        ("", None),
        ("TV", "tv"),
    ],
)
def test_a_reply_counts_as_the_longest_name_in_it(reply: str, expected: str | None) -> None:
    assert named_class(reply, NAMES) == expected


def test_shares_are_of_what_they_say() -> None:
    result = Recognition({"person": (True,) * 6, "cat": (True, False), "dog": (False, False)})
    assert result.accuracy() == pytest.approx(70)
    assert result.accuracy(without="person") == pytest.approx(25)
    assert result.count() == 10
    assert result.count(without="person") == 4
    assert result.class_mean == pytest.approx(50)
    name, always = result.most_frequent()
    assert name == "person"
    assert always == pytest.approx(60)
    assert result.most_frequent(without="person")[1] == pytest.approx(50)


def coco(folder: Path, boxes: list[list[int]]) -> Path:
    """A COCO file about one grey photo, every box a cat."""
    Image.new("RGB", (100, 80), (90, 90, 90)).save(folder / "a.jpg")
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes],
    }
    (folder / "boxes.json").write_text(json.dumps(table))
    return folder / "boxes.json"


def test_small_boxes_are_not_asked_about(engine: Engine, tmp_path: Path) -> None:
    file = read_boxes(coco(tmp_path, [[0, 0, 40, 40], [5, 5, 31, 60], [10, 10, 90, 70]]))
    result = recognise(engine, file, tmp_path)
    assert result.count() == 2
    truth = engine.ask(tmp_path / "a.jpg", "what is this?", [(0, 0, 40, 40)]).text
    assert result.outcomes["cat"][0] == ("cat" in truth.split())


def test_nothing_to_ask_about_is_an_error(engine: Engine, tmp_path: Path) -> None:
    file = read_boxes(coco(tmp_path, [[0, 0, 10, 10]]))
    with pytest.raises(DataError, match="no labelled box of 32 pixels"):
        recognise(engine, file, tmp_path)
    with pytest.raises(PictureError, match="no such file"):
        recognise(engine, file, tmp_path / "elsewhere")
