"""`regionqa detect` as a user runs it, with tiny detectors of every family."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from helpers.detection.detectors import CLASSES, OPEN, WRITERS
from helpers.detection.reference import transformers_objects
from regionqa.boxes.files import FORMATS, read_boxes
from regionqa.detection.options import FOLDERS, DetectionFormat

if TYPE_CHECKING:
    from conftest import Command

Detector = Callable[[str], Path]
PHRASES = ("red cup", "a cat")
ALL = ("--min-score", "0", "--nms", "1")
"""Keep every box that the detector proposes."""
BOX_FORMATS = [format for format in DetectionFormat if format in FORMATS]


def rows(lines: list[str]) -> list[tuple[str, tuple[float, ...], str, float]]:
    """Image, box, label and score of lines of text."""
    cells = [line.split("\t") for line in lines]
    return [
        (image, tuple(map(float, box.split(","))), label, float(score))
        for image, box, label, score in cells
    ]


@pytest.mark.parametrize("family", WRITERS)
def test_boxes_are_those_of_transformers(
    regionqa: "Command", tiny_detector: Detector, cat: Path, family: str
) -> None:
    """In pixels of the image, which is wider than high: sizes are (height, width) there."""
    folder = tiny_detector(family)
    phrases = PHRASES if family in OPEN else ()
    finds = [word for phrase in phrases for word in ("--find", phrase)]
    ran = regionqa("detect", cat, "--model", folder, *ALL, *finds, "--device", "cpu")
    assert ran.status == 0, ran.err
    with Image.open(cat) as image:
        expected = transformers_objects(folder, image.convert("RGB"), phrases)
    found = rows(ran.lines)
    assert len(found) == len(expected) > 3
    assert {name for name, *_ in found} == {str(cat)}
    assert {label for *_, label, _ in found} <= {*(phrases or CLASSES)}
    scores = [score for *_, score in found]
    assert scores == sorted(scores, reverse=True)
    for (_, box, label, score), (wanted, name, likely) in zip(found, expected, strict=True):
        assert box == pytest.approx(wanted, abs=0.02)
        assert score == pytest.approx(likely, abs=1e-4)
        assert name is None or label == name


def test_formats_are_those_of_box_files() -> None:
    assert set(BOX_FORMATS) == set(FORMATS) - {"requests"}
    assert {name for name, each in FORMATS.items() if each.IMAGE_SUFFIX} == set(FOLDERS)


def test_box_files_read_back_equal(
    regionqa: "Command", tiny_detector: Detector, photos: Path, tmp_path: Path
) -> None:
    model = ("--model", tiny_detector("yolos"), "--min-score", "0.1")
    expected = rows(regionqa("detect", photos, *model).lines)
    assert len({name for name, *_ in expected}) == 3
    for format in BOX_FORMATS:
        out = tmp_path / f"{format}.out"
        ran = regionqa("detect", photos, *model, "--format", format, "--out", out)
        assert (ran.status, ran.out) == (0, ""), ran.err
        again = read_boxes(out)
        assert again.format == format
        for photo in sorted(photos.iterdir()):
            with Image.open(photo) as image:
                boxes = [each.resolve(*image.size) for each in again.boxes_for(str(photo)) or ()]
            wanted = [(box, label) for name, box, label, _ in expected if name == str(photo)]
            assert [region.label for region in boxes] == [label for _, label in wanted], format
            for region, (box, _) in zip(boxes, wanted, strict=True):
                assert region.box.xyxy == pytest.approx(box, abs=1e-3), format


def test_scores_are_written(
    regionqa: "Command", tiny_detector: Detector, cat: Path, tmp_path: Path
) -> None:
    words = ("detect", cat, "--model", tiny_detector("yolos"), "--min-score", "0.1")
    scores = [score for *_, score in rows(regionqa(*words).lines)]
    coco = json.loads(regionqa(*words, "--format", "coco").out)
    assert [each["score"] for each in coco["annotations"]] == scores
    (record,) = map(json.loads, regionqa(*words, "--format", "jsonl").lines)
    assert [each["score"] for each in record["regions"]] == scores
    assert (record["image"], record["width"], record["error"]) == (str(cat), 451, None)
    table = regionqa(*words, "--format", "csv").lines
    assert table[0] == "image,x0,y0,x1,y1,label,score"
    assert [float(line.rsplit(",", 1)[1]) for line in table[1:]] == scores
    assert regionqa(*words, "--format", "yolo", "--out", tmp_path / "labels").status == 0
    (label,) = (each for each in (tmp_path / "labels").rglob("chelsea.txt"))
    lines = label.read_text().splitlines()
    assert [float(line.split()[5]) for line in lines] == pytest.approx(scores)


def test_an_image_is_seen_as_displayed(
    regionqa: "Command", tiny_detector: Detector, cat: Path, tmp_path: Path
) -> None:
    with Image.open(cat) as image:
        upright = image.convert("RGB")
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    words = ("--model", tiny_detector("rt_detr_v2"), *ALL)
    first, second = (
        rows(regionqa("detect", tmp_path / f"{name}.png", *words).lines)
        for name in ("upright", "turned")
    )
    assert first
    assert [each[1:] for each in second] == [each[1:] for each in first]


def test_options_choose_boxes(regionqa: "Command", tiny_detector: Detector, cat: Path) -> None:
    words = ("detect", cat, "--model", tiny_detector("rt_detr_v2"))
    every = rows(regionqa(*words, *ALL).lines)
    least = (every[4][3] + every[5][3]) / 2
    assert every[4][3] > every[5][3]
    assert rows(regionqa(*words, "--min-score", least).lines) == [
        each for each in every if each[3] > least
    ]
    assert rows(regionqa(*words, *ALL, "--max-boxes", 2).lines) == every[:2]
    label = every[0][2]
    kept = rows(regionqa(*words, *ALL, "--only", f" {label} ,").lines)
    assert kept == [each for each in every if each[2] == label]
    nothing = regionqa(*words, "--min-score", "1")
    assert (nothing.status, nothing.out) == (0, "")
    assert "found nothing in 1 image" in nothing.err


def test_failing_images_are_items(
    regionqa: "Command", tiny_detector: Detector, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    model = ("--model", tiny_detector("yolos"), "--min-score", "0.1")
    ran = regionqa("detect", photos, *model, "--format", "jsonl")
    records = [json.loads(line) for line in ran.lines]
    assert ran.status == 3
    assert [Path(each["image"]).name for each in records if each["error"]] == ["broken.jpg"]
    assert len(records) == 4 and all(each["regions"] for each in records if not each["error"])
    out = tmp_path / "boxes.json"
    ran = regionqa("detect", photos, *model, "--format", "coco", "--out", out)
    assert ran.status == 3 and "broken.jpg" in ran.err
    assert len(json.loads(out.read_text())["images"]) == 3
    twice = regionqa("detect", photos / "cat.jpg", photos / "cat.jpg", *model, "--format", "coco")
    assert twice.status == 3 and "is given twice" in twice.err


def test_a_run_is_resumed(
    regionqa: "Command", tiny_detector: Detector, photos: Path, tmp_path: Path
) -> None:
    model = ("--model", tiny_detector("yolos"), "--min-score", "0.1", "--format", "jsonl")
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert regionqa("detect", photos, *model, "--out", whole).status == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1][:40])
    ran = regionqa("detect", photos, *model, "--out", part, "--resume")
    assert ran.status == 0, ran.err
    assert part.read_bytes() == whole.read_bytes()
    changed = regionqa("detect", photos, *model, "--out", part, "--resume", "--max-boxes", "1")
    assert changed.status == 0
    assert len(part.read_bytes().splitlines()) == 6  # other options, other boxes
    (photos / "cup.jpg").write_bytes(b"no image")
    failed = tmp_path / "failed.jsonl"
    assert regionqa("detect", photos, *model, "--out", failed).status == 3
    assert regionqa("detect", photos, *model, "--out", failed, "--resume").status == 3
    (photos / "cup.jpg").write_bytes((photos / "cat.jpg").read_bytes())
    again = ("--resume", "--retry-errors")
    assert regionqa("detect", photos, *model, "--out", failed, *again).status == 0
    assert len(failed.read_bytes().splitlines()) == 3


def test_boxes_are_drawn(
    regionqa: "Command", tiny_detector: Detector, photos: Path, tmp_path: Path
) -> None:
    model = ("--model", tiny_detector("yolos"), "--min-score", "0.1")
    drawn = tmp_path / "drawn"
    assert regionqa("detect", photos, *model, "--draw", drawn).status == 0
    assert sorted(path.name for path in drawn.iterdir()) == ["astronaut.png", "cat.png", "cup.png"]
    again = regionqa("detect", photos, *model, "--draw", drawn)
    assert again.status == 2 and "already exist" in again.err


@pytest.mark.filterwarnings("ignore::UserWarning")  # of supervision, without OpenCV
def test_python_returns_detections(tiny_detector: Detector, cat: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is missing")
    import regionqa

    detector = regionqa.load_detector(tiny_detector("yolos"), min_score=0.1, device="cpu")
    found = detector.detect(cat)
    assert isinstance(found, supervision.Detections)
    with Image.open(cat) as image:
        expected = transformers_objects(tiny_detector("yolos"), image.convert("RGB"), (), 0.1)
        same = detector.detect(image)
    assert found.xyxy == pytest.approx(np.array([box for box, *_ in expected]), abs=0.02)
    assert list(found.data["class_name"]) == [label for _, label, _ in expected]
    assert found.confidence == pytest.approx([score for *_, score in expected], abs=1e-4)
    assert found == same
