"""Rehearsal: training on the base's own answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_models import log_of
from regionqa.bundles.store import Bundle
from regionqa.data.files import read_training_data
from regionqa.data.records import Record, Turn
from regionqa.engine import Engine
from regionqa.finetune.batches.collate import Collator
from regionqa.finetune.batches.dataset import sample_builder
from regionqa.finetune.batches.frozen import FrozenEncoders
from regionqa.finetune.finish import read_modules
from regionqa.finetune.model import RegionLanguageModel
from regionqa.finetune.rehearsal import (
    MOST,
    places_anywhere,
    places_of,
    questions_to_rehearse,
    random_box,
    rehearse,
)
from regionqa.finetune.trainer import teacher_logits
from regionqa.images.reading import open_image
from regionqa.regions import Box, Region

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]


@pytest.fixture
def known(tiny: Tiny) -> Bundle:
    """A tiny model whose card says that it is trained."""
    bundle = tiny("levels")
    return replace(bundle, card=replace(bundle.card, untrained=()))


# -- from the command line -------------------------------------------------------------------------


def test_finetuning_rehearses_by_default(regionqa: "Command", things: Path, tmp_path: Path) -> None:
    short = ("--steps", 2, "--batch", 4, "--device", "cpu", "--rehearse", 1)
    ran = regionqa("finetune", "--data", things, "--out", tmp_path / "mine", *short)
    assert ran.status == 0, ran.err
    images = len(read_training_data(things).images)
    assert f"rehearsal: asking starter about {images - 2} boxes" in ran.err
    assert "3 of them replayed" in ran.err
    replayed = read_training_data(tmp_path / "mine" / "training" / "rehearsal.jsonl")
    assert not replayed.problems
    assert len(replayed.records) == images - 2
    assert len(log_of(tmp_path / "mine")) == 8  # two stages of two steps, measured before and after


def test_rehearsal_is_off_for_untrained_bases_or_by_option(
    regionqa: "Command", tiny: Tiny, things: Path, tmp_path: Path
) -> None:
    short = ("--steps", 1, "--batch", 2, "--device", "cpu", "--model", tiny("levels").root)
    ran = regionqa("finetune", "--data", things, "--out", tmp_path / "mine", *short)
    assert ran.status == 0, ran.err
    assert "rehears" not in ran.err
    assert not (tmp_path / "mine" / "training" / "rehearsal.jsonl").exists()


def test_folder_without_images_is_refused(
    regionqa: "Command", things: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    more = ("--rehearse-on", tmp_path / "empty", "--device", "cpu")
    ran = regionqa("finetune", "--data", things, "--out", tmp_path / "mine", *more)
    assert ran.status == 2
    assert "empty: holds no images to rehearse on" in ran.err


# -- what is rehearsed -----------------------------------------------------------------------------


def test_rehearsed_answers_are_those_of_the_base(starter: Bundle, photos: Path) -> None:
    places = places_anywhere(sorted(photos.iterdir()), 2, np.random.default_rng(3), pytest.fail)
    assert len(places) == 6
    records = rehearse(starter, places, ["what is this?"], np.random.default_rng(0), pytest.fail)
    engine = Engine.load(starter, device="cpu")
    for record, (path, box) in zip(records, places, strict=True):
        assert (record.image, record.regions[0].box) == (path, box)
        turn = record.turns[0]
        answer = engine.ask(path, turn.question, [box.xyxy], unsure_below=0)
        assert answer.text == turn.answer, "unsure ones are said too"


def test_rehearsal_samples_images(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST >= 1000
    monkeypatch.setattr("regionqa.finetune.rehearsal.MOST", 4)
    places = places_anywhere(sorted(photos.iterdir()), 2, np.random.default_rng(0), pytest.fail)
    assert len(places) == 4
    assert len({path for path, _ in places}) == 2


def test_boxes_from_a_file_without_its_labels(
    regionqa: "Command", things: Path, tmp_path: Path
) -> None:
    short = ("--steps", 1, "--batch", 4, "--device", "cpu", "--rehearse-on", things)
    ran = regionqa("finetune", "--data", things, "--out", tmp_path / "mine", *short)
    assert ran.status == 0, ran.err
    assert "rehearsal: asking starter about 48 boxes" in ran.err
    written = {record.turns[0].answer for record in read_training_data(things).records}
    kept = read_training_data(tmp_path / "mine" / "training" / "rehearsal.jsonl").records
    assert {record.regions[0].box for record in kept} <= {
        record.regions[0].box for record in read_training_data(things).records
    }
    assert not written & {record.turns[0].answer for record in kept}


def test_rare_answers_are_sampled_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(number: int, answer: str) -> Record:
        box = Box(number, 0, number + 1, 1)
        return Record(Path("a.png"), (Region(box),), (Turn("what is this?", answer),), "here")

    records = [record(n, "rare." if n % 100 == 0 else "common.") for n in range(4000)]
    monkeypatch.setattr("regionqa.finetune.rehearsal.MOST", 400)
    places = places_of(records, np.random.default_rng(0))
    assert len(set(places)) == 400
    assert sum(box.x0 % 100 == 0 for _, box in places) > 7  # four without


def test_questions_of_the_data_are_rehearsed() -> None:
    region = Region(Box(0, 0, 9, 9))

    def asked(question: str, regions: int = 1) -> Record:
        return Record(Path("a.png"), (region,) * regions, (Turn(question, "x."),), "here")

    records = [asked("name <region1>."), asked("is it new?"), asked("is it new?"), asked("?", 2)]
    assert questions_to_rehearse(records) == ["what is this?", "is it new?", "name <region1>."]
    assert questions_to_rehearse(records, most=1) == ["what is this?", "is it new?"]


def test_random_boxes() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_box(200, 100, rng) for _ in range(500)]
    assert all(box.inside(200, 100) for box in boxes)
    assert min(box.width for box in boxes) < 25
    assert max(box.width for box in boxes) > 180


def test_random_boxes_keep_clear_of_what_is_taught(cat: Path, tmp_path: Path) -> None:
    """The base's answer about the same thing would contradict the one that is taught."""
    said: list[str] = []
    other = tmp_path / "other.png"
    Image.new("RGB", (100, 80)).save(other)
    image, rng = open_image(cat), np.random.default_rng(0)
    left_half = Box(0, 0, image.width / 2, image.height)
    taught = {cat: [left_half, Box(300, 0, 310, 10)], other: [Box(0, 0, 100, 80)]}
    places = places_anywhere([cat, other], 30, rng, said.append, taught)
    assert [path for path, _ in places] == [cat] * 30
    for _, box in places:
        beside = max(0.0, left_half.x1 - box.x0) / box.width
        assert beside <= 0.2
    assert said == ["rehearsal: 30 random boxes left out, no room beside what is taught"]


