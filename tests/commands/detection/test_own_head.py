"""A model's own detection head: `detect`, and `--boxes auto` in ask and caption, without extras."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_models import CLASSES, WITH_HEAD
from regionqa.boxes.files import FORMATS, read_boxes
from regionqa.bundles import store
from regionqa.bundles.store import Bundle
from regionqa.detection import cards
from regionqa.detection.detector import select
from regionqa.detection.options import DetectionFormat
from regionqa.export.bundle import read_detector, read_encoders

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
BOX_FORMATS = [format for format in DetectionFormat if format in FORMATS]


@pytest.fixture
def own(tiny: Tiny) -> tuple[str, Path]:
    """The option that names a tiny model with a detection head."""
    return ("--model", tiny(WITH_HEAD).root)


@pytest.fixture(autouse=True)
def base_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those of `pip install regionqa`."""
    for name in ("supervision", "faster_coco_eval"):
        monkeypatch.setitem(sys.modules, name, None)


def boxes(line: str) -> list[tuple[list[float], str]]:
    return [(each["box"], each["label"]) for each in json.loads(line)["regions"]]


def test_boxes_are_those_of_the_torch_head(
    regionqa: "Command", own: tuple[str, Path], tiny: Tiny, cat: Path
) -> None:
    ran = regionqa("detect", cat, *own, "--format", "jsonl", "--device", "cpu")
    assert ran.status == 0, ran.err
    record = json.loads(ran.out)
    assert record["model"] == "tiny-detector"
    bundle = tiny(WITH_HEAD)
    head, (vision, _) = read_detector(bundle), read_encoders(bundle)
    assert head is not None and bundle.card.detector is not None
    import torch

    with Image.open(cat) as image, torch.no_grad():
        pixels = torch.from_numpy(bundle.card.preprocessing.pixel_values(image.convert("RGB")))
        found, scores = head(*vision.features(pixels)[1])
    rows, classes = np.nonzero(scores[0].numpy() > bundle.card.detector.min_score)
    from regionqa.detection.base import ScoredBoxes

    wanted = select(
        ScoredBoxes(
            found[0].numpy()[rows].astype(np.float64) * np.array([*image.size] * 2),
            scores[0].numpy()[rows, classes].astype(np.float64),
            tuple(classes.tolist()),
            tuple(CLASSES[number] for number in classes),
        ),
        image.size,
        nms=bundle.card.detector.nms,
    )
    assert len(wanted.boxes) > 3
    assert [each["label"] for each in record["regions"]] == list(wanted.labels)
    written = np.array([each["box"] for each in record["regions"]])
    assert written == pytest.approx(wanted.boxes, abs=0.05)


def test_box_files_read_back_equal(
    regionqa: "Command", own: tuple[str, Path], photos: Path, tmp_path: Path
) -> None:
    lines = regionqa("detect", photos, *own, "--format", "jsonl").lines
    assert len(lines) == 3 and all(boxes(line) for line in lines)
    for format in BOX_FORMATS:
        out = tmp_path / f"{format}.out"
        ran = regionqa("detect", photos, *own, "--format", format, "--out", out)
        assert (ran.status, ran.out) == (0, ""), ran.err
        again = read_boxes(out)
        for line in lines:
            record = json.loads(line)
            read = again.boxes_for(record["image"]) or ()
            resolved = [each.resolve(record["width"], record["height"]) for each in read]
            assert [region.label for region in resolved] == [label for _, label in boxes(line)]
            assert np.array([region.box.xyxy for region in resolved]) == pytest.approx(
                np.array([box for box, _ in boxes(line)]), abs=0.02
            )


def test_captions_and_questions_use_the_head_of_the_model_that_is_asked(
    regionqa: "Command", own: tuple[str, Path], photos: Path, tmp_path: Path
) -> None:
    few = ("--max-boxes", "2", "--format", "jsonl")
    found = regionqa("detect", photos, *own, *few)
    captions = regionqa("caption", photos, *own, "--boxes", "auto", *few)
    assert (captions.status, len(captions.lines)) == (0, 6), captions.err
    assert [boxes(line)[0] for line in captions.lines] == [
        box for line in found.lines for box in boxes(line)
    ]
    (tmp_path / "found.jsonl").write_text(found.out)
    read = regionqa(
        "caption", photos, *own, "--boxes", tmp_path / "found.jsonl", "--format", "jsonl"
    )
    assert read.lines == captions.lines
    cat = photos / "cat.jpg"
    asked = regionqa("ask", cat, "is <region1> left of <region2>?", *own, "--boxes", "auto", *few)
    assert asked.status == 0, asked.err
    assert len(boxes(asked.lines[0])) == 2


def test_detect_uses_the_head_of_the_default_model(
    regionqa: "Command", own: tuple[str, Path], cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = regionqa("detect", cat, *own)
    assert wanted.status == 0 and wanted.out
    find = store.find_folder
    monkeypatch.setattr(
        cards, "find_folder", lambda name: own[1] if name == "starter" else find(name)
    )
    ran = regionqa("detect", cat)
    assert (ran.status, ran.out) == (0, wanted.out), ran.err


def test_images_without_objects_are_counted_and_named(
    regionqa: "Command", own: tuple[str, Path], photos: Path
) -> None:
    high = ("--min-score", "1")  # which no score exceeds
    ran = regionqa("detect", photos, *own, *high)
    assert (ran.status, ran.out) == (0, "")
    assert "tiny-detector found nothing in 3 images; the first is " in ran.err
    assert "astronaut.jpg; --min-score finds more" in ran.err
    ran = regionqa("caption", photos, *own, "--boxes", "auto", *high)
    assert (ran.status, ran.out) == (0, "")
    assert "found nothing in 3 images, so nothing was asked about them" in ran.err
    ran = regionqa("ask", photos / "cat.jpg", "what is this?", *own, "--boxes", "auto", *high)
    assert ran.status == 3
    assert "cat.jpg: tiny-detector found nothing to ask about; lower --min-score" in ran.err


def test_options_of_the_head(regionqa: "Command", own: tuple[str, Path], cat: Path) -> None:
    every = regionqa("detect", cat, *own, "--nms", "1").lines
    apart = regionqa("detect", cat, *own).lines
    assert len(every) > len(apart) > 0
    only = regionqa("detect", cat, *own, "--only", "cat").lines
    assert only == [line for line in apart if line.split("\t")[2] == "cat"] != []
    ran = regionqa("detect", cat, *own, "--find", "red cup")
    assert ran.status == 2
    assert "tiny-detector knows 3 classes and no others (--only chooses among them)" in ran.err
    ran = regionqa("detect", cat, *own, "--vision-runtime", "torch")
    assert ran.status == 2
    assert "--vision-runtime: has no effect on the detection head of detector" in ran.err


def test_a_damaged_head_is_reported(
    regionqa: "Command", tiny: Tiny, cat: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(tiny(WITH_HEAD).root, tmp_path / "copy")
    (copy / "detector.onnx").write_bytes(b"")
    ran = regionqa("detect", cat, "--model", copy)
    assert (ran.status, ran.out) == (1, "")
    assert "detector.onnx: has 0 bytes, the card says" in ran.err
    (copy / "detector.onnx").unlink()
    assert "detector.onnx: missing from the model" in regionqa("detect", cat, "--model", copy).err
    ran = regionqa("doctor", "--model", copy)
    assert ran.status == 1 and "detector.onnx: missing from the model" in ran.out
