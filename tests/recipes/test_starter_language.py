"""The starter recipe's language stage: cached features, questions, calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.starter.language import train as words
from recipes.starter.language.averaging import average_weights
from recipes.starter.language.features import (
    CachedFeatures,
    FeatureNoise,
    ImageView,
    QuestionSampler,
    box_of,
    load_views,
    save_views,
)
from recipes.starter.language.probes import (
    image_probe,
    initialize_from_probe,
    name_directions,
    name_probe,
)
from recipes.starter.language.swapped_images import swap_crop_images, swap_photo_images
from recipes.starter.language.train import LANGUAGE_SETTINGS, LANGUAGE_STAGE, Round, RoundMember
from recipes.starter.questions.mixture import WHERE
from recipes.starter.questions.random_boxes import boxes_anywhere, views_anywhere
from recipes.starter.questions.scenes import QuestionSample, Scene, draw_question
from recipes.starter.vision.photos import Photo, PhotoSet, split
from regionqa.bundles.store import Bundle
from regionqa.export.modules.crops import CropConfig, CropRegionEncoder
from regionqa.finetune.collate import Collator
from regionqa.finetune.dataset import SampleBuilder
from regionqa.language.tokenization import BundleTokenizer

NAMES = ("cat", "orange", "person")


@pytest.fixture
def views(starter: Bundle) -> list[ImageView]:
    """Two views with random features, of one and of three boxes."""
    torch.manual_seed(0)
    tokens = starter.card.vision.image_tokens
    boxes = np.array([[0.0, 0.1, 0.5, 0.9], [0.7, 0.05, 0.8, 0.15], [0.7, 0.7, 0.8, 1]], np.float32)
    made = []
    for number, count in enumerate((1, 3)):
        scene = Scene(
            boxes[:count], np.arange(count), ("A cat.",), NAMES, True,
            np.ones(count, np.float32), ("black", None, "blue")[:count],
        )  # fmt: skip
        name = Path(f"{number}.0")
        made.append(
            ImageView(name, torch.randn(tokens, 5).half(), torch.randn(count, 7).half(), scene)
        )
    return made


def test_calibration_photos_are_not_trained_on() -> None:
    photos = PhotoSet(
        tuple(
            Photo(Path(f"{n}.jpg"), 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), ())
            for n in range(64)
        ),
        NAMES,
    )
    fresh, held_out = split(photos)
    assert len(held_out.photos) == 4
    names = [photo.path for photo in (*fresh.photos, *held_out.photos)]
    assert sorted(names) == sorted(photo.path for photo in photos.photos)
    again = split(photos)[1]
    assert [p.path for p in again.photos] == [p.path for p in held_out.photos]


def test_views_round_trip(views: list[ImageView], tmp_path: Path) -> None:
    save_views(views, tmp_path / "views.pt")
    again = load_views(tmp_path / "views.pt", NAMES)
    for view, kept in zip(views, again, strict=True):
        assert kept.name == view.name
        assert torch.equal(kept.image, view.image) and torch.equal(kept.vectors, view.vectors)
        for field in ("captions", "names", "complete", "colours"):
            assert getattr(kept.scene, field) == getattr(view.scene, field)
        assert np.array_equal(kept.scene.boxes, view.scene.boxes)
        assert np.array_equal(kept.scene.labels, view.scene.labels)


def test_batch_has_cached_features_and_answer_labels(
    views: list[ImageView], starter: Bundle
) -> None:
    tokenizer = BundleTokenizer(starter.file("llm/tokenizer.json"))
    maker = SampleBuilder(starter.card, tokenizer)
    collator = Collator(maker, CachedFeatures(views), frozen_region=True)
    sample = QuestionSample((2, 0), "is <region1> left of <region2>?", "no.")
    batch = collator.batch([views[1].record(sample)])
    assert torch.equal(batch.features[0], views[1].image.float())
    assert batch.vectors is not None
    assert torch.equal(batch.vectors, views[1].vectors[[2, 0]].float())
    assert np.allclose(batch.boxes.numpy(), views[1].scene.boxes[[2, 0]])
    assert batch.region_slots[:, 2].tolist() == [0, 1]
    learned = batch.labels[batch.labels != -100].tolist()
    assert learned == [*tokenizer.encode("no."), tokenizer.token_id("</s>")]
    noisy = Collator(maker, CachedFeatures(views, FeatureNoise(image=0.1)), frozen_region=True)
    other = noisy.batch([views[1].record(sample)])
    assert 0 < (other.features - batch.features).abs().mean() < 0.2
    assert other.vectors is not None and torch.equal(other.vectors, batch.vectors)
    clear = Collator(maker, CachedFeatures([], FeatureNoise(9, 9), clear=views), frozen_region=True)
    assert torch.equal(clear.batch([views[1].record(sample)]).features, batch.features)


def test_noise_spares_exact_features(views: list[ImageView]) -> None:
    view, box = views[1], box_of(views[1].scene, 2)
    seen = CachedFeatures(views, FeatureNoise(region=0.5), exact=3)
    (vector,) = seen.vectors(view.name, seen.image(view.name), [box])
    told = view.vectors[2].float()
    assert torch.equal(vector[4:], told[4:])
    assert (vector[:4] != told[:4]).all()
    (clear,) = CachedFeatures([], FeatureNoise(region=0.5), 3, [view]).vectors(
        view.name, seen.image(view.name), [box]
    )
    assert torch.equal(clear, told), "what is measured on has none"


def test_random_boxes_have_features() -> None:
    torch.manual_seed(0)
    config = CropConfig(widths=(8, 8, 8, 8), region_width=5, colour_grid=1, hidden_size=8)
    region = CropRegionEncoder(config)
    boxes = boxes_anywhere(500, np.random.default_rng(1))
    assert boxes.min() >= 0 and boxes.max() <= 1
    assert (boxes[:, 2:] - boxes[:, :2]).min() > 0.019
    photo = Scene(boxes[:3], np.arange(3), (), NAMES, True, np.ones(3, np.float32))
    vectors = torch.randn(3, config.vector_width).half()
    made = views_anywhere(
        [ImageView(Path("a.0"), torch.randn(4, 6).half(), vectors, photo)], region, 0, 9
    )
    assert len({view.name for view in made}) == 9
    for view in made:
        assert 2 <= len(view.scene.boxes) == len(view.vectors) <= 4
        assert view.image.shape == (0, 6)
        found = [row.tolist() for row in vectors[:, :5]]
        assert all(row.tolist() in found for row in view.vectors[:, :5])
        assert torch.allclose(
            view.vectors[:, 5:9].float(), torch.from_numpy(view.scene.boxes), atol=1e-3
        )
    sides = {draw_question(WHERE, view.scene, np.random.default_rng(2)).answer for view in made}
    assert len(sides) > 1, "there is something to compare"


def test_projector_is_initialized_from_probe(starter: Bundle) -> None:
    torch.manual_seed(3)
    names = ("cat", "dog", "pizza", "bus")
    means = torch.randn(4, 6)
    labels = np.arange(200) % 4
    vectors = torch.cat([means[labels] + 0.1 * torch.randn(200, 6), torch.randn(200, 2)], 1)
    scenes = [
        Scene(
            np.zeros((4, 4), np.float32),
            labels[row : row + 4],
            (),
            names,
            True,
            np.ones(4, np.float32),
        )
        for row in range(0, 200, 4)
    ]
    views = [
        ImageView(
            Path(f"{row}.0"),
            vectors[row : row + 4, :6].half(),
            vectors[row : row + 4].half(),
            scene,
        )
        for row, scene in zip(range(0, 200, 4), scenes, strict=True)
    ]
    probe = name_probe(views, 6, seed=0)
    assert (probe(vectors[:, :6]).argmax(1).numpy() == labels).mean() > 0.95
    tokenizer = BundleTokenizer(starter.file("llm/tokenizer.json"))
    embeddings = torch.randn(tokenizer.size, 64)
    directions = name_directions(embeddings, tokenizer, names)
    projector = torch.nn.Linear(8, 64)
    untouched = projector.weight[:, 6:].clone()
    initialize_from_probe(projector, probe, directions, vectors[:, :6], rms=0.5)
    projected = vectors[:, :6] @ projector.weight[:, :6].T + projector.bias
    assert projected.pow(2).mean().sqrt().item() == pytest.approx(0.5, rel=1e-3)
    assert projected.mean(0).abs().max() < 1e-3
    assert ((projected @ directions.T).argmax(1).numpy() == labels).mean() > 0.9
    assert torch.equal(projector.weight[:, 6:], untouched)
    assert image_probe(views, seed=0).weight.shape == (4, 6)


def test_questions_are_a_function_of_seed_and_step(views: list[ImageView]) -> None:
    order = QuestionSampler(views, 12, seed=3)
    assert order.step(5) == QuestionSampler(views, 12, seed=3).step(5)
    assert order.step(5) != order.step(6)
    assert order.step(5) != QuestionSampler(views, 12, seed=4).step(5)
    lengths = [len(r.record.turns[0].question + r.record.turns[0].answer) for r in order.step(5)]
    assert lengths == sorted(lengths)
    assert order.steps(6.0) == 1


def test_crops_get_other_images(views: list[ImageView]) -> None:
    crop = replace(views[0], name=Path("0.2"), scene=replace(views[0].scene, complete=False))
    crops = [replace(crop, name=Path(f"{number}.2")) for number in range(20)]
    asked = swap_crop_images([*views, *crops], seed=0)
    assert asked[:2] == views, "what is asked about whole images keeps them"
    given = [any(torch.equal(view.image, other.image) for other in views) for view in asked]
    assert all(given) and not all(torch.equal(view.image, crop.image) for view in asked[2:])
    assert all(view.scene == crop.scene and view.vectors is crop.vectors for view in asked[2:])


def test_photos_get_other_images_for_box_questions(
    views: list[ImageView],
) -> None:
    crop = replace(views[0], name=Path("0.2"), scene=replace(views[0].scene, complete=False))
    moved = [view for seed in range(20) for view in swap_photo_images([*views, crop], seed)]
    assert len(moved) == 40, "crops have theirs already"
    assert {view.name for view in moved}.isdisjoint(view.name for view in views)
    assert not any(view.scene.complete or view.scene.captions for view in moved)
    for view, own in zip(moved, views * 20, strict=True):
        assert view.vectors is own.vectors
        assert np.array_equal(view.scene.boxes, own.scene.boxes)
    given = {next(n for n, o in enumerate(views) if torch.equal(v.image, o.image)) for v in moved}
    assert given == {0, 1}


def test_average_weights_is_the_weighted_mean() -> None:
    states = [
        {"weight": torch.full((2,), value), "count": torch.tensor(number)}
        for number, value in enumerate((1.0, 4.0))
    ]
    mean = average_weights(states, (1, 2))
    assert mean["weight"].tolist() == [3.0, 3.0] and mean["weight"].dtype == torch.float32
    assert mean["count"] == 0, "what is counted has no mean"
    half = {"weight": torch.randn(50).half()}
    assert torch.equal(average_weights([half] * 3, (0.3, 0.3, 0.1))["weight"], half["weight"])


def test_rounds_start_from_the_mean_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run adds its folder's number to a model that is one number."""
    told, frozen = (torch.nn.Parameter(torch.tensor(value)) for value in (0.0, 7.0))
    model = torch.nn.Module()
    model.register_parameter("told", told)
    model.register_parameter("frozen", frozen)

    def train(runs: object, model: torch.nn.Module, out: Path) -> tuple[str, ...]:
        with torch.no_grad():
            told.add_(float(out.name.removeprefix("member-") or 10))
        return ("told",)

    class Plan:
        rounds = (
            Round(LANGUAGE_STAGE, (RoundMember(WHERE, 1), RoundMember(WHERE, 3))),
            Round(LANGUAGE_STAGE, (RoundMember(WHERE),) * 2),
        )
        settings = replace(LANGUAGE_SETTINGS, rounds=rounds)

        def where(self, out: Path) -> None: ...

        def last(self, out: Path, stage: object, mixture: object, number: int) -> None:
            assert out.name == f"member-{number}"

        words = where

    monkeypatch.setattr(words, "train_run", train)
    words.train_language(Plan(), model, Path())  # type: ignore[arg-type]
    assert told.item() == pytest.approx(10 + (1 * 1 + 3 * 2) / 4 + (11 + 12) / 2)
    assert frozen.item() == 7
