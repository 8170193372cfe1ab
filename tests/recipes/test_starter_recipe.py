"""The starter's recipe from end to end, with a tiny backbone and a few photos of plain colours."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from recipes.starter.decoder import DecoderSettings
from recipes.starter.detector import DetectorSettings
from recipes.starter.encoders import (
    EncoderSettings,
    Scores,
    class_weights,
    classes_in_cells,
    photos_of_step,
    save,
    set_rates,
)
from recipes.starter.photos import (
    ASPECT,
    MARGIN,
    SMALLEST_CROP,
    Photo,
    View,
    close_up,
    random_crop,
    random_view,
    split,
)
from recipes.starter.records.scenes import with_random_boxes
from recipes.starter.train import train_starter
from recipes.starter.views import described_scenes, write_crop
from regionqa.bundles.store import open_bundle
from regionqa.detection.detector import load_detector
from regionqa.engine import Engine
from regionqa.finetune.finish import read_modules
from regionqa.images.reading import open_image
from regionqa.regions import Box, Region
from regionqa.requests import Request

NAMES = ("cat", "orange", "person")
ENCODERS = EncoderSettings(
    architecture="test_efficientnet", levels=(1, 2), side=96, width=16, hidden_size=32,
    place_width=8, epochs=1, batch=4, save_every=2,
)  # fmt: skip
DECODER = DecoderSettings(
    layers=1, intermediate_size=32, vocabulary=400, geometry_records=60, records=80,
    held_out_records=12, geometry_steps=2, steps=3, further_steps=2, batch=4,
)  # fmt: skip


DETECTOR = DetectorSettings(epochs=1, batch=4, save_every=2)


def red_square(folder: Path) -> Photo:
    """Return a grey photo of 240 x 160 with a red square."""
    image = Image.new("RGB", (240, 160), (90, 90, 90))
    ImageDraw.Draw(image).rectangle((80, 40, 159, 119), fill=(255, 0, 0))
    image.save(folder / "red.png")
    boxes = np.array([[80, 40, 160, 120]], np.float32)
    return Photo(folder / "red.png", (240, 160), boxes, np.array([0]), ("a red square.",))


def red_box(pixels: np.ndarray) -> np.ndarray:
    """Return xyxy (4,) of what is red."""
    values = pixels.astype(int)
    rows, columns = np.nonzero(values[:, :, 0] > values[:, :, 1] + 60)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_boxes_follow_crop_and_flip(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    photo = red_square(tmp_path_factory.mktemp("red"))
    view = random_view(photo, 96, np.random.default_rng(seed))
    if len(view.labels):
        assert np.abs(view.boxes[0] * 96 - red_box(view.pixels)).max() <= 2.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_boxes_follow_a_crop_that_is_written(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("red")
    photo, rng = red_square(folder), np.random.default_rng(seed)
    for turn, window in enumerate(
        (random_crop(photo, rng), close_up(photo, rng, np.ones(1, np.float32)))
    ):
        crop = write_crop(photo, window, None, folder / f"{turn}.png", rng)
        with Image.open(crop.path) as image:
            assert image.size == crop.size
            if len(crop.boxes):
                assert np.abs(crop.boxes[0] - red_box(np.asarray(image))).max() <= 3.5


def test_a_close_up_shows_a_box_of_a_class_that_is_wanted(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 80, 80], [90, 0, 170, 80], [0, 90, 8, 98]], np.float32)
    photo = replace(red_square(tmp_path), boxes=corners, labels=np.arange(3))
    rng = np.random.default_rng(0)
    for _ in range(20):
        x0, y0, x1, y1 = close_up(photo, rng, np.array([0, 1, 1], np.float32))
        assert 90 - 80 * MARGIN <= x0 <= 90 and y0 == 0
        assert 170 <= x1 <= 170 + 80 * MARGIN and 80 <= y1 <= 80 + 80 * MARGIN
        x0, y0, x1, y1 = close_up(photo, rng, np.array([0, 0, 1], np.float32))  # is too small
        assert (x1 - x0) * (y1 - y0) >= 0.99 * SMALLEST_CROP / ASPECT * np.prod(photo.size)


def test_a_cell_has_what_covers_it_or_lies_in_it() -> None:
    boxes = np.array([[0, 0, 0.5, 1], [0.6, 0.6, 0.7, 0.7]], np.float32)
    view = View(np.zeros((8, 8, 3), np.uint8), boxes, np.array([2, 1]), np.arange(2))
    found = classes_in_cells(view, 2, 3)
    assert found.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_every_photo_is_seen_once_in_an_epoch() -> None:
    seen = [number for step in range(5) for number in photos_of_step(10, step, ENCODERS)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_checkpoint_is_read_without_pickled_objects(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.AdamW([{"params": weights, "peak": 1e-3, "warm_up": 0.1}])
    set_rates(optimizer, 0.5)
    save(optimizer.state_dict(), tmp_path / "state")
    (group,) = torch.load(tmp_path / "state", weights_only=True)["param_groups"]
    assert group["lr"] == pytest.approx(5e-4)


def test_split_is_the_same_for_all(tmp_path: Path) -> None:
    photos = [replace(red_square(tmp_path), size=(number, 1)) for number in range(1, 33)]
    learned, held_out = split(photos)
    assert (len(learned), len(held_out)) == (30, 2)
    assert split(photos) == (learned, held_out)


def test_boxes_of_rare_classes_are_asked_about_more_often(tmp_path: Path) -> None:
    corners = [[0, 0, 80, 80], [80, 0, 160, 80], [0, 80, 80, 160], [160, 80, 240, 160]]
    cats = np.array([0, 0, 0, 1])
    photo = replace(red_square(tmp_path), boxes=np.array(corners, np.float32), labels=cats)
    logits = torch.zeros(len(cats), len(NAMES))
    heads = Scores(logits, torch.zeros(len(cats), 1000), logits[0], logits[0], logits[:0])
    rng = np.random.default_rng(0)
    for balance, share in ((0.0, 0.25), (1.0, 0.4)):  # 1/4 each for the cats, 1/2 for the orange
        weights = class_weights([photo], len(NAMES), balance).numpy()
        (scene,) = described_scenes([photo], [heads], 96, NAMES, weights)
        rows = [scene.rows(1, rng)[0] for _ in range(2000)]
        assert np.mean([scene.name(row) == "orange" for row in rows]) == pytest.approx(
            share, abs=0.06
        )
        assert with_random_boxes(scene, rng).rows(
            2, rng
        )  # whose weights are not those of the photo


def write_data(folder: Path) -> Path:
    """Write 24 photos of coloured squares, in the layout of the real data."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    table: dict[str, list[dict[str, object]]] = {
        "images": [], "annotations": [],
        "categories": [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)],
    }  # fmt: skip
    for number in range(24):
        image = Image.new("RGB", (192, 144), (120, 120, 120))
        for kind, colour in enumerate([(200, 40, 40), (240, 160, 30), (40, 80, 200)]):
            x, y = 64 * kind + int(rng.integers(0, 16)), int(rng.integers(0, 80))
            ImageDraw.Draw(image).rectangle((x, y, x + 41, y + 41), fill=colour)
            table["annotations"].append(
                {"image_id": number, "category_id": kind + 1, "bbox": [x, y, 42, 42]}
            )
        image.save(images / f"{number}.jpg")
        table["images"].append(
            {"id": number, "file_name": f"{number}.jpg", "width": 192, "height": 144}
        )
    captions = {str(number): ["A cat, an orange and a person."] for number in range(24)}
    for part in ("train", "dev"):
        (folder / f"instances_{part}.json").write_text(json.dumps(table))
    (folder / "captions_train.json").write_text(json.dumps(captions))
    return folder


