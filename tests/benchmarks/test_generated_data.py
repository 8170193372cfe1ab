"""The data of generated_data.py: sources by rules, and mixtures of equal parts."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("resource")
from generated_data import (
    ASKED,
    SOURCES,
    attributes,
    captions,
    held_out_questions,
    relations,
    write_mixture,
    write_sources,
)

from helpers.evaluation_files import coco, grey
from regionqa.data.files import read_training_data
from regionqa.data.mixtures.reading import read_mixture

NAMES = [f"{number:012}.jpg" for number in (1, 2, 3)]
CLASSES = ("person", "bottle", "book")
BOXES = [
    (image, (x, 20.0 * n, x + 60.0 + 8 * n, 20.0 * n + 60.0 + 5 * n), label)
    for image in NAMES
    for n, (label, x) in enumerate(zip(CLASSES, (0.0, 90.0, 200.0), strict=True))
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three photos of three boxes each, and two captions of each, as a folder like coco_small."""
    for split in ("train", "dev"):
        path = coco(tmp_path / f"instances_{split}.json", BOXES, ["dog"])
        table = json.loads(path.read_text())
        for image in table["images"]:
            image |= {"width": 400, "height": 300}
        path.write_text(json.dumps(table))
    found = {name.lstrip("0").split(".")[0]: ["A red book.", " A bottle. "] for name in NAMES}
    (tmp_path / "captions_train.json").write_text(json.dumps(found))
    grey(tmp_path / "images", *NAMES)
    return tmp_path


def turns(records: Any) -> list[tuple[str, str]]:
    said = [[turn["value"] for turn in each["conversations"]] for each in records]
    return [(question, answer) for question, answer in said]


def test_sources_are_training_data(data: Path) -> None:
    """Every record of every source, and a mixture of them, is read without a problem."""
    out = data / "out"
    out.mkdir()
    counts = write_sources(data, out)
    assert (counts["names"], counts["captions"]) == (9, 6)
    for name, count in counts.items():
        found = read_training_data(out / f"{name}.jsonl")
        assert (len(found.records), found.problems) == (count, ())
    for row, sources in SOURCES.items():
        mixture = read_mixture(write_mixture(out / f"{row}.toml", sources, counts))
        seen = [counts[Path(each.file).stem] * each.weight for each in mixture.source]
        assert seen == pytest.approx([max(seen)] * len(sources), rel=0.01)


def test_captions_are_written_as_the_starter_says_them(data: Path) -> None:
    asked = "describe this picture."
    assert turns(captions(data)) == [(asked, "a red book."), (asked, "a bottle.")] * 3


def test_relations_follow_from_the_boxes(data: Path) -> None:
    """Left and right, recomputed; each question once for a photo."""
    found = list(relations(data))
    texts = [json.dumps(each) for each in found]
    assert len(texts) == len({*texts}) > 6
    left = {"left of": True, "right of": False}
    checked = 0
    for each in found:
        (question, answer), boxes = turns([each])[0], each["regions"]
        assert isinstance(boxes, list)
        for words, wanted in left.items():
            if question == f"is <region1> {words} <region2>?":
                assert answer == ("yes." if (boxes[0][0] < boxes[1][0]) == wanted else "no.")
                checked += 1
    assert checked


def test_attributes_follow_from_class_and_pixels(data: Path) -> None:
    found = turns(attributes(data))
    assert found.count(("what colour is this?", "grey.")) == 9
    assert found.count(("what shape is <region1>?", "cylindrical.")) == 3
    assert found.count(("what is <region1> mostly made of?", "paper.")) == 3
    assert len(found) == 9 + 6 + 3


def test_held_out_questions_are_of_the_kinds_of_the_table(data: Path) -> None:
    kinds = {str(each["kind"]) for each in held_out_questions(data)}
    assert {"relation", "side", "which", "colour", "choice: shape"} <= kinds <= {*ASKED}
