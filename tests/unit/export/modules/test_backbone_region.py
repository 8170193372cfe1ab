"""The region encoder with a backbone of its own: features, sizes, graph."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regionqa.export.backbones import new_roi_encoder
from regionqa.export.modules.registry import architecture_table
from regionqa.export.modules.roi import (
    BackboneRegionConfig,
    BackboneRegionEncoder,
    RoIRegionEncoder,
)
from regionqa.export.modules.timm_vision import TimmConfig, TimmVision
from regionqa.export.onnx.export import export_region
from regionqa.schema import from_table

BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0], [0.7, 0.1, 0.8, 0.2]])
INDEX = torch.tensor([1, 0, 1])


@pytest.fixture(scope="module")
def parts() -> tuple[TimmVision, RoIRegionEncoder]:
    """A vision encoder that gives levels, and a region encoder that reads them."""
    torch.manual_seed(0)
    config = TimmConfig(
        "test_efficientnet", 64, hidden_size=24, levels=(2, 3), top=True, pixels=4, token_grid=2
    )
    vision = TimmVision(config).eval()
    return vision, new_roi_encoder(vision).eval()


def joined(parts: tuple[TimmVision, RoIRegionEncoder], side: int) -> BackboneRegionEncoder:
    torch.manual_seed(1)
    return BackboneRegionEncoder.of(*parts, hidden_size=16, input_size=side)


@torch.no_grad()
def test_vectors_are_those_over_the_vision_encoder(
    parts: tuple[TimmVision, RoIRegionEncoder],
) -> None:
    vision, region = parts
    pixels = torch.randn(2, 3, 64, 64)
    _, levels = vision.features(pixels)
    encoder = joined(parts, 64)
    found = encoder.region_vectors([pixels], BOXES, INDEX)
    assert torch.allclose(found, region.region_vectors(levels, BOXES, INDEX), atol=1e-6)
    assert encoder([pixels], BOXES, INDEX).shape == (3, 1, 16)


@torch.no_grad()
def test_image_of_another_size(parts: tuple[TimmVision, RoIRegionEncoder]) -> None:
    encoder = joined(parts, 128)
    assert encoder.reads_pixels and encoder.source_shapes == ((3, 128, 128),)
    assert encoder.config.sides == tuple(2 * side for side in parts[1].config.sides)
    tokens = encoder([torch.randn(1, 3, 128, 128)], BOXES, torch.zeros_like(INDEX))
    assert tokens.isfinite().all()


def test_architecture_table(parts: tuple[TimmVision, RoIRegionEncoder]) -> None:
    encoder = joined(parts, 64)
    table = architecture_table(encoder)
    assert table.pop("kind") == "backbone"
    assert from_table(BackboneRegionConfig, table, "card") == encoder.config


@pytest.mark.slow
def test_graph_equals_torch(parts: tuple[TimmVision, RoIRegionEncoder], tmp_path: Path) -> None:
    encoder = joined(parts, 96)
    export_region(encoder, tmp_path / "region.onnx").check()


def test_backbone_of_another_vision_encoder(parts: tuple[TimmVision, RoIRegionEncoder]) -> None:
    vision, region = parts
    other = TimmVision(replace(vision.config, levels=(2,))).eval()
    with pytest.raises(ValueError, match="3 sides"):
        BackboneRegionEncoder.of(other, region, hidden_size=16, input_size=64)
