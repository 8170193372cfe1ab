"""Recognition: which boxes are asked about, and what is computed from the predictions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.evaluation_files import coco, grey
from regionqa.boxes.files import read_boxes
from regionqa.bundles.card import ConfidenceCard
from regionqa.engine import Engine
from regionqa.errors import DataError, ImageError
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.metrics.classes import ClassNames, common_synonyms
from regionqa.evaluation.metrics.statistics import Metric
from regionqa.evaluation.results import TaskScores
from regionqa.evaluation.tasks.labelled_boxes import box_requests, class_list
from regionqa.evaluation.tasks.recognition import (
    BoxPrediction,
    Recognition,
    confusions,
    predictions,
    recognise,
    score_recognition,
)
from regionqa.regions import Box, Region
from regionqa.requests import Answer, Request

ASK = "what is this?"


def prediction(
    label: str, predicted: str | None, side: float = 40.0, *, image: str = "a.jpg", reply: str = ""
) -> BoxPrediction:
    reply = reply or f"a {predicted}."
    return BoxPrediction(image, "0,0,40,40", label, reply, predicted, False, None, side, side**2)


def values(metrics: Sequence[Metric], items: int) -> dict[str, float]:
    ones = np.ones((1, items))
    return {each.key: float(each.statistic(ones)[0]) for each in metrics}


def counts(metrics: Sequence[Metric]) -> dict[str, int]:
    return {each.key: each.count for each in metrics}


def score(*boxes: BoxPrediction) -> TaskScores:
    return score_recognition(Recognition(boxes))


# -- requests --------------------------------------------------------------------------------------


def test_minimum_side_is_inclusive(tmp_path: Path) -> None:
    """Either side may be the shorter one; a side just below the minimum is too short."""
    grey(tmp_path, "a.jpg")
    sizes = [(32, 90), (90, 32), (31.9, 90), (90, 31.9), (32, 32)]
    boxes = [("a.jpg", (5, 5, 5 + width, 5 + height), "dog") for width, height in sizes]
    boxfile = read_boxes(coco(tmp_path / "boxes.json", boxes))
    asked = [request.regions[0].box for request in box_requests(boxfile, tmp_path)]
    assert [(box.width, box.height) for box in asked] == [(32, 90), (90, 32), (32, 32)]
    assert len(list(box_requests(boxfile, tmp_path, min_side=31))) == 5


def test_crowds_and_boxes_without_label_are_left_out(tmp_path: Path) -> None:
    grey(tmp_path, "a.jpg")
    boxes = [("a.jpg", (at, at, at + 60, at + 60), "dog") for at in (0, 10, 20)]
    path = coco(tmp_path / "boxes.json", boxes)
    table = json.loads(path.read_text())
    table["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(table))
    kept = [request.regions[0].box.xyxy for request in box_requests(read_boxes(path), tmp_path)]
    assert kept == [(10, 10, 70, 70), (20, 20, 80, 80)]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"a.jpg": [[0, 0, 90, 90]]}))
    assert list(box_requests(read_boxes(plain), tmp_path)) == []
    plain.write_text(json.dumps({"a.jpg": [{"box": [0, 0, 90, 90], "label": "dog"}]}))
    assert len(list(box_requests(read_boxes(plain), tmp_path))) == 1, "only COCO marks crowds"


def test_request_has_question_and_clipped_box(tmp_path: Path) -> None:
    grey(tmp_path, "a.jpg")
    path = coco(tmp_path / "boxes.json", [("a.jpg", (350, 250, 450, 350), "dog")])
    (request,) = box_requests(read_boxes(path), tmp_path, question="which animal?")
    assert (request.image, request.question) == ("a.jpg", "which animal?")
    assert request.regions[0].box.xyxy == (350, 250, 400, 300)
    assert request.regions[0].label == "dog"


def test_failed_request_carries_its_error(tmp_path: Path) -> None:
    grey(tmp_path, "a.jpg")
    boxes = [("gone.jpg", (0, 0, 50, 50), "dog"), ("a.jpg", (500, 500, 590, 590), "dog")]
    path = coco(tmp_path / "boxes.json", [*boxes, ("a.jpg", (0, 0, 50, 50), "dog")])
    missing, outside, good = box_requests(read_boxes(path), tmp_path)
    assert missing.error is not None and missing.image == "gone.jpg"
    assert outside.error is not None and outside.image == "a.jpg"
    assert good.error is None


def test_class_list(tmp_path: Path) -> None:
    """COCO lists classes that no box may have; other files have those of their boxes."""
    path = coco(tmp_path / "boxes.json", [("a.jpg", (0, 0, 50, 50), "dog")], ["zebra", "cat"])
    assert class_list(read_boxes(path)) == ["cat", "dog", "zebra"]
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({
        "a.jpg": [{"box": [0, 0, 9, 9], "label": "dog"}, {"box": [0, 0, 9, 9], "label": "ant"}],
        "b.jpg": [{"box": [0, 0, 9, 9], "label": "dog"}, {"box": [1, 1, 9, 9]}],
    }))  # fmt: skip
    assert class_list(read_boxes(plain)) == ["ant", "dog"]


# -- predictions -----------------------------------------------------------------------------------


def answer(text: str, confidence: float | None = None) -> Answer:
    region = Region(Box(10, 20, 60, 50), "dog")
    return Answer(Request("a.jpg", ASK, (region,)), text, 3, confidence=confidence)


def test_prediction_of_an_answer() -> None:
    found = predictions([answer("a cat.", 0.5)], lambda replies: ["cat"], UncertaintyRule())
    (box,) = found.boxes
    assert (box.image, box.label, box.reply, box.predicted) == ("a.jpg", "dog", "a cat.", "cat")
    assert (box.side, box.confidence, box.unsure, box.correct) == (30, 0.5, False, False)


def test_an_unsure_reply_names_no_class() -> None:
    """Also where the classifier, as a sentence encoder, finds one."""
    replies = [answer("I am not sure, a dog?", 0.9), answer("a dog.", 0.9)]
    unsure, sure = predictions(replies, lambda texts: ["dog"] * 2, UncertaintyRule()).boxes
    assert (unsure.predicted, unsure.unsure, unsure.correct) == (None, True, False)
    assert (sure.predicted, sure.unsure, sure.correct) == ("dog", False, True)


def test_threshold_is_the_option_or_the_card() -> None:
    card = ConfidenceCard(threshold=0.6)

    def unsure(rule: UncertaintyRule, confidence: float | None) -> bool:
        return rule.unsure(answer("a dog.", confidence))

    assert unsure(UncertaintyRule(card), 0.5)
    assert not unsure(UncertaintyRule(card), 0.6)
    assert not unsure(UncertaintyRule(card, unsure_below=0.4), 0.5)
    assert unsure(UncertaintyRule(None, unsure_below=0.7), 0.6)
    assert not unsure(UncertaintyRule(), 0.0)
    assert not unsure(UncertaintyRule(card), None)


def test_small_boxes_are_not_asked_about(engine: Engine, tmp_path: Path) -> None:
    grey(tmp_path, "a.jpg")
    boxes = [("a.jpg", box, "cat") for box in ((0, 0, 40, 40), (5, 5, 36, 65))]
    result = recognise(engine, read_boxes(coco(tmp_path / "b.json", boxes)), tmp_path)
    assert result.count() == 1
    truth = engine.ask(tmp_path / "a.jpg", ASK, [(0, 0, 40, 40)], unsure_below=0).text
    assert result.boxes[0].reply == truth


def test_no_boxes_is_an_error(engine: Engine, tmp_path: Path) -> None:
    grey(tmp_path, "a.jpg")
    small = read_boxes(coco(tmp_path / "small.json", [("a.jpg", (0, 0, 10, 10), "cat")]))
    with pytest.raises(DataError, match="no labelled box of 32 pixels"):
        recognise(engine, small, tmp_path)
    large = read_boxes(coco(tmp_path / "large.json", [("a.jpg", (0, 0, 90, 90), "cat")]))
    with pytest.raises(ImageError, match="no such file"):
        recognise(engine, large, tmp_path / "elsewhere")


# -- scores ----------------------------------------------------------------------------------------


def test_accuracy_metrics() -> None:
    truths: dict[str, list[Any]] = {
        "person": ["person"] * 6, "cat": ["cat", None], "dog": [None, "cat"]
    }  # fmt: skip
    result = Recognition(
        tuple(prediction(t, predicted) for t, each in truths.items() for predicted in each)
    )
    assert result.accuracy() == pytest.approx(70)
    assert result.accuracy(without="person") == pytest.approx(25)
    assert result.count() == 10
    assert result.count(without="person") == 4
    assert result.class_mean == pytest.approx(50)
    name, always = result.most_frequent()
    assert name == "person"
    assert always == pytest.approx(60)
    assert result.most_frequent(without="person")[1] == pytest.approx(50)
    scores = score_recognition(result)
    found = values(scores.metrics, 10)
    assert found == pytest.approx(
        {"accuracy": 0.7, "without_most_frequent": 0.25, "class_mean": 0.5}
    )
    assert counts(scores.metrics) == {"accuracy": 10, "without_most_frequent": 4, "class_mean": 3}
    assert [each.key for each in scores.groups["class"]] == ["person", "cat", "dog"]
    assert scores.tables["always answering the same"] == [
        {"boxes": "all boxes", "answer": "person", "percent": 60.0},
        {"boxes": "without person", "answer": "cat", "percent": 50.0},
    ]


def test_single_class_has_no_rest() -> None:
    scores = score(prediction("dog", "dog"), prediction("dog", None))
    assert [each.key for each in scores.metrics] == ["accuracy", "class_mean"]
    assert len(scores.tables["always answering the same"]) == 1


def test_size_groups_are_half_open() -> None:
    """A box of exactly 48 pixels belongs to "48 to 64 px", one of 512 to the last group."""
    sides = (47.9, 48.0, 63.9, 64.0, 511.0, 512.0, 3.0)
    correct = (True, False, False, True, True, False, True)
    boxes = [
        prediction("dog", "dog" if right else None, side)
        for side, right in zip(sides, correct, strict=True)
    ]
    group = score(*boxes).groups["size"]
    assert counts(group) == {"0": 1, "32": 1, "48": 2, "64": 1, "256": 1, "512": 1}
    assert values(group, 7) == {"0": 1, "32": 1, "48": 0, "64": 1, "256": 1, "512": 0}
    assert [each.name for each in group][2:] == [
        "48 to 64 px", "64 to 96 px", "256 to 512 px", "512 px and more",
    ]  # fmt: skip


def test_area_groups_are_those_of_coco() -> None:
    """An area of exactly 32 x 32 is medium, one of 96 x 96 large; empty groups are left out."""
    sides = {31.9: "dog", 32.0: None, 95.9: "dog", 96.0: "dog", 300.0: None}
    boxes = [prediction("dog", predicted, side) for side, predicted in sides.items()]
    group = score(*boxes).groups["area"]
    assert counts(group) == {"small": 1, "medium": 2, "large": 2}
    assert values(group, 5) == {"small": 1, "medium": 0.5, "large": 0.5}
    assert [each.key for each in score(boxes[1]).groups["area"]] == ["medium"]
    assert "area, answered" not in score(*boxes).groups


def test_area_groups_have_what_is_answered() -> None:
    """Of three large boxes two are answered, one of them rightly; the small one is not."""
    boxes = [prediction("dog", name, 200) for name in ("dog", "cat", "dog")]
    boxes += [prediction("dog", "dog", 20)]
    boxes[2:] = [replace(box, unsure=True) for box in boxes[2:]]
    groups = score(*boxes).groups
    assert values(groups["area, answered"], 4) == {
        "small": 0,
        "large": pytest.approx(2 / 3),
    }
    assert counts(groups["area, where sure"]) == {"small": 0, "large": 2}
    right = values(groups["area, where sure"], 4)
    assert right["large"] == 0.5
    assert np.isnan(right["small"])


def test_class_named_anywhere() -> None:
    """The first class decides what is recognised, but a caption may name several."""
    replies = ("a man with a dog.", "a cat.", "I am not sure, a dog?")
    names = ClassNames(["person", "dog", "cat"], common_synonyms())
    found = predictions(
        list(map(answer, replies)), names.classify, UncertaintyRule(), names.all_named
    )
    assert [box.named for box in found.boxes] == [("person", "dog"), ("cat",), ()]
    scored = values(score_recognition(found).metrics, 3)
    assert scored["accuracy"] == 0
    assert scored["label_named"] == pytest.approx(1 / 3)
    without = predictions(list(map(answer, replies)), names.classify, UncertaintyRule())
    assert "label_named" not in values(score_recognition(without).metrics, 3)


def test_confusions_are_counted_and_limited() -> None:
    boxes = [
        *[prediction("dog", "cat")] * 2,
        prediction("dog", "dog"),
        prediction("dog", None, reply="I do not know."),
        prediction("cat", None),
        prediction("ant", None),
    ]
    assert confusions(boxes) == [
        {"class": "dog", "taken for": "cat", "count": 2, "share": 50.0},
        {"class": "ant", "taken for": "(no class)", "count": 1, "share": 100.0},
        {"class": "cat", "taken for": "(no class)", "count": 1, "share": 100.0},
        {"class": "dog", "taken for": "(not sure)", "count": 1, "share": 25.0},
    ]
    assert len(confusions(boxes, limit=2)) == 2


def test_items_are_unique() -> None:
    scores = score(prediction("dog", "dog"), prediction("cat", "dog", image="b.jpg"))
    assert scores.items == ("a.jpg 0,0,40,40 dog", "b.jpg 0,0,40,40 cat")
    assert scores.images == ("a.jpg", "b.jpg")
    assert scores.correct is not None and scores.correct.tolist() == [True, False]