# -- how it is learned -----------------------------------------------------------------------------


def test_distillation_from_itself_has_no_gradient(known: Bundle, things: Path) -> None:
    parts = read_modules(known)
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    encoders = FrozenEncoders(known.card, parts.vision, parts.region, torch.device("cpu"))
    collator = Collator(sample_builder(known), encoders, frozen_region=False)
    records = read_training_data(things).records[:4]
    batch = collator.batch(records)
    distilled = replace(batch, distilled=torch.ones(4, dtype=torch.bool))
    with torch.no_grad():
        own = model.logits(distilled)

    def gradient(teacher: torch.Tensor | None, rows: torch.Tensor) -> float:
        model.zero_grad()
        model(replace(batch, distilled=rows), teacher).loss.backward()
        return max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)

    nobody = torch.zeros(4, dtype=torch.bool)
    assert gradient(own, distilled.distilled) < 1e-4
    assert gradient(own, nobody) > 0.01
    assert gradient(own, nobody) == pytest.approx(gradient(None, nobody))
    with torch.no_grad():
        mixed = model(replace(batch, distilled=torch.tensor([True, False, True, False])), own + 1.0)
        plain = model(batch)
        soft = model(distilled, own)
    assert min(float(plain.loss), float(soft.loss)) < float(mixed.loss)
    assert float(mixed.loss) < max(float(plain.loss), float(soft.loss))


def test_teacher_is_skipped_without_rehearsal(known: Bundle, things: Path) -> None:
    parts = read_modules(known)
    encoders = FrozenEncoders(known.card, parts.vision, parts.region, torch.device("cpu"))
    batch = Collator(sample_builder(known), encoders, False).batch(
        read_training_data(things).records[:2]
    )

    class Run:
        teacher = None

    assert teacher_logits(Run(), batch) is None  # type: ignore[arg-type]
