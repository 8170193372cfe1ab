"""The region encoder over a backbone's maps: features, boxes of every kind, graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align

from regionqa.export.modules.positions import PLACES, box_position
from regionqa.export.modules.registry import architecture_table
from regionqa.export.modules.roi import RoIConfig, RoIRegionEncoder, inside, roi_means
from regionqa.export.onnx.export import export_region
from regionqa.export.onnx.interface import RegionGraph
from regionqa.export.onnx.verify import TOLERANCE, compare
from regionqa.schema import from_table

SMALL: dict[str, Any] = {
    "in_channels": (3, 6, 8), "sides": (24, 12, 7), "hidden_size": 16, "pixels": True,
    "region_width": 20, "place_width": 8, "dropout": 0.3,
}  # fmt: skip
ODD_BOXES = torch.tensor(
    [
        [0.0, 0.0, 1.0, 1.0],
        [0.5, 0.5, 0.5, 0.5],
        [0.9, 0.8, 0.2, 0.3],
        [-0.5, -0.2, 0.3, 0.4],
        [0.7, 0.7, 1.8, 1.4],
        [1.2, 1.3, 1.5, 1.9],
        [-0.9, -0.9, -0.1, -0.1],
        [0.3, 0.1, 0.30001, 0.9],
    ]
)


def encoder_of(**settings: Any) -> RoIRegionEncoder:
    torch.manual_seed(0)
    return RoIRegionEncoder(RoIConfig(**{**SMALL, **settings})).eval()


def levels_of(encoder: RoIRegionEncoder, images: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(images, c, h or 0, w or 0) for c, h, w in encoder.source_shapes]


@torch.no_grad()
def test_features_are_means_over_the_box_and_the_image() -> None:
    encoder = encoder_of()
    pixels, first, last = levels_of(encoder)
    boxes, index = torch.tensor([[0.25, 0.5, 0.75, 0.9]]), torch.tensor([1])
    found = encoder.pooled([pixels, first, last], boxes, index)
    assert found.shape == (1, encoder.config.pooled_width) == (1, 6 + 8 + 8)
    rois = torch.cat([torch.tensor([[1.0]]), boxes * 12], 1)
    want = roi_align(first, rois, 7, 1.0, sampling_ratio=2, aligned=True).mean((2, 3))
    assert torch.allclose(found[:, :6], want, atol=1e-6)
    assert torch.allclose(found[:, 14:], last[1:].mean((2, 3)), atol=1e-6)
    vector = encoder.region_vectors([pixels, first, last], boxes, index)
    assert vector.shape == (1, encoder.config.vector_width) == (1, 20 + PLACES + 27)
    assert torch.equal(vector[:, 20:28], box_position(boxes))
    assert torch.equal(vector[:, 28:], encoder.colours([pixels, first, last], boxes, index))


@torch.no_grad()
def test_constant_levels_give_their_value_in_every_box() -> None:
    encoder = encoder_of(pool=7, context=False)
    levels = [torch.full_like(level, 0.5) for level in levels_of(encoder)]
    index = torch.zeros(len(ODD_BOXES), dtype=torch.int64)
    pooled = encoder.pooled(levels, ODD_BOXES, index)
    assert pooled.shape == (len(ODD_BOXES), 14 * 49)
    assert torch.allclose(pooled, torch.full_like(pooled, 0.5))
    colours = encoder.colours(levels, ODD_BOXES, index)
    assert torch.allclose(colours, torch.full_like(colours, 0.5))


@torch.no_grad()
def test_colours_are_those_of_the_cells() -> None:
    encoder = encoder_of(colour_grid=2)
    levels = levels_of(encoder)
    levels[0][:] = -1.0
    levels[0][:, 0, :12, 12:] = 1.0  # red at the top right
    colours = encoder.colours(levels, torch.tensor([[0.1, 0.1, 0.9, 0.9]]), torch.tensor([0]))
    red, green, blue = colours.reshape(3, 2, 2)
    assert (red[0, 1] > 0.9) and red[0, 0] < -0.9 and (red[1] < -0.9).all()
    assert torch.allclose(torch.stack([green, blue]), torch.tensor(-1.0))


@torch.no_grad()
def test_inverted_box_is_the_same_region() -> None:
    encoder = encoder_of()
    levels, index = levels_of(encoder), torch.tensor([0, 0])
    boxes = torch.tensor([[0.2, 0.3, 0.9, 0.8], [0.9, 0.8, 0.2, 0.3]])
    first, second = encoder.pooled(levels, boxes, index)
    assert torch.allclose(first, second, atol=1e-6)


@torch.no_grad()
def test_images_do_not_mix() -> None:
    encoder = encoder_of()
    levels = levels_of(encoder, images=3)
    boxes = torch.rand(4, 4)
    index = torch.tensor([2, 0, 2, 1])
    together = encoder(levels, boxes, index)
    for row, image in enumerate(index):
        alone = encoder([level[image : image + 1] for level in levels], boxes[row : row + 1],
                        torch.tensor([0]))  # fmt: skip
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_moved_and_project() -> None:
    encoder = encoder_of()
    vectors, boxes = torch.randn(3, encoder.config.vector_width), torch.rand(3, 4)
    moved = encoder.moved(vectors, boxes)
    assert torch.equal(moved[:, 20:28], box_position(boxes))
    assert torch.equal(moved[:, :20], vectors[:, :20])
    assert torch.equal(moved[:, 28:], vectors[:, 28:])
    tokens = encoder.project(vectors, boxes)
    assert torch.allclose(
        tokens[:, 0], encoder.carry_linear(vectors) + encoder.place(boxes), atol=1e-6
    )
    again = RoIRegionEncoder.with_new_projector(encoder, hidden_size=10)
    assert again.tokens == 1 and again.project(vectors, boxes).shape == (3, 1, 10)
    assert torch.equal(again.join.weight, encoder.join.weight)


def test_feature_width_ends_before_the_position() -> None:
    encoder = encoder_of()
    width = encoder.feature_width
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    vectors = encoder.vectors(torch.ones(1, width), boxes, torch.zeros(1, 27))
    assert vectors[0, :width].eq(1).all()
    torch.testing.assert_close(vectors[:, width : width + PLACES], box_position(boxes))


def test_dropout_only_in_training() -> None:
    encoder = encoder_of()
    pooled = torch.randn(50, encoder.config.pooled_width)
    assert torch.equal(encoder.features(pooled), encoder.join(pooled).relu())
    torch.manual_seed(0)
    encoder.train()
    dropped = (encoder.features(pooled) == 0).sum() > (encoder.join(pooled) <= 0).sum()
    assert dropped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": 2}, "pool 2 does not divide roi_size 7"),
        ({"sides": (24, 12)}, "3 in_channels, but 2 sides"),
        ({"in_channels": (3,), "sides": (24,)}, "there is no level"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_invalid_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder_of(**changes)


def test_architecture_table() -> None:
    encoder = encoder_of()
    table = architecture_table(encoder)
    assert table.pop("kind") == "roi"
    assert from_table(RoIConfig, table, "architecture") == encoder.config


def test_graph_equals_torch(tmp_path: Path) -> None:
    encoder, path = encoder_of(), tmp_path / "region.onnx"
    report = export_region(encoder, path)
    report.check()
    assert "1 images with 0 regions" in report.cases
    case: dict[str, Any] = {
        f"level{index}": level.numpy() for index, level in enumerate(levels_of(encoder))
    }
    case["boxes"] = ODD_BOXES.numpy()
    case["image_index"] = np.arange(len(ODD_BOXES)) % 2
    odd = compare(RegionGraph(encoder), path, ["region_tokens"], {"odd boxes": case})
    assert odd.difference < TOLERANCE  # not a number would be infinite


@pytest.mark.slow
def test_graph_without_extras(tmp_path: Path) -> None:
    encoder = encoder_of(
        in_channels=(6, 8), sides=(12, 7), pixels=False, pool=7, context=False, place_width=0
    )
    export_region(encoder, tmp_path / "region.onnx").check()


@settings(max_examples=30, deadline=None)
@given(cells=st.sampled_from([1, 2, 3]), seed=st.integers(0, 1000))
def test_means_are_those_of_roialign(cells: int, seed: int) -> None:
    torch.manual_seed(seed)
    level, boxes = torch.randn(2, 5, 7, 9), torch.rand(6, 4) * 1.4 - 0.2
    index = torch.randint(0, 2, (6,))
    scale = torch.tensor([9.0, 7.0, 9.0, 7.0])
    rois = torch.cat([index.float().unsqueeze(1), inside(boxes) * scale], 1)
    read = roi_align(level, rois, 6, 1.0, sampling_ratio=2, aligned=True)  # (N, C, 6, 6)
    expected = read.reshape(6, 5, cells, 6 // cells, cells, 6 // cells).mean((3, 5))
    found = roi_means(level, boxes, index, cells, 12)
    assert torch.allclose(found, expected, atol=1e-5)
    assert roi_means(level, boxes[:0], index[:0], cells, 12).shape == (0, 5, cells, cells)


def test_means_are_computed_on_the_device_of_the_maps() -> None:
    level, boxes = torch.empty(2, 5, 7, 9, device="meta"), torch.empty(6, 4, device="meta")
    index = torch.zeros(6, dtype=torch.long, device="meta")
    assert roi_means(level, boxes, index, 2, 12).device.type == "meta"
