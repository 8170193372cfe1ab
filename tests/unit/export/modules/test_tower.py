"""Published vision towers: hidden states as in transformers, unused layers left out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, CLIPVisionConfig, SiglipVisionConfig

from regionqa.bundles.model_config import VisionSizes, text_sizes, vision_sizes
from regionqa.errors import BundleError
from regionqa.export.modules.registry import architecture_table
from regionqa.export.modules.tower import ProjectorKind, TowerConfig, TowerVision, tower_table
from regionqa.schema import from_table

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
    "image_size": 42, "patch_size": 14, "initializer_range": 0.2,
}  # fmt: skip
TOWERS = {"clip": CLIPVisionConfig(**SHAPE), "siglip": SiglipVisionConfig(**SHAPE)}


def tower(kind: str, **settings: Any) -> tuple[TowerVision, Any]:
    """A truncated tower, and the complete one that its weights come from."""
    torch.manual_seed(0)
    whole = AutoModel.from_config(TOWERS[kind]).eval()
    vision = TowerVision(TowerConfig(tower_table(TOWERS[kind]), hidden_size=24, **settings)).eval()
    vision.load_tower(whole.state_dict())
    return vision, whole


@pytest.mark.parametrize("layer", [-1, -2, 2, 0])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_outputs_equal_hidden_states(kind: str, layer: int) -> None:
    first = int(kind == "clip")
    vision, whole = tower(kind, feature_layer=layer, drop_class_token=bool(first), levels=(1, 2))
    pixels = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        states = whole(pixels, output_hidden_states=True).hidden_states
        found, levels = vision.features(pixels)
        tokens, *_ = vision(pixels)
    assert torch.equal(found, states[layer][:, first:])
    assert tokens.shape == (2, vision.image_tokens, 24) == (2, 9, 24)
    for level, state in zip(levels, states[1:], strict=False):
        assert level.shape[1:] == vision.level_shapes[0] == (32, 3, 3)
        for row, column in ((0, 0), (0, 2), (2, 1)):  # row by row, as patches are read
            patch = state[:, first + 3 * row + column]
            assert torch.equal(level[:, :, row, column], patch)


def test_unused_layers_are_left_out() -> None:
    vision, _ = tower("siglip", feature_layer=-2, drop_class_token=False)
    names = {name.split(".")[0] for name, _ in vision.tower.named_parameters()}
    assert names == {"embeddings", "encoder"}
    assert len(vision.tower.encoder.layers) == 3
    _, whole = tower("clip")
    weights = whole.state_dict()
    del weights["pre_layrnorm.bias"]
    with pytest.raises(BundleError, match=r"missing \['pre_layrnorm.bias'\], unknown \['new'\]"):
        tower("clip")[0].load_tower({**weights, "new": torch.zeros(1)})


def test_class_token_option() -> None:
    vision, _ = tower("clip", drop_class_token=False, levels=(2,))
    tokens, level = vision(torch.randn(1, 3, 42, 42))
    assert tokens.shape == (1, 10, 24)
    assert level.shape == (1, 32, 3, 3)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_architecture_table(kind: str) -> None:
    vision, _ = tower(kind, projector=ProjectorKind.linear, levels=(1, 3))
    table = architecture_table(vision)
    assert table.pop("kind") == "tower"
    assert set(table["tower"]) <= {"model_type", *SHAPE}
    config = from_table(TowerConfig, {**table, "levels": list(table["levels"])}, "architecture")
    assert config == vision.config
    again = TowerVision(config)
    again.load_state_dict(vision.state_dict())


def test_invalid_towers() -> None:
    with pytest.raises(BundleError, match="'bert' is not a supported vision tower"):
        tower_table(BertConfig())
    good = TowerConfig(tower_table(TOWERS["clip"]), hidden_size=24)
    for changes, message in (
        ({"tower": {"model_type": "bert"}}, "model_type is 'bert'"),
        ({"tower": {"model_type": "clip_vision_model", "hidden_size": "x"}}, "hidden_size"),
        ({"feature_layer": 5}, "it has 4 layers, no hidden state 5"),
        ({"levels": (1, -6)}, "it has 4 layers, no hidden state -6"),
        ({"activation": "gelo"}, "the activation 'gelo' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **changes)


def test_config_names_are_normalized() -> None:
    assert vision_sizes(TOWERS["clip"]) == VisionSizes(width=32, layers=4, side=42, patch=14)
    pairs = SiglipVisionConfig(**{**SHAPE, "image_size": [42, 42], "patch_size": (14, 14)})
    assert vision_sizes(pairs).grid == 3
    with pytest.raises(BundleError, match="image_size is"):
        vision_sizes(SiglipVisionConfig(**{**SHAPE, "image_size": [42, 28]}))
    from transformers import GPT2Config

    sizes = text_sizes(GPT2Config(n_embd=8, n_layer=3, n_positions=77, vocab_size=99))
    assert (sizes.hidden_size, sizes.layers, sizes.context, sizes.vocabulary) == (8, 3, 77, 99)
