"""The detection head: which cells and levels it reads, what its boxes mean, and its graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from regionqa.export.modules.detection import DetectionConfig, DetectionHead
from regionqa.export.onnx.export import export_detector, round_to_float16
from regionqa.export.onnx.verify import TOLERANCE
from regionqa.runtime.devices import Device, open_session

LITE = DetectionConfig((3, 4, 8, 8, 16), (32, 16, 8, 4, 4), 3, pixels=True, width=8, groups=2)
"""As on a timm backbone: the image, three maps, and one more of the last map's size."""


@pytest.fixture
def head() -> DetectionHead:
    torch.manual_seed(0)
    head = DetectionHead(LITE)
    nn.init.normal_(head.classes.weight)
    return head.eval()


def levels(config: DetectionConfig, images: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    sizes = zip(config.in_channels, config.sides, strict=True)
    return [torch.randn(images, channels, side, side) for channels, side in sizes]


@torch.no_grad()
def test_a_box_reaches_from_its_cell_to_the_sides(head: DetectionHead) -> None:
    nn.init.zeros_(head.distances.weight)
    head.distances.bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]).expm1().log())
    boxes, scores = head(*levels(LITE))
    assert boxes.shape == (2, 16 * 16 + 8 * 8 + 4 * 4, 4)
    assert scores.shape == (2, 336, 3)
    first, row, coarse = boxes[0, 0], boxes[0, 16], boxes[0, 16 * 16 + 8 * 8]
    assert first.tolist() == pytest.approx([(0.5 + x) / 16 for x in (-1, -2, 3, 4)], abs=1e-6)
    assert (row - first).tolist() == pytest.approx([0, 1 / 16, 0, 1 / 16], abs=1e-6)
    assert coarse.tolist() == pytest.approx([(0.5 + x) / 4 for x in (-1, -2, 3, 4)], abs=1e-6)


@torch.no_grad()
def test_scores_are_probabilities_low_at_first() -> None:
    _, scores = DetectionHead(LITE).eval()(*levels(LITE))
    assert scores.min() > 0.001 and scores.max() < 0.1


@torch.no_grad()
def test_every_level_but_the_image_counts_for_its_own_image(head: DetectionHead) -> None:
    given = levels(LITE)
    before = head(*given)
    for number in range(len(given)):
        changed = [each.clone() for each in given]
        changed[number][1] += 1
        changed[number][1, 0] *= 2
        after = head(*changed)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[0], new[0])
            assert torch.equal(old[1], new[1]) == (number == 0)


@pytest.mark.parametrize("half", [False, True])
def test_the_graph_equals_torch(head: DetectionHead, tmp_path: Path, half: bool) -> None:
    if half:
        round_to_float16(head)
    report = export_detector(head, tmp_path / "detector.onnx")
    assert report.difference <= TOLERANCE
    assert report.cases == ("1 images", "3 images")
    graph = open_session(tmp_path / "detector.onnx", Device.cpu)
    given = {f"level{index}": each.numpy() for index, each in enumerate(levels(LITE, 5))}
    boxes, scores = graph.run(["boxes", "scores"], given)
    with torch.no_grad():
        wanted = head(*levels(LITE, 5))
    assert np.abs(boxes - wanted[0].numpy()).max() < TOLERANCE
    assert np.abs(scores - wanted[1].numpy()).max() < TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sides": (16, 8)}, "3 in_channels, but 2 sides"),
        ({"in_channels": (4,), "sides": (8,), "pixels": True}, "there is no level"),
        ({"sides": (8, 16, 4)}, "the largest comes first"),
        ({"classes": 0}, "classes is 0"),
        ({"groups": 3}, "groups 3"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"in_channels": (4, 8, 8), "sides": (16, 8, 4), "classes": 2, "width": 8}
    with pytest.raises(ValueError, match=message):
        DetectionConfig(**(good | changes))
