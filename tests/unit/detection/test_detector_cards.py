"""Named detectors and families, and kinds from outside the package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.detection.detectors import CLOSED, OPEN, WRITERS
from regionqa.detection import base
from regionqa.detection.base import DetectorInfo, ScoredBoxes, register_detector
from regionqa.detection.cards import (
    BUNDLE,
    FoundDetector,
    Vocabulary,
    cards_of,
    detector_cards,
    family_of,
)
from regionqa.detection.detector import load_detector
from regionqa.errors import UsageError
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device


def test_cards_are_of_known_families_and_name_their_files() -> None:
    for name, card in detector_cards().items():
        assert card.name == name
        assert family_of(card.family) is not None
        assert card.source.licence and card.source.size
    assert {card.family for card in detector_cards().values()} == {*WRITERS}
    assert {card.family for card in cards_of(Vocabulary.open)} == {*OPEN}
    assert {card.family for card in cards_of(Vocabulary.fixed)} == {*CLOSED}


def test_families_of_transformers_need_no_file() -> None:
    assert family_of("deformable_detr") is not None
    assert family_of("llama") is None


class MiddleDetector:
    """Finds the middle of every image."""

    info = DetectorInfo("middle", "1", Vocabulary.fixed, ("thing",), 0.5, 1.0, "cpu", "none")

    def check_phrases(self, phrases: Sequence[str]) -> None:
        if phrases:
            raise UsageError("--find: is not looked for")

    def detect(self, image: Image.Image, phrases: Sequence[str], min_score: float) -> ScoredBoxes:
        width, height = image.size
        box = [width / 4, height / 4, width * 3 / 4, height * 3 / 4]
        return ScoredBoxes(np.array([box]), np.array([0.9]), (0,), ("thing",))


def test_a_model_with_a_detector_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A further way to open one can be registered."""
    opened: list[tuple[str, Device]] = []

    def open_detector(
        found: FoundDetector, device: Device, runtime: VisionRuntime
    ) -> MiddleDetector:
        opened.append((found.name, device))
        return MiddleDetector()

    monkeypatch.setattr(base, "KINDS", dict(base.KINDS))
    register_detector(BUNDLE, open_detector)
    image = np.zeros((40, 80, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    detector = load_detector("starter", device="cpu")
    from regionqa.images.reading import open_image

    (region,) = detector.find(open_image(tmp_path / "image.png")).regions
    assert region.box.xyxy == (20, 10, 60, 30)
    assert (region.label, region.score) == ("thing", 0.9)
    assert opened == [("starter", Device.cpu)]


def test_the_revision_depends_on_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "KINDS", {BUNDLE: lambda *_: MiddleDetector()})
    revisions = {
        load_detector("starter", device="cpu", **options).revision
        for options in ({}, {"min_score": 0.4}, {"max_boxes": 3}, {"only": ("thing",)})
    }
    assert len(revisions) == 4
