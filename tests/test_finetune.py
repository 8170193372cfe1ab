"""The starter's recipe: questions that are true, boxes that stay on their things, resumed runs."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from regionqa.bundles import Bundle, open_bundle
from regionqa.engine import Engine
from regionqa.export.vision import ResNetConfig
from regionqa.finetune import starter as recipe
from regionqa.finetune.language import IGNORED, Connector, Splicer, View, new_language_model
from regionqa.finetune.pictures import (
    Photo,
    PhotoSet,
    Tiles,
    mosaic,
    photo_view,
    read_photos,
    read_tiles,
    tile_cells,
    whole_photo,
)
from regionqa.finetune.pretrain import (
    PretrainSettings,
    Recogniser,
    learning_rate,
    new_encoders,
    normalise,
    pretrain_on_photos,
    recognise_photos,
)
from regionqa.finetune.questions import (
    MIXTURE,
    Maker,
    Sample,
    Scene,
    checking,
    counting,
    draw_sample,
    listed,
    naming,
    naming_several,
    place_of,
    presence,
    relating,
    with_article,
)
from regionqa.finetune.starter import CONTEXT, RULES, STOP
from regionqa.regions import Box
from regionqa.tokenizer import BundleTokenizer

NAMES = ("cat", "orange", "person")
TINY = ResNetConfig(
    input_size=64, widths=(8, 8, 8, 16), depths=(1, 1, 1, 1), token_grid=1, hidden_size=16
)


@pytest.fixture
def scene() -> Scene:
    """A large cat at the left, an orange at the top right, a person just below it."""
    boxes = np.array([[0.0, 0.1, 0.5, 0.9], [0.7, 0.05, 0.8, 0.15], [0.7, 0.7, 0.8, 1]], np.float32)
    return Scene(boxes, np.arange(3), ("A cat sits.",), NAMES, True, np.ones(3, np.float32))


def drawn(maker: Maker, scene: Scene, count: int = 200) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [sample for _ in range(count) if (sample := maker(scene, rng)) is not None]


def test_a_region_is_called_by_its_name(scene: Scene) -> None:
    samples = drawn(naming, scene)
    assert {(s.regions, s.answer) for s in samples} == {
        ((0,), "a cat."), ((1,), "an orange."), ((2,), "a person."),
    }  # fmt: skip
    assert len({s.question for s in samples}) > 8, "wording varies"


def test_several_regions_are_named_in_order(scene: Scene) -> None:
    for sample in drawn(naming_several, scene):
        words = [with_article(NAMES[scene.labels[row]]) for row in sample.regions]
        assert sample.answer == f"{listed(words)}."


def test_yes_and_no_are_true_and_balanced(scene: Scene) -> None:
    samples = drawn(checking, scene, 400)
    for sample in samples:
        truth = with_article(NAMES[scene.labels[sample.regions[0]]])
        assert sample.answer.endswith(f"it is {truth}.")
        assert sample.answer.startswith("yes") == sample.question.endswith(f" {truth}?")
    assert 0.4 < np.mean([s.answer.startswith("yes") for s in samples]) < 0.6
    one_thing = Scene(scene.boxes[:1], scene.labels[:1], (), NAMES, True, np.ones(1, np.float32))
    for sample in drawn(presence, one_thing):
        assert (sample.answer == "yes.") == ("a cat" in sample.question)


def test_relations_follow_the_boxes(scene: Scene) -> None:
    answers = {(s.regions, s.question): s.answer for s in drawn(relating, scene, 500)}
    assert answers[(0, 1), "is <region1> left of <region2>?"] == "yes."
    assert answers[(1, 0), "is <region1> left of <region2>?"] == "no."
    assert answers[(1, 2), "is <region1> above <region2>?"] == "yes."
    assert answers[(0, 1), "is <region1> bigger than <region2>?"] == "yes."
    assert ((1, 2), "is <region1> right of <region2>?") not in answers, "too close to call"


def test_counts_are_asked_only_of_whole_photos(scene: Scene) -> None:
    assert {s.answer for s in drawn(counting, scene)} == {"one."}
    part = Scene(scene.boxes, scene.labels, scene.captions, NAMES, False, scene.box_weights)
    assert not drawn(counting, part)
    assert not drawn(presence, part)


def test_places_are_said_as_people_do() -> None:
    def at(x: float, y: float) -> str:
        return place_of(np.array([x - 0.01, y - 0.01, x + 0.01, y + 0.01], np.float32))

    assert at(0.5, 0.5) == "in the middle of the picture"
    assert at(0.1, 0.5) == "on the left of the picture"
    assert at(0.5, 0.9) == "at the bottom of the picture"
    assert at(0.9, 0.1) == "at the top right of the picture"


def test_the_mixture_is_whole(scene: Scene) -> None:
    assert sum(share for _, share in MIXTURE) == pytest.approx(1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        sample = draw_sample(scene, rng)
        assert sample.answer.endswith(".")
        assert all(row < 3 for row in sample.regions)


# -- pictures --------------------------------------------------------------------------------------


def make_red_square(folder: Path) -> Photo:
    """A grey photo of 120 x 80 with a red square."""
    image = Image.new("RGB", (120, 80), (90, 90, 90))
    ImageDraw.Draw(image).rectangle((40, 20, 79, 59), fill=(255, 0, 0))
    image.save(folder / "red.png")
    boxes = np.array([[40, 20, 80, 60]], np.float32)
    return Photo(folder / "red.png", 120, 80, boxes, np.array([0]), ())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_box_stays_on_its_thing_through_crop_and_flip(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    photo = make_red_square(tmp_path_factory.mktemp("red"))
    view = photo_view(photo, 96, np.random.default_rng(seed))
    if not len(view.labels):
        return
    pixels = view.pixels.astype(int)
    rows, columns = np.nonzero(pixels[:, :, 0] > pixels[:, :, 1] + 60)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(view.boxes[0] * 96 - found).max() <= 2.5


def test_the_whole_photo_is_what_asking_sees(tmp_path: Path, starter: Bundle) -> None:
    red_square = make_red_square(tmp_path)
    preprocessing = starter.card.picture
    with Image.open(red_square.path) as image:
        asked = preprocessing.pixel_values(image)
    canvas = whole_photo(red_square, preprocessing.size)
    trained = normalise(np.stack([canvas.pixels]))[0].numpy()
    assert np.abs(asked - trained).max() < 1e-5
    placement = preprocessing.placement(120, 80)
    assert placement.to_model(Box(40, 20, 80, 60)) == pytest.approx(tuple(canvas.boxes[0]))


def test_mosaics_hold_every_tile_in_its_cell() -> None:
    colours = np.arange(40, 240, 5, dtype=np.uint8)  # 40 tiles, one grey each
    tiles = Tiles(np.tile(colours[:, None, None, None], (1, 64, 64, 3)), np.arange(40))
    rng = np.random.default_rng(0)
    for _ in range(20):
        cells = tile_cells(96, 0.5, rng)
        order = np.arange(len(cells))
        canvas = mosaic(tiles, order, cells, 96, rng)
        assert canvas.boxes.min() >= 0 and canvas.boxes.max() <= 1
        x0, y0, x1, y1 = (canvas.boxes[0] * 96).round().astype(int)
        assert canvas.pixels[y0:y1, x0:x1].std() < 1, "one tile, one grey"
        assert canvas.labels.tolist() == order.tolist()


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
        )  # fmt: skip
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def test_the_data_is_read_as_it_is_written(data: Path) -> None:
    photos = read_photos(data / "coco_small", "train")
    assert photos.names == NAMES
    assert len(photos.photos) == 6
    assert photos.photos[0].boxes.shape == (3, 4)
    assert (photos.photos[0].boxes[:, 2:] - photos.photos[0].boxes[:, :2] == 42).all()
    tiles = read_tiles(data / "tiny_imagenet", ["train-0", "train-3"])
    assert tiles.pixels.shape == (80, 64, 64, 3)
    assert tiles.labels.tolist() == [*range(40), *range(40)]


def tiny(photos: PhotoSet) -> Recogniser:
    torch.manual_seed(0)
    return Recogniser(*new_encoders(TINY), len(photos.names))


def silent(_: str) -> None:
    """No log."""


def test_a_small_model_learns_to_name_colours(data: Path, tmp_path: Path) -> None:
    photos = read_photos(data / "coco_small", "train")
    quick = PretrainSettings(epochs=60, batch=6, learning_rate=4e-3, average=0.8, balance=0.3)
    model = pretrain_on_photos(tiny(photos), photos, quick, tmp_path / "a.pt", silent)
    rows = recognise_photos(model, photos)
    assert len(rows) == 18
    assert np.mean([label == predicted for label, predicted, _ in rows]) > 0.8
    assert {round(side) for _, _, side in rows} == {42}


def test_a_killed_run_goes_on_from_its_checkpoint(data: Path, tmp_path: Path) -> None:
    photos = read_photos(data / "coco_small", "train")
    lines: list[str] = []
    short = PretrainSettings(epochs=2, batch=6, learning_rate=1e-3)
    first = pretrain_on_photos(tiny(photos), photos, short, tmp_path / "a.pt", lines.append)
    again = pretrain_on_photos(tiny(photos), photos, short, tmp_path / "a.pt", lines.append)
    assert "resumed at step 2 of 2" in lines
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not list(tmp_path.glob("*.partial"))


def test_only_the_answer_is_learned(scene: Scene, starter: Bundle) -> None:
    tokenizer = BundleTokenizer(starter.root / "llm" / "tokenizer.json")
    model = new_language_model(tokenizer.size, 16, CONTEXT, tokenizer.token_id(STOP))
    recogniser = Recogniser(*new_encoders(TINY), 3)
    view = View(torch.randn(1, 16), torch.randn(3, recogniser.region.config.region_width), scene)
    splicer = Splicer(RULES, tokenizer, 1, tokenizer.token_id(STOP), noise=0.0)
    connector = Connector(recogniser)
    for seed in range(20):
        expected = draw_sample(scene, np.random.default_rng(seed))
        rows, labels = splicer.rows(
            view, connector, model.get_input_embeddings(), np.random.default_rng(seed)
        )
        assert len(rows) == len(labels)
        learned = labels[labels != IGNORED].tolist()
        assert learned == [*tokenizer.encode(expected.answer), tokenizer.token_id(STOP)]
        image = connector.projector(view.image)
        assert torch.allclose(rows[1:2], image), "the picture stands after the start token"


def test_the_learning_rate_warms_up_and_ends_at_zero() -> None:
    rates = [learning_rate(step, 1000, 1.0, warm_up=100) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == 1.0 and rates.index(1.0) in (99, 100)
    assert rates[1000] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_the_recipe_makes_a_bundle_that_answers(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three stages, a handful of steps each; run again, it finds everything done."""
    words = [
        "--data", str(data), "--out", str(tmp_path / "run"),
        "--tile-epochs", "1", "--photo-epochs", "1", "--language-steps", "2",
    ]  # fmt: skip
    config = ResNetConfig(input_size=64, widths=(8, 8, 8, 16), depths=(1, 1, 1, 1), token_grid=1)
    monkeypatch.setattr(recipe, "ResNetConfig", lambda: config)
    recipe.main(words)
    engine = Engine.load(open_bundle(tmp_path / "run" / "starter"), device="cpu")
    answer = engine.ask(data / "coco_small/images/0.jpg", "what is this?", [(5, 5, 40, 40)])
    assert answer.tokens > 0
    before = (tmp_path / "run" / "photos-2-done.pt").stat().st_mtime_ns
    recipe.main(words)
    assert (tmp_path / "run" / "photos-2-done.pt").stat().st_mtime_ns == before
