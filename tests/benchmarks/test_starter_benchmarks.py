"""Benchmarks of the starter: the questions they write, and the table of aims."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choice_kinds import MATERIALS, SHAPES, colour_choices, ordering_choice, relation_choice
from labelled_photos import LabelledPhoto, PhotoScene, read_labelled_photos
from question_kinds import count, presence
from starter_aims import AIMS, Aim
from starter_questions import (
    NOT_SURE,
    TAUGHT,
    UNTAUGHT,
    boxes_about,
    colour_labels,
    main,
    read_untaught,
)

from helpers.evaluation_files import coco, grey
from regionqa.data.questions import read_questions
from regionqa.evaluation.metrics.classes import common_synonyms

CLASSES = ("person", "dog", "bottle", "car", "book")
BOXES = [
    (image, (x, y, x + 60.0 + 8 * n, y + 60.0 + 5 * n), label)
    for image in ("a.jpg", "b.jpg", "c.jpg")
    for n, (label, (x, y)) in enumerate(
        zip((*CLASSES, "person"), ((0, 0), (90, 0), (200, 0), (10, 150), (150, 150), (290, 150)),
            strict=True)
    )
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of the same six boxes, as a folder like coco_small."""
    names = ["cat", "hot dog", "wine glass", "horse", "couch"]
    path = coco(tmp_path / "instances_dev.json", BOXES, names)
    table = json.loads(path.read_text())
    for image in table["images"]:
        image |= {"width": 400, "height": 300}
    path.write_text(json.dumps(table))
    grey(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    return tmp_path


def photo(*boxes: tuple[float, float, float, float], labels: tuple[int, ...] = ()) -> LabelledPhoto:
    """A photo of 400 x 300 pixels."""
    numbers = np.array(labels or [0] * len(boxes))
    return LabelledPhoto("a.jpg", 400, 300, np.array(boxes, np.float32), numbers)


def written(data: Path, out: Path) -> list[dict[str, Any]]:
    main(data, "dev", out)
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [each for each in records if each["image"] in ("a.jpg", "b.jpg", "c.jpg")]


def test_questions_are_read_by_eval_vqa(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line but the colours, which are about photos of COCO, is asked without an error."""
    records = written(data, tmp_path / "q.jsonl")
    rows = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
    kinds = Counter(each["kind"] for each in records)
    assert {kind: int(rows[kind]) for kind in kinds} == kinds
    assert set(rows) >= {*TAUGHT, "choice: colour", "choice: relation", "choice: ordering"}
    kept = tmp_path / "kept.jsonl"
    kept.write_text("".join(json.dumps(each) + "\n" for each in records))
    questions = read_questions(kept, data / "images")
    assert all(each.request.error is None for each in questions)
    assert sum(each.answers == (NOT_SURE,) for each in questions) == 200
    choices = [each for each in questions if each.choices]
    assert len(choices) > 10
    assert all(len(set(each.choices)) == 4 and each.answers[0] in each.choices for each in choices)


def test_questions_are_the_same_in_every_run(data: Path, tmp_path: Path) -> None:
    assert written(data, tmp_path / "1.jsonl") == written(data, tmp_path / "2.jsonl")


def test_answers_are_those_of_the_boxes(data: Path) -> None:
    """Counts and presence, recomputed from the labels of the photo."""
    photos = read_labelled_photos(data / "instances_dev.json")
    scene = PhotoScene.of(photos.photos[0], photos.names, 16)
    rng = np.random.default_rng(0)
    words = {"person": ("people", "humans", "somebodys", "man or a womans"), "dog": ("dogs",)}
    for _ in range(60):
        sample = count(scene, rng)
        for name, number in (("person", "two."), ("dog", "one.")):
            if any(f" {word}" in f" {sample.question}" for word in words[name]):
                assert sample.answer == number or "hot" in sample.question
        asked = presence(scene, rng)
        if "horse" in asked.question or "couch" in asked.question or "sofa" in asked.question:
            assert asked.answer == "no."
        if "car" in asked.question.replace("?", "").split():
            assert asked.answer == "yes."


def test_untaught_questions() -> None:
    """200 different ones of many kinds, each about a person, a thing, any box or the photo."""
    found = read_untaught()
    assert len(found) == len({each.text for each in found}) == 200
    assert {each.about for each in found} == {"person", "thing", "box", "photo"}
    kinds = Counter(each.kind for each in found)
    assert len(kinds) >= 20
    assert max(kinds.values()) <= 30
    assert all(("<region1>" not in each.text) or each.about != "photo" for each in found)


def test_an_untaught_question_is_about_the_largest_box_it_fits(data: Path) -> None:
    names = ("person", "dog")
    boxes = ((0, 0, 50, 50), (0, 0, 90, 90), (0, 0, 20, 300), (0, 0, 70, 70))
    two = photo(*boxes, labels=(0, 1, 0, 0))
    assert boxes_about("person", two, names) == (3,)
    assert boxes_about("thing", two, names) == (1,)
    assert boxes_about("box", two, names) == (1,)
    assert boxes_about("photo", two, names) == ()
    assert boxes_about("thing", photo((0, 0, 90, 90)), names) is None
    asked = [each for each in written(data, data / "q.jsonl") if each["kind"].startswith(UNTAUGHT)]
    assert {len(each["regions"]) for each in asked} == {0, 1}


@pytest.mark.parametrize(
    ("second", "answer"),
    [
        ((200, 0, 250, 50), "to the left."),
        ((0, 100, 50, 150), "above."),
        ((20, 0, 70, 50), None),  # too close
        ((200, 150, 250, 200), None),  # both to the left and above
    ],
)
def test_relation_with_four_choices(
    second: tuple[float, float, float, float], answer: str | None
) -> None:
    boxes = photo((0, 0, 50, 50), second)
    for seed in range(4):
        record = relation_choice(boxes, np.array([0, 1]), np.random.default_rng(seed))
        if answer is None:
            assert record is None
            continue
        assert record is not None
        other = {"to the left.": "to the right.", "above.": "below."}[answer]
        turned = record["regions"] != [[0, 0, 50, 50], list(second)]
        assert record["answer"] == (other if turned else answer)


def test_ordering_of_four_regions() -> None:
    """Left to right by their number, each larger and lower than the one before."""
    boxes = photo(*((90 * n, 60 * n, 90 * n + 30 + 15 * n, 60 * n + 30 + 12 * n) for n in range(4)))
    first = {"left": 0, "right": 3, "highest": 0, "lowest": 3, "smallest": 0, "largest": 3}
    asked = set()
    for seed in range(40):
        record = ordering_choice(boxes, np.arange(4), np.random.default_rng(seed))
        assert record is not None
        question, answer = str(record["question"]), str(record["answer"])
        regions = record["regions"]
        assert isinstance(regions, list)
        place = sorted(regions).index(regions[int(answer.split()[1][0]) - 1])
        word = question.rstrip("?").split()[-1]
        expected = first[word]
        if "second" in question:
            expected = {0: 1, 3: 2}[expected]
        assert place == expected
        asked.add(question)
    assert len(asked) == 8


def test_colour_choices_have_one_right_answer() -> None:
    labels = colour_labels()
    records = list(colour_choices(labels))
    assert len(records) == 100
    for label, record in zip(labels, records, strict=True):
        accepted, choices = label["colours"], record["choices"]
        assert isinstance(accepted, list) and isinstance(choices, list)
        assert [each for each in choices if each.rstrip(".") in accepted] == [record["answer"]]


def test_shapes_and_materials_are_of_known_classes() -> None:
    for table in (SHAPES, MATERIALS):
        classes = [each for group in table.values() for each in group]
        assert set(classes) <= set(common_synonyms())
        assert len(set(classes)) == len(classes)


def test_table_of_aims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts are measured one by one; figures of another model are dropped."""
    pytest.importorskip("resource")
    import starter as benchmark

    out = tmp_path / "figures.json"
    measured = {"names": {"names, always answering: all boxes": 63.0}, "size": {}}
    parts = {name: (lambda _, found=found: found) for name, found in measured.items()}
    monkeypatch.setattr(benchmark, "PARTS", {**parts, "size": benchmark.size})
    for part in ("names", "size"):
        words = ["starter.py", str(tmp_path), "--only", part, "--json", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        benchmark.main()
    table = capsys.readouterr().out.splitlines()[-3:]
    assert table[1].split() == [
        *("names,", "always", "answering:", "all", "boxes"), "63.0", "%", "at", "least", "78", "%",
        "no",
    ]  # fmt: skip
    assert table[2].startswith("size of the model")
    assert table[2].endswith("yes")
    document = json.loads(out.read_text())
    assert len(document["figures"]) == 2
    out.write_text(json.dumps(document | {"model": "other"}))
    benchmark.main()
    assert list(json.loads(out.read_text())["figures"]) == ["size of the model"]


def test_every_aim_has_a_part() -> None:
    pytest.importorskip("resource")
    import starter as benchmark

    assert {aim.part for aim in AIMS} == set(benchmark.PARTS)
    assert len({aim.text for aim in AIMS}) == len(AIMS)
    smallest = Aim("names", "x", 5)
    largest = Aim("names", "x", 5, at_least=False)
    assert [smallest.reached(value) for value in (4.9, 5, 5.1)] == ["no", "yes", "yes"]
    assert [largest.reached(value) for value in (4.9, 5, 5.1)] == ["yes", "yes", "no"]
