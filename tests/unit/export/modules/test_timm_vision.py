"""Backbones of timm: maps as timm computes them, tokens, levels, parity."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionqa.errors import BundleError
from regionqa.export.modules.registry import architecture_table
from regionqa.export.modules.timm_vision import TimmConfig, TimmVision, averaging
from regionqa.export.modules.tower import ProjectorKind
from regionqa.export.onnx.export import export_vision
from regionqa.schema import from_table

EVERYTHING: dict[str, Any] = {
    "name": "test_efficientnet", "input_size": 80, "hidden_size": 24, "levels": (2, -2, -1),
    "top": True, "pixels": 4, "token_grid": 2, "token_width": 12, "scene_token": True,
}  # fmt: skip
"""Every part of the module. The maps' sides are 10, 5, 3 and 3: not all are multiples of 2."""
VIT: dict[str, Any] = {
    "name": "test_vit", "input_size": 64, "hidden_size": 24, "levels": (1, 5), "norm": True,
    "token_grid": 3, "projector": ProjectorKind.mlp2x_gelu,
}  # fmt: skip


def vision_of(**settings: Any) -> TimmVision:
    torch.manual_seed(0)
    vision = TimmVision(TimmConfig(**settings))
    for name, buffer in vision.named_buffers():  # batch normalization as after training
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return vision.eval()


@torch.no_grad()
def test_levels_are_timms_maps_and_the_image() -> None:
    vision = vision_of(**EVERYTHING)
    whole = timm.create_model("test_efficientnet", pretrained=False).eval()
    vision.backbone.load(whole.state_dict())
    image = torch.randn(2, 3, 80, 80)
    tokens, pixels, *maps = vision(image)
    last, wanted = whole.forward_intermediates(image)
    assert torch.equal(pixels, F.avg_pool2d(image, 4))
    assert [map_.shape[1:] for map_ in (pixels, *maps)] == list(vision.level_shapes)
    assert vision.level_shapes[-1] == (256, 3, 3)
    for level, want in zip(maps, (*wanted[2:], last), strict=True):
        assert torch.allclose(level, want, atol=1e-6)
    assert tokens.shape == (2, vision.image_tokens, 24) == (2, 5, 24)


@torch.no_grad()
def test_tokens_are_means_of_the_last_map() -> None:
    vision = vision_of(**{**EVERYTHING, "token_width": 0, "input_size": 128})
    image = torch.randn(2, 3, 128, 128)
    features, levels = vision.features(image)
    last = levels[-1]  # (2, 256, 4, 4)
    assert torch.allclose(features[:, 0], last.mean((2, 3)), atol=1e-5)
    cells = F.adaptive_avg_pool2d(last, 2).flatten(2).transpose(1, 2)
    assert torch.allclose(features[:, 1:], cells, atol=1e-5)


@pytest.mark.parametrize("side", [1, 3, 5, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_averaging_gives_every_value_its_share(side: int, count: int) -> None:
    weights = averaging(side, count)
    assert torch.allclose(weights.sum(1), torch.ones(count))
    assert torch.allclose(weights.sum(0), torch.full((side,), count / side))
    if side % count == 0:
        row = torch.randn(1, 1, side)
        means = F.adaptive_avg_pool1d(row, count)[0, 0]
        assert torch.allclose(weights @ row[0, 0], means, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({"name": "test_vit", "levels": (1, 5), "norm": True}, [(64, 10, 10)] * 2),
        ({"name": "test_mambaout", "levels": (2,), "top": True}, [(48, 10, 10), (64, 5, 5)]),
        ({"name": "test_resnet"}, []),
    ],
)
@torch.no_grad()
def test_other_families(settings: dict[str, Any], shapes: list[tuple[int, int, int]]) -> None:
    vision = vision_of(**settings, input_size=160, hidden_size=24, token_grid=2)
    tokens, *levels = vision(torch.randn(1, 3, 160, 160))
    assert [tuple(level.shape[1:]) for level in levels] == list(vision.level_shapes) == shapes
    assert tokens.shape == (1, 4, 24)


def test_image_size_other_than_the_architectures() -> None:
    vision = vision_of(name="test_vit", input_size=96, hidden_size=8, levels=(5,))
    assert vision.level_shapes == ((64, 6, 6),)
    with pytest.raises(BundleError, match=r"timm's test_vit at 100 pixels: .*100"):
        vision_of(name="test_vit", input_size=100, hidden_size=8)


def test_batch_normalization_is_never_trained() -> None:
    vision = vision_of(**EVERYTHING)
    before = {name: value.clone() for name, value in vision.state_dict().items()}
    vision.train()
    assert vision.training and not vision.backbone.training
    assert not any(module.training for module in vision.backbone.modules())
    image = torch.randn(2, 3, 80, 80)
    tokens, *_ = vision(image)
    tokens.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in vision.state_dict().items())
    stem: Tensor = vision.backbone.model.conv_stem.weight
    assert stem.grad is not None and stem.grad.abs().sum() > 0


