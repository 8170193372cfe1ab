"""`regionqa eval detection`: average precision of a detector."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from helpers.detection.detectors import CLASSES
from regionqa.detection.base import DetectorInfo
from regionqa.detection.cards import Vocabulary
from regionqa.detection.detector import ObjectDetector
from regionqa.detection.options import DetectionOptions
from regionqa.evaluation.detection import LabelledImage, score_detections
from regionqa.regions import Box, Region

if TYPE_CHECKING:
    from conftest import Command

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is missing")


def test_a_detector_is_perfect_on_its_own_boxes(
    regionqa: "Command", tiny_detector: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    model = tiny_detector("yolos")
    boxes, results = tmp_path / "boxes.json", tmp_path / "results.json"
    found = regionqa(
        "detect", photos, "--model", model, "--min-score", "0", "--format", "coco", "--out", boxes
    )
    assert found.status == 0
    words = ("eval", "detection", "--model", model, "--images", photos)
    ran = regionqa(*words, "--boxes", boxes, "--json", results)
    assert ran.status == 0, ran.err
    assert ran.lines[0].startswith("detection: yolos ")
    assert [line.split()[:3] for line in ran.lines[2:4]] == [
        ["mAP@50", "100.0", "%"],
        ["mAP@50:95", "100.0", "%"],
    ]
    document = json.loads(results.read_text())
    assert (document["mAP@50"], document["images"], document["failed"]) == (100, 3, 0)
    assert set(document["classes"]) <= {*CLASSES}
    (photos / "cup.jpg").write_bytes(b"no image")
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "image,x0,y0,x1,y1,label\n"
        "cat.jpg,10,10,100,100,lynx\n"
        "cat.jpg,10,10,100,90,\n"
        "cup.jpg,10,10,100,100,cup\n"
    )
    ran = regionqa(*words, "--boxes", labels)
    assert ran.status == 3
    assert "does not know 1 class of" in ran.err and "lynx" in ran.err
    assert "boxes without a label left out: 1" in ran.err and "cup.jpg" in ran.err


class NoDetector:
    """A detector that is not run."""

    info = DetectorInfo("none", "1", Vocabulary.fixed, ("cat", "cup"), 0.5, 1.0, "cpu", "")

    def check_phrases(self, phrases: object) -> None:
        pass

    def detect(self, image: Image.Image, phrases: object, min_score: float) -> None:
        raise AssertionError


def regions(*rows: tuple[float, str, float | None]) -> tuple[Region, ...]:
    """Boxes of 10 x 10 pixels that begin at x."""
    return tuple(Region(Box(x, 0, x + 10, 10), label, score) for x, label, score in rows)


def test_average_precision_is_that_of_coco() -> None:
    """By hand: precision at 101 recalls, of boxes in the order of their scores."""
    truth = regions((0, "cat", None), (20, "cat", None), (40, "cup", None), (60, "cup", None))
    labelled = LabelledImage("a", None, truth, (False, False, False, True))
    detected = regions(
        (0, "cat", 0.9),
        (100, "cat", 0.8),  # nothing there
        (23, "cat", 0.7),  # 7 of 13: above 0.5 only
        (40, "cup", 0.6),
        (60, "cup", 0.9),  # of a crowd
        (80, "dog", 0.9),  # of no class
    )
    detector = ObjectDetector(NoDetector(), DetectionOptions())  # type: ignore[arg-type]
    result = score_detections([(labelled, detected)], ("cat", "cup"), detector)
    cat = 100 * (51 * 1 + 50 * 2 / 3) / 101
    assert result.classes["cat"][0] == pytest.approx(cat)
    assert result.classes["cup"][0] == pytest.approx(100)
    assert [count for _, count in result.classes.values()] == [2, 1]
    assert result.average_precision_50 == pytest.approx((cat + 100) / 2)
    rest = 100 * 51 / 101
    assert result.average_precision == pytest.approx(((cat + 9 * rest) / 10 + 100) / 2)
    assert result.average_recall == pytest.approx((55 + 100) / 2)
    nothing = score_detections([(labelled, ())], ("cat", "cup"), detector)
    assert (nothing.average_precision_50, nothing.average_recall) == (0, 0)
    crowd = LabelledImage("a", None, truth[3:], (True,))
    assert np.isnan(score_detections([(crowd, ())], ("cup",), detector).average_precision)
