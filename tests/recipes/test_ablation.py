"""The ablation recipe: every row trains and is measured."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.ablation.train import ROWS, main, variant
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.images.reading import image_from_memory
from regionqa.regions import Box, Region
from regionqa.requests import NAMING_QUESTION, Request

BOXES = ([4, 4, 40, 40], [60, 20, 40, 50])
"""xywh: a red cat and a blue cup."""
COLOURS = ((200, 30, 30), (30, 30, 200))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Training and dev photos in COCO's layout."""
    folder = tmp_path / "coco"
    (folder / "images").mkdir(parents=True)
    for number in range(12):
        pixels = np.full((80, 120, 3), 90 + 5 * number, np.uint8)
        for (x, y, width, height), colour in zip(BOXES, COLOURS, strict=True):
            pixels[y : y + height, x : x + width] = colour
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    for split, numbers in (("train", range(10)), ("dev", range(10, 12))):
        write_split(folder, split, numbers)
    return folder


def write_split(folder: Path, split: str, numbers: Sequence[int]) -> None:
    """Annotations and captions of some photos."""
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 120, "height": 80}
        for number in numbers
    ]
    annotations = [
        {"id": 2 * number + kind, "image_id": number, "category_id": kind + 1, "bbox": box,
         "area": box[2] * box[3], "iscrowd": 0}
        for number in numbers
        for kind, box in enumerate(BOXES)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cup"}]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"instances_{split}.json").write_text(json.dumps(instances))
    captions = {str(number): ["A cat beside a cup."] for number in numbers}
    (folder / f"captions_{split}.json").write_text(json.dumps(captions))


def rows(
    photos: Path, out: Path, numbers: Sequence[int], capsys: pytest.CaptureFixture[str]
) -> str:
    """Output of the command after a few steps."""
    few = ["--base-steps", "1", "--steps", "4", "--rows", *map(str, numbers)]
    main(["--data", str(photos), "--out", str(out), *few])
    return capsys.readouterr().out


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("features", "pixels")]
"""They trace a region encoder."""


@pytest.mark.parametrize("kind", ["coordinates", *SLOW])
def test_every_variant_is_a_bundle_that_answers(kind: str, starter: Bundle, tmp_path: Path) -> None:
    bundle = variant(tmp_path / kind, starter, starter, kind)
    assert bundle.broken_files() == []
    image = image_from_memory(Image.new("RGB", (120, 80), (200, 30, 30)))
    request = Request("red.png", NAMING_QUESTION, (Region(Box(4, 4, 44, 44)),), image)
    (answer,) = Engine.load(bundle, device="cpu").answer([request])
    assert answer.error is None


@pytest.mark.slow
def test_all_rows_and_reuse_of_finished_runs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = range(1, len(ROWS) + 1)
    printed = rows(photos, tmp_path / "out", everything, capsys)
    assert [row.name in printed for row in ROWS] == [True] * len(ROWS)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.toml")}
    assert rows(photos, tmp_path / "out", everything, capsys) == printed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what is there stays"
