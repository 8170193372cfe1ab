"""Bundles like GPT4RoI with random weights, in the published size and a reduced one.

The same functions write both, so that the code of GPU tests at full size is tested at small size.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from helpers.tiny_models import tiny_card, tiny_tokenizer
from regionqa.bundles.store import Bundle
from regionqa.export.bundle import write_bundle
from regionqa.export.modules.multilevel import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.modules.tower import TowerConfig, TowerVision, tower_table
from regionqa.export.onnx.export import round_to_float16

WORDS = 1600
"""Vocabulary size, larger than the tests' tokenizer, as in the published systems."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a bundle."""

    side: int
    vision_width: int
    vision_layers: int
    sizes: tuple[int, ...]
    width: int
    rounds: int
    roi: int
    region_width: int
    hidden: int
    inner: int
    layers: int
    heads: int
    words: int

    @property
    def patches(self) -> int:
        """Patches along a side."""
        return self.side // 14

    @property
    def language_weights(self) -> int:
        """Weights of the language model."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.layers * layer + 2 * self.words * self.hidden + self.hidden


SEVEN = Shape(224, 1024, 24, (128, 64, 32, 16), 1024, 5, 14, 1024, 4096, 11008, 32, 32, 32006)
"""GPT4RoI-7B, by its published configuration."""
SMALL = Shape(56, 32, 4, (16, 8, 4, 4), 16, 2, 3, 32, 64, 128, 2, 4, WORDS)
MIDDLE = Shape(56, 32, 4, (16, 8, 4, 4), 16, 2, 3, 32, 512, 1024, 4, 8, WORDS)
"""Wide enough for quantized matrices to count."""


def shaped_bundle(shape: Shape, root: Path) -> Bundle:
    """A bundle with random weights, written below `root`; the language model's are float16."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=shape.vision_width, intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers, image_size=shape.side, patch_size=14,
        num_attention_heads=max(2, shape.vision_width // 64),
    )  # fmt: skip
    vision = TowerVision(
        TowerConfig(
            tower_table(tower), hidden_size=shape.hidden, feature_layer=-2, drop_class_token=True,
            levels=(-5, -4, -3, -2),
        )
    )  # fmt: skip
    region = MultiLevelRegionEncoder(
        MultiLevelConfig(
            shape.side, (shape.vision_width,) * 4, shape.sizes, shape.width, shape.rounds,
            groups=shape.width // 4, roi_size=shape.roi, position_width=shape.width // 4,
            region_width=shape.region_width, hidden_size=shape.hidden,
            sides=(shape.patches,) * 4,
        )
    )  # fmt: skip
    for module in (vision, region):
        draw_weights(module)
        round_to_float16(module)
    language = root / "language"
    write_language(shape, language)
    tokenizer = tiny_tokenizer(root / "tokenizer.json")
    bundle, _ = write_bundle(
        root / "bundle", shaped_card(shape), vision.eval(), region.eval(), language, tokenizer
    )
    return bundle


def draw_weights(module: nn.Module) -> None:
    """Draw matrices that keep activations of order one; norms as initialized."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            elif "norm" in name or ".gn." in name or "pos_embedd" in name:
                nn.init.constant_(weight, float(name.endswith("weight")))
            else:
                nn.init.zeros_(weight)


def write_language(shape: Shape, folder: Path) -> None:
    """Write a LLaMA in transformers' format, one shard per layer; all layers have equal weights."""
    folder.mkdir(parents=True)
    drawn: dict[tuple[int, int], Tensor] = {}

    def matrix(rows: int, columns: int) -> Tensor:
        key = (rows, columns)
        if key not in drawn:
            drawn[key] = torch.empty(key).normal_(std=columns**-0.5).half()
        shift = torch.randint(rows, ()).item()  # so that no two are the same
        return drawn[key].roll(int(shift), 0)

    ones = torch.ones(shape.hidden, dtype=torch.float16)
    shards: dict[str, dict[str, Tensor]] = {
        "ends": {
            "model.embed_tokens.weight": matrix(shape.words, shape.hidden),
            "lm_head.weight": matrix(shape.words, shape.hidden),
            "model.norm.weight": ones,
        }
    }
    places: dict[str, str] = {}
    for number in range(-1, shape.layers):
        shard = shards.pop("ends") if number < 0 else layer_weights(shape, number, matrix)
        name = f"part-{number + 1:02}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 2 * shape.language_weights}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "vocab_size": shape.words, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        "dtype": "float16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def layer_weights(shape: Shape, number: int, matrix: Any) -> dict[str, Tensor]:
    """One layer of a LLaMA."""
    wide, inner = shape.hidden, shape.inner
    named = {f"self_attn.{part}_proj": matrix(wide, wide) for part in "qkvo"}
    named |= {f"mlp.{part}_proj": matrix(inner, wide) for part in ("gate", "up")}
    named["mlp.down_proj"] = matrix(wide, inner)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        named[norm] = torch.ones(wide, dtype=torch.float16)
    return {f"model.layers.{number}.{name}.weight": weight for name, weight in named.items()}


def shaped_card(shape: Shape) -> dict[str, Any]:
    """The card's tables, without those that `write_bundle` adds."""
    card = tiny_card("levels")
    card["name"] = "shaped"
    card["image"]["size"] = shape.side
    card["vision"]["image_tokens"] = shape.patches**2
    card["language"] |= {"context": 2048, "max_new_tokens": 8}
    return card
