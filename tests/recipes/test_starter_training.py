"""The starter recipe end to end, and its photo augmentation."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from recipes.starter import calibration
from recipes.starter import train as recipe
from recipes.starter.language.train import LANGUAGE_SETTINGS, LANGUAGE_STAGE, POSITION_STAGE, Round
from recipes.starter.vision.async_sgd import Phase
from recipes.starter.vision.classifier import CropClassifier, TrainedClassifier
from recipes.starter.vision.image_encoder import IMAGE_SCHEDULE
from recipes.starter.vision.photos import (
    Photo,
    normalise,
    photo_view,
    read_photos,
    read_tiles,
    whole_photo,
)
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.engine import Engine
from regionqa.export.modules.crops import CropConfig
from regionqa.export.modules.resnet import ResNetConfig
from regionqa.finetune.calibrate import LONGEST, TEMPERATURES, ScoredAnswers, calibrate
from regionqa.regions import Box

NAMES = ("cat", "orange", "person")
Tiny = Callable[[str], Bundle]


def make_red_square(folder: Path) -> Photo:
    """A grey photo of 120 x 80 with a red square."""
    image = Image.new("RGB", (120, 80), (90, 90, 90))
    ImageDraw.Draw(image).rectangle((40, 20, 79, 59), fill=(255, 0, 0))
    image.save(folder / "red.png")
    boxes = np.array([[40, 20, 80, 60]], np.float32)
    return Photo(folder / "red.png", 120, 80, boxes, np.array([0]), ())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_boxes_follow_crop_and_flip(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    photo = make_red_square(tmp_path_factory.mktemp("red"))
    view = photo_view(photo, 96, np.random.default_rng(seed))
    if not len(view.labels):
        return
    pixels = view.pixels.astype(int)
    rows, columns = np.nonzero(pixels[:, :, 0] > pixels[:, :, 1] + 60)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(view.boxes[0] * 96 - found).max() <= 2.5


def test_whole_photo_equals_inference_input(tmp_path: Path, starter: Bundle) -> None:
    red_square = make_red_square(tmp_path)
    preprocessing = starter.card.image
    with Image.open(red_square.path) as image:
        asked = preprocessing.pixel_values(image)
    canvas = whole_photo(red_square, preprocessing.size)
    trained = normalise(np.stack([canvas.pixels]))[0].numpy()
    assert np.abs(asked - trained).max() < 1e-5
    placement = preprocessing.placement(120, 80)
    assert placement.to_model(Box(40, 20, 80, 60)) == pytest.approx(tuple(canvas.boxes[0]))


# -- training --------------------------------------------------------------------------------------


def make_data(folder: Path) -> Path:
    """Six photos and 40 tiles of plain colours, in the layout of the real data."""
    images = folder / "coco_small" / "images"
    images.mkdir(parents=True)
    (folder / "tiny_imagenet").mkdir()
    rng = np.random.default_rng(0)
    instances: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    colours = [(200, 40, 40), (240, 160, 30), (40, 80, 200)]
    for number in range(6):
        image = Image.new("RGB", (192, 144), (120, 120, 120))
        for kind, colour in enumerate(colours):
            x, y = 64 * kind + int(rng.integers(0, 16)), int(rng.integers(0, 80))
            ImageDraw.Draw(image).rectangle((x, y, x + 41, y + 41), fill=colour)
            box = {"image_id": number, "category_id": kind + 1, "bbox": [x, y, 42, 42]}
            instances["annotations"].append(box)
        image.save(images / f"{number}.jpg")
        entry = {"id": number, "file_name": f"{number}.jpg", "width": 192, "height": 144}
        instances["images"].append(entry)
    table = {**instances, "categories": [{"id": i + 1, "name": n} for i, n in enumerate(NAMES)]}
    captions = {str(number): ["A cat, an orange and a person."] for number in range(6)}
    for split in ("train", "dev"):
        (folder / "coco_small" / f"instances_{split}.json").write_text(json.dumps(table))
        (folder / "coco_small" / f"captions_{split}.json").write_text(json.dumps(captions))
    encoded = []
    for number in range(40):
        tile = folder / "tile.webp"
        Image.new("RGB", (64, 64), (6 * number, 100, 50)).save(tile)
        encoded.append(np.frombuffer(tile.read_bytes(), np.uint8))
    offsets = np.cumsum([0, *map(len, encoded)])
    for part in range(4):
        np.savez(
            folder / "tiny_imagenet" / f"train-{part}.npz",
            data=np.concatenate(encoded), offsets=offsets, label=np.arange(40),
            box=np.tile(np.array([8, 8, 55, 55], np.int16), (40, 1)),
        )  # fmt: skip
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def test_photos_are_read(data: Path) -> None:
    photos = read_photos(data / "coco_small", "train")
    assert photos.names == NAMES
    assert len(photos.photos) == 6
    assert photos.photos[0].boxes.shape == (3, 4)
    assert (photos.photos[0].boxes[:, 2:] - photos.photos[0].boxes[:, :2] == 42).all()
    tiles = read_tiles(data / "tiny_imagenet", ["train-0", "train-3"])
    assert tiles.pixels.shape == (80, 64, 64, 3)
    assert tiles.labels.tolist() == [*range(40), *range(40)]
    assert tiles.boxes[0].tolist() == [8, 8, 56, 56], "both ends of a box are inside"


Tables = list[tuple[Mapping[float, ScoredAnswers], Any, dict[str, Any]]]
"""Answers by temperature, which of them ask for names, and the table computed from them."""


@pytest.fixture
def quick_recipe(monkeypatch: pytest.MonkeyPatch) -> Tables:
    """Tiny encoders, few and small steps, few questions; what calibration is given and returns."""
    config = ResNetConfig(64, (8, 8, 8), (1, 1, 1), (), token_grid=1, patch=4)
    cuts = CropConfig(widths=(8, 8, 8, 16), depths=(1, 1, 1, 1), side=32, region_width=20)
    named = TrainedClassifier(CropClassifier(cuts, 3, 4).eval(), NAMES, torch.ones(3))
    monkeypatch.setattr(recipe, "WHOLE", config)
    schedule = replace(IMAGE_SCHEDULE, workers=1, phases=(Phase(1.0, 64, (2,)),))
    monkeypatch.setattr(recipe, "IMAGE_SCHEDULE", schedule)
    monkeypatch.setattr(recipe, "train_crop_encoder", lambda *arguments: named)
    for name, stage in (("POSITION_STAGE", POSITION_STAGE), ("LANGUAGE_STAGE", LANGUAGE_STAGE)):
        monkeypatch.setattr(recipe, name, replace(stage, batch=4, accumulate=1))
    rounds = [
        Round(replace(each.stage, batch=4, accumulate=1), each.members[-2:])
        for each in LANGUAGE_SETTINGS.rounds
    ]
    few = replace(LANGUAGE_SETTINGS, rounds=tuple(rounds))
    monkeypatch.setattr(recipe, "LANGUAGE_SETTINGS", few)
    tables: list[tuple[Mapping[float, ScoredAnswers], Any, dict[str, Any]]] = []

    def calibrating(answers: Mapping[float, ScoredAnswers], log: Any, **options: Any) -> Any:
        tables.append((answers, options["threshold_on"], calibrate(answers, log, **options)))
        return tables[-1][2]

    monkeypatch.setattr(calibration, "calibrate", calibrating)
    monkeypatch.setattr(calibration, "QUESTIONS", 40)
    return tables


def check_calibration(made: Bundle, tables: Tables) -> None:
    """The card has the table that was computed from answers to both kinds of questions."""
    ((answers, naming, table),) = tables
    assert made.card.confidence is not None
    assert made.card.confidence.temperature == table["temperature"]
    assert made.card.confidence.threshold == table["threshold"]
    assert made.card.confidence.longest == table["longest"] == LONGEST
    assert tuple(answers) == TEMPERATURES
    for scored in answers.values():
        assert len(scored.confidence) == len(naming) == naming.sum() + calibration.QUESTIONS
        assert ((scored.confidence > 0) & (scored.confidence <= 1)).all()
        assert scored.lengths.max() <= 2 * LONGEST
    assert naming.sum() > 0 and naming[: naming.sum()].all(), "boxes to name come first"
    confidences = [scored.confidence.mean() for scored in answers.values()]
    assert confidences == sorted(confidences, reverse=True), "a temperature flattens"


@pytest.mark.slow
def test_recipe_makes_a_bundle_that_answers(
    data: Path, tmp_path: Path, tiny: Tiny, quick_recipe: Tables
) -> None:
    """A handful of steps of each stage but the one that sight has tests for; run again, it finds
    everything done."""
    words = [
        "--data", str(data), "--out", str(tmp_path / "run"),
        "--image-steps", "1", "--position-steps", "2", "--language-steps", "2",
        "--last-steps", "1",
    ]  # fmt: skip
    recipe.main(words)
    made = open_bundle(copytree(tmp_path / "run" / "starter", tmp_path / "made"))
    check_calibration(made, quick_recipe)
    engine = Engine.load(open_bundle(tmp_path / "run" / "starter"), device="cpu")
    answer = engine.ask(data / "coco_small/images/0.jpg", "what is this?", [(5, 5, 40, 40)])
    assert answer.tokens > 0
    before = (tmp_path / "run" / "image-done.pt").stat().st_mtime_ns
    recipe.main(words)
    assert (tmp_path / "run" / "image-done.pt").stat().st_mtime_ns == before
    done = tmp_path / "run" / "language-done.pt"
    trained = torch.load(done, weights_only=True)
    done.unlink()
    recipe.main(words)
    for name, state in torch.load(done, weights_only=True).items():
        for weight, value in state.items():
            assert torch.equal(value, trained[name][weight]), "every run was found at its end"
    once = ("--position-steps", "1", "--language-steps", "1", "--last-steps", "1")
    again = [*words[:3], str(tmp_path / "again"), *once]
    recipe.main([*again, "--encoders", str(tmp_path / "run" / "starter")])
    sizes = [
        (tmp_path / run / "starter" / "vision.onnx").stat().st_size for run in ("run", "again")
    ]
    assert sizes[0] == sizes[1]
    assert not (tmp_path / "again" / "image-done.pt").exists()
    with pytest.raises(SystemExit, match="its encoders are of another kind"):
        recipe.main([*again, "--encoders", str(tiny("levels").root)])
