"""The recipe's training of the detection head: which cells learn what, the loss, resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from recipes.starter import detector as recipe
from recipes.starter.detector import (
    DetectorSettings,
    assign,
    detection_loss,
    fit_head,
    train_detector,
)
from recipes.starter.encoders import EncoderSettings, StarterEncoders
from recipes.starter.photos import Photo
from regionqa.export.modules.detection import DetectionConfig, DetectionHead

SETTINGS = DetectorSettings(crops=0, epochs=8, batch=2, save_every=2)
CONFIG = DetectionConfig((3, 4, 8), (32, 8, 4), 3, pixels=True, width=8, groups=2)
POINTS = DetectionHead(CONFIG).get_buffer("points")
"""(80, 2): 8 x 8 cells, then 4 x 4."""
CELLS = len(POINTS)
SCORES = torch.full((CELLS, 3), 0.1)


def around(points: Tensor, side: float) -> Tensor:
    """Squares (P, 4) around points (P, 2)."""
    return torch.cat([points - side / 2, points + side / 2], 1)


def test_an_object_is_learned_by_cells_inside_in_the_column_of_its_class() -> None:
    truth = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    wanted, boxes = assign(SCORES, around(POINTS, 0.5), POINTS, truth, torch.tensor([2]), SETTINGS)
    cells = wanted.sum(1).nonzero().flatten()
    assert 0 < len(cells) <= SETTINGS.cells
    assert ((POINTS[cells] > 0) & (POINTS[cells] < 0.5)).all()
    assert wanted[:, :2].sum() == 0
    assert (boxes[cells] == truth).all()
    # the best cell learns its overlap: centre (0.3125, 0.3125), or as far on the other side
    best = wanted.max().item()
    side = 0.5 - 0.0625
    assert best == pytest.approx(side**2 / (0.5 - side**2), abs=1e-5)


def test_cells_are_those_of_higher_score_and_overlap() -> None:
    truth, label = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0])
    few = replace(SETTINGS, cells=1)
    boxes = around(POINTS, 0.1)
    boxes[77] = truth[0]
    wanted, _ = assign(SCORES, boxes, POINTS, truth, label, few)
    assert wanted.nonzero().tolist() == [[77, 0]] and wanted[77, 0] == 1
    boxes[70] = truth[0]
    scores = SCORES.clone()
    scores[70, 0] = 0.9
    wanted, _ = assign(scores, boxes, POINTS, truth, label, few)
    assert wanted.nonzero().tolist() == [[70, 0]]


def test_an_object_without_a_centre_inside_is_learned_by_the_nearest() -> None:
    truth = torch.tensor([[0.24, 0.24, 0.26, 0.26]])  # where four cells meet, beside a coarse one
    wanted, boxes = assign(SCORES, around(POINTS, 0.2), POINTS, truth, torch.tensor([1]), SETTINGS)
    (cell,) = wanted.sum(1).nonzero().flatten().tolist()
    assert (boxes[cell] == truth[0]).all()


def test_a_cell_learns_the_object_that_it_overlaps_most() -> None:
    truth = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.4, 0.4, 0.8, 0.8]])
    wanted, boxes = assign(
        SCORES, around(POINTS, 0.4), POINTS, truth, torch.tensor([0, 1]),
        replace(SETTINGS, cells=CELLS),
    )  # fmt: skip
    assert (wanted > 0).sum(1).max() == 1
    inner = wanted[:, 1] > 0
    assert inner.any() and (boxes[inner] == truth[1]).all()
    assert (boxes[wanted[:, 0] > 0] == truth[0]).all()


def test_an_image_without_objects_teaches_low_scores() -> None:
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = [
        detection_loss(
            torch.full((1, CELLS, 3), logit), around(POINTS, 0.1)[None], POINTS, [nothing], SETTINGS
        )
        for logit in (-9.0, 0.0)
    ]
    assert losses[0] < 0.01 < losses[1]


def views() -> dict[str, list[Tensor]]:
    """Four views: a bright square on maps of noise."""
    torch.manual_seed(5)
    levels = [torch.randn(4, 4, 8, 8).half(), torch.randn(4, 8, 4, 4).half()]
    boxes = []
    for row in range(4):
        levels[0][row, :, row : row + 4, 2:6] += 5
        boxes.append(torch.tensor([[2 / 8, row / 8, 6 / 8, (row + 4) / 8]]))
    return {
        "levels": levels,
        "boxes": boxes,
        "labels": [torch.tensor([row % 3]) for row in range(4)],
    }


def new_head() -> DetectionHead:
    torch.manual_seed(0)
    return DetectionHead(CONFIG)


def test_what_is_trained_finds_the_objects(tmp_path: Path) -> None:
    head, shown = new_head(), views()
    fit_head(head, shown, replace(SETTINGS, epochs=60, rate=1e-2, batch=4), tmp_path / "state")
    with torch.no_grad():
        boxes, scores = head(shown["levels"][0], *[each.float() for each in shown["levels"]])
    for row in range(4):
        cell, label = divmod(int(scores[row].argmax()), 3)
        assert label == row % 3
        low = torch.maximum(boxes[row, cell, :2], shown["boxes"][row][0, :2])
        high = torch.minimum(boxes[row, cell, 2:], shown["boxes"][row][0, 2:])
        assert (high - low).clamp(min=0).prod() > 0.15  # of 0.25


def test_an_interrupted_training_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, interrupted, continued = new_head(), new_head(), new_head()
    fit_head(whole, views(), SETTINGS, tmp_path / "whole")
    steps: list[int] = []
    loss = recipe.detection_loss

    def fails(*arguments: object) -> Tensor:
        steps.append(len(steps))
        if len(steps) == 8:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "detection_loss", fails)
        with pytest.raises(KeyboardInterrupt):
            fit_head(interrupted, views(), SETTINGS, tmp_path / "state")
    fit_head(continued, views(), SETTINGS, tmp_path / "state")
    for name, value in whole.state_dict().items():
        assert torch.equal(continued.state_dict()[name], value)


def test_the_stage_writes_a_head_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoders = StarterEncoders(
        EncoderSettings(
            architecture="test_efficientnet", levels=(1, 2), side=96, width=16, hidden_size=32,
            place_width=8,
        ),
        3,
    ).eval()  # fmt: skip
    photos = []
    for number in range(3):
        Image.new("RGB", (120, 80), (90, 90, 80 * number)).save(tmp_path / f"{number}.png")
        boxes = np.array([[10, 10, 60, 70]], np.float32)[:number]  # the first photo has none
        photos.append(
            Photo(tmp_path / f"{number}.png", (120, 80), boxes, np.zeros(len(boxes), int), ())
        )
    settings = replace(SETTINGS, crops=1, epochs=2)
    head = train_detector(encoders, photos, settings, tmp_path)
    assert not (tmp_path / "levels.pt").exists()  # gigabytes, of real data
    assert [each.half().float().equal(each) for each in head.parameters()].count(False) == 0
    before = (tmp_path / "detector.pt").stat().st_mtime_ns
    again = train_detector(encoders, photos, settings, tmp_path)
    assert before == (tmp_path / "detector.pt").stat().st_mtime_ns
    for name, value in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    levels = encoders.vision.features(torch.zeros(1, 3, 96, 96))[1]
    assert again(*levels)[0].shape[1] == len(again.get_buffer("points"))