@pytest.mark.slow
def test_one_command_trains_a_bundle_that_answers(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    weights = tmp_path / "backbone.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_efficientnet", num_classes=1000).state_dict(), weights)
    out = tmp_path / "out"
    bundle = open_bundle(train_starter(data, weights, out, ENCODERS, DECODER, DETECTOR))
    assert bundle.card.name == "starter"
    assert "of 72 boxes, " in bundle.card.provenance["measured"]
    photo = open_image(data / "images" / "0.jpg")
    request = Request(photo.name, "what is this?", (Region(Box(0, 0, 60, 60)),), photo)
    (answer,) = Engine.load(bundle, device="cpu").answer([request])
    assert answer.error is None
    assert bundle.card.detector is not None and bundle.card.detector.classes == NAMES
    detector = load_detector(bundle.root, device="cpu", min_score=0)
    assert {region.label for region in detector.find(photo).regions} <= {*NAMES}
    second, third, mean = (
        read_modules(open_bundle(out / name)).language.get_input_embeddings().weight
        for name in ("trained", "further", "averaged")
    )
    assert not torch.equal(second, third)
    torch.testing.assert_close(mean, (second + third) / 2)
    assert not (out / "levels.pt").exists()  # which take gigabytes
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    train_starter(data, weights, out, ENCODERS, DECODER, DETECTOR)  # everything is finished
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