def test_modules_without_effect_are_left_out() -> None:
    with_top = vision_of(**EVERYTHING).backbone
    without = vision_of(**{**EVERYTHING, "top": False}).backbone
    assert "classifier" in {
        name for name, _ in timm.create_model("test_efficientnet").named_children()
    }
    assert "model.conv_head.weight" in with_top.state_dict()
    assert "model.conv_head.weight" not in without.state_dict()
    whole = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    without.load(whole)
    with pytest.raises(BundleError, match=r"missing \['bn1.bias'\] \(1\), unknown \['new'\] \(1\)"):
        without.load({"new": torch.zeros(1), **{n: v for n, v in whole.items() if n != "bn1.bias"}})
    with pytest.raises(BundleError, match=r"size mismatch for conv_stem\.weight"):
        without.load({**whole, "conv_stem.weight": torch.zeros(1)})


def test_architecture_table() -> None:
    vision = vision_of(**EVERYTHING, projector=ProjectorKind.mlp2x_gelu)
    table = architecture_table(vision)
    assert table.pop("kind") == "timm"
    config = from_table(TimmConfig, {**table, "levels": list(table["levels"])}, "architecture")
    assert config == vision.config
    TimmVision(config).load_state_dict(vision.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "nonesuch"}, "has no architecture 'nonesuch'"),
        ({"name": "hf-hub:someone/model"}, "has no architecture"),
        ({"token_grid": 0}, "token_grid is 0"),
        ({"pixels": 3}, "pixels 3 does not divide input_size 80"),
        ({"levels": ()}, "pixels: has no effect without levels"),
        ({"levels": (5,)}, r"levels are \[5\]; it has maps 0 to 4"),
        ({"levels": (-1, 4)}, "to be named once each, shallowest first"),
        ({"name": "test_vit", "top": True, "input_size": 160}, "top: its last output is no map"),
    ],
)
def test_invalid_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, BundleError), match=message):
        TimmVision(TimmConfig(**{**EVERYTHING, **changes}))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(EVERYTHING, id="efficientnet"),
        pytest.param(VIT, id="vit", marks=pytest.mark.slow),
    ],
)
def test_graph_equals_torch(settings: dict[str, Any], tmp_path: Path) -> None:
    vision = vision_of(**settings)
    report = export_vision(vision, tmp_path / "vision.onnx")
    report.check()
    for weight in vision.parameters():
        weight.data.mul_(1.1)
    again = export_vision(vision, tmp_path / "again.onnx", like=tmp_path / "vision.onnx")
    again.check()


@torch.no_grad()
def test_folded_batch_normalization_changes_nothing() -> None:
    vision = vision_of(**EVERYTHING)
    folded, pixels = vision.folded(), torch.randn(2, 3, 80, 80)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    rebuilt = TimmVision(folded.config)
    rebuilt.load_state_dict(folded.state_dict())
    expected = vision.features(pixels)
    for each in (folded, rebuilt):
        tokens, levels = each.features(pixels)
        assert torch.allclose(tokens, expected[0], atol=1e-4)
        assert all(map(partial(torch.allclose, atol=1e-3), levels, expected[1]))
