"""The starter's language stage: views from memory, questions by step, calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from regionqa.bundles import Bundle
from regionqa.finetune.batches import Collator
from regionqa.finetune.calibrate import calibration_error, log_loss
from regionqa.finetune.pictures import Photo, PhotoSet
from regionqa.finetune.samples import SampleMaker
from regionqa.finetune.scenes import Sample, Scene
from regionqa.finetune.views import (
    QuestionOrder,
    SeenViews,
    View,
    ViewSettings,
    load_views,
    save_views,
    split,
)
from regionqa.tokenizer import BundleTokenizer

NAMES = ("cat", "orange", "person")


@pytest.fixture
def views(starter: Bundle) -> list[View]:
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
        made.append(View(name, torch.randn(tokens, 5).half(), torch.randn(count, 7).half(), scene))
    return made


def test_photos_to_calibrate_on_are_none_to_learn_from() -> None:
    photos = PhotoSet(
        tuple(
            Photo(Path(f"{n}.jpg"), 9, 9, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), ())
            for n in range(64)
        ),
        NAMES,
    )
    fresh, held_out = split(photos, ViewSettings())
    assert len(held_out.photos) == 4
    names = [photo.path for photo in (*fresh.photos, *held_out.photos)]
    assert sorted(names) == sorted(photo.path for photo in photos.photos)
    again = split(photos, replace(ViewSettings(), seed=9))[1]
    assert [p.path for p in again.photos] == [p.path for p in held_out.photos]


def test_views_are_kept_whole(views: list[View], tmp_path: Path) -> None:
    save_views(views, tmp_path / "views.pt")
    again = load_views(tmp_path / "views.pt", NAMES)
    for view, kept in zip(views, again, strict=True):
        assert kept.name == view.name
        assert torch.equal(kept.image, view.image) and torch.equal(kept.vectors, view.vectors)
        for field in ("captions", "names", "complete", "colours"):
            assert getattr(kept.scene, field) == getattr(view.scene, field)
        assert np.array_equal(kept.scene.boxes, view.scene.boxes)
        assert np.array_equal(kept.scene.labels, view.scene.labels)


def test_a_batch_holds_what_was_seen_and_learns_only_answers(
    views: list[View], starter: Bundle
) -> None:
    tokenizer = BundleTokenizer(starter.file("llm/tokenizer.json"))
    maker = SampleMaker(starter.card, tokenizer)
    collator = Collator(maker, SeenViews(views), frozen_region=True)
    sample = Sample((2, 0), "is <region1> left of <region2>?", "no.")
    batch = collator.batch([views[1].record(sample)])
    assert torch.equal(batch.features[0], views[1].image.float())
    assert batch.vectors is not None
    assert torch.equal(batch.vectors, views[1].vectors[[2, 0]].float())
    assert np.allclose(batch.boxes.numpy(), views[1].scene.boxes[[2, 0]])
    assert batch.region_slots[:, 2].tolist() == [0, 1]
    learned = batch.labels[batch.labels != -100].tolist()
    assert learned == [*tokenizer.encode("no."), tokenizer.token_id("</s>")]
    noisy = Collator(maker, SeenViews(views, noise=0.1), frozen_region=True)
    other = noisy.batch([views[1].record(sample)])
    assert 0 < (other.features - batch.features).abs().mean() < 0.2


def test_questions_are_a_function_of_seed_and_step(views: list[View]) -> None:
    order = QuestionOrder(views, 12, seed=3)
    assert order.step(5) == QuestionOrder(views, 12, seed=3).step(5)
    assert order.step(5) != order.step(6)
    assert order.step(5) != QuestionOrder(views, 12, seed=4).step(5)
    lengths = [len(r.record.turns[0].question + r.record.turns[0].answer) for r in order.step(5)]
    assert lengths == sorted(lengths)
    assert order.steps(6.0) == 1


def test_calibration_is_measured() -> None:
    sure = np.array([0.95, 0.95, 0.15, 0.15])
    assert calibration_error(sure, np.array([True, True, False, False])) == pytest.approx(0.10)
    assert calibration_error(sure, np.array([False, False, True, True])) == pytest.approx(0.90)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0
    better = log_loss(sure, np.array([True, True, False, False]))
    assert better == pytest.approx(-(np.log(0.95) + np.log(0.85)) / 2)
    assert better < log_loss(sure, np.array([True, False, False, True]))
