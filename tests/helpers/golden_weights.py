"""The golden sets: what the two published systems compute on weights made from names.

No weights are stored. A tensor follows from its name, its shape and the set's salt, so that a
checkpoint of any size can be made anywhere; `golden_checkpoints` writes them as published files. A
set is a folder; the committed one is `golden/`, and `pytest --golden DIR` takes another. All that
differs between sets is read from their files.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COMMITTED = Path(__file__).parents[1] / "golden"
Floats = NDArray[np.float32]
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Make = Callable[[str, Shape], Floats]
"""The tensor of a name and a shape, float32."""
PUBLISHED_ROWS = 32000
"""Rows of LLaMA's embeddings."""


@dataclass(frozen=True)
class GoldenSet:
    """One system's folder of a golden set."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The file meta.json."""
        found: dict[str, Any] = self.json("meta.json")
        return found

    @property
    def salt(self) -> str:
        """Salt of the set's tensors and images."""
        return str(self.meta["salt"])

    def json(self, name: str) -> Any:
        """A JSON file."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """All arrays of an .npz file."""
        with np.load(self.folder / name) as arrays:
            return {key: arrays[key] for key in arrays.files}


def stream(name: str, salt: str) -> np.random.Generator:
    """Return the random generator of a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}:{name}".encode())))


def gpt4roi_maker(salt: str) -> Make:
    """Tensors of GPT4RoI's set: normal with deviation 0.02 around 0, scales of norms around 1.

    Those named `input:...` have deviation 1.
    """

    def make(name: str, shape: Shape) -> Floats:
        values = stream(name, salt).standard_normal(shape, dtype=np.float32)
        if name.startswith("input:"):
            return values
        values *= np.float32(0.02)
        if len(shape) == 1 and name.endswith(".weight"):
            values += np.float32(1)
        return values

    return make


def pvit_maker(salt: str) -> Make:
    """Tensors of PVIT's set: matrices scaled by their inputs, filters that sum to nothing."""

    def make(name: str, shape: Shape) -> Floats:
        values: Floats = stream(name, salt).standard_normal(shape, dtype=np.float32)
        last = name.rpartition(".")[2]
        if last == "running_var":
            values = np.abs(values) * np.float32(0.1)
            values += np.float32(1)
            return values
        if last == "weight" and len(shape) == 1:
            return np.float32(1) + np.float32(0.02) * values
        if last == "weight" and len(shape) == 4:
            values -= values.mean((1, 2, 3), np.float64, keepdims=True).astype(np.float32)
            return values * np.float32(1.4 / np.sqrt(np.prod(shape[1:])))
        if last == "weight" and len(shape) == 2 and "embed" not in name:
            return values * np.float32(1.6 / np.sqrt(shape[1]))
        return np.float32(0.02) * values

    return make


def gpt4roi_image(name: str, height: int, width: int, salt: str) -> NDArray[np.uint8]:
    """An image of noise (height, width, 3)."""
    return stream(name, salt).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pvit_image(name: str, height: int, width: int, salt: str) -> NDArray[np.uint8]:
    """An image of overlapping squares of three sizes (height, width, 3)."""
    numbers = stream(f"image:{name}", salt)
    mixed = np.zeros((height, width, 3), np.int64)
    for side, share in ((48, 5), (12, 2), (1, 1)):
        rows, columns = -(-height // side), -(-width // side)
        squares = numbers.integers(0, 256, (rows, columns, 3))
        whole = squares.repeat(side, axis=0).repeat(side, axis=1)
        mixed += share * whole[:height, :width]
    return (mixed // 8).astype(np.uint8)


def batch_norm(name: str, channels: int) -> dict[str, Shape]:
    """The four buffers of a frozen BatchNorm."""
    return {
        f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")
    }


def linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    """Weight and bias of a linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes of a LLaMA; the default is 7B."""

    hidden: int = 4096
    inner: int = 11008
    layers: int = 32
    heads: int = 32

    def shapes(self, rows: int) -> dict[str, Shape]:
        """Every weight of a causal LLaMA with so many rows of embeddings."""
        square, wide = (self.hidden, self.hidden), (self.inner, self.hidden)
        found: dict[str, Shape] = {"model.embed_tokens.weight": (rows, self.hidden)}
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            for part in "qkvo":
                found[f"{layer}.self_attn.{part}_proj.weight"] = square
            found[f"{layer}.mlp.gate_proj.weight"] = wide
            found[f"{layer}.mlp.up_proj.weight"] = wide
            found[f"{layer}.mlp.down_proj.weight"] = wide[::-1]
            found[f"{layer}.input_layernorm.weight"] = (self.hidden,)
            found[f"{layer}.post_attention_layernorm.weight"] = (self.hidden,)
        found["model.norm.weight"] = (self.hidden,)
        found["lm_head.weight"] = (rows, self.hidden)
        return found


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of a CLIP vision tower; the default is ViT-L/14."""

    width: int = 1024
    inner: int = 4096
    layers: int = 24
    heads: int = 16
    side: int = 224
    patch: int = 14

    def shapes(self) -> dict[str, Shape]:
        """Every weight of the tower, as the published file names them."""
        stem, width = "vision_model", self.width
        found: dict[str, Shape] = {
            f"{stem}.embeddings.class_embedding": (width,),
            f"{stem}.embeddings.patch_embedding.weight": (width, 3, self.patch, self.patch),
            f"{stem}.embeddings.position_embedding.weight": (
                (self.side // self.patch) ** 2 + 1,
                width,
            ),
        }
        norms = [f"{stem}.pre_layrnorm", f"{stem}.post_layernorm"]  # the former is spelled so
        for index in range(self.layers):
            layer = f"{stem}.encoder.layers.{index}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                found |= linear(f"{layer}.self_attn.{part}", width, width)
            found |= linear(f"{layer}.mlp.fc1", width, self.inner)
            found |= linear(f"{layer}.mlp.fc2", self.inner, width)
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        for norm in norms:
            found |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        return found


@dataclass(frozen=True)
class RegionClipSizes:
    """Sizes of RegionCLIP's ResNet; the default is RN50x4."""

    stem: int = 80
    planes: Shape = (80, 160, 320, 640)
    depths: Shape = (4, 6, 10, 6)
    cells: int = 81
    """Rows times columns that the last stage makes of a region."""
    out: int = 640

    def shapes(self) -> dict[str, Shape]:
        """Every tensor under `backbone.`."""
        found: dict[str, Shape] = {}
        channels = 3
        for index, width in enumerate((self.stem // 2, self.stem // 2, self.stem), start=1):
            found[f"backbone.conv{index}.weight"] = (width, channels, 3, 3)
            found |= batch_norm(f"backbone.bn{index}", width)
            channels = width
        for index, (planes, depth) in enumerate(zip(self.planes, self.depths, strict=True), 1):
            for number in range(depth):
                block = f"backbone.layer{index}.{number}"
                for order, shape in enumerate(
                    [(planes, channels, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)],
                    start=1,
                ):
                    found[f"{block}.conv{order}.weight"] = shape
                    found |= batch_norm(f"{block}.bn{order}", shape[0])
                if not number:
                    found[f"{block}.downsample.0.weight"] = (4 * planes, channels, 1, 1)
                    found |= batch_norm(f"{block}.downsample.1", 4 * planes)
                channels = 4 * planes
        found["backbone.attnpool.positional_embedding"] = (self.cells + 1, channels)
        for part in "qkv":
            found |= linear(f"backbone.attnpool.{part}_proj", channels, channels)
        return found | linear("backbone.attnpool.c_proj", channels, self.out)


def gpt4roi_shapes(
    llama: LlamaSizes, clip: ClipSizes, *, width: int = 1024, roi: int = 14, added: int = 6
) -> dict[str, Shape]:
    """Every weight of a GPT4RoI checkpoint. width: channels of the fused levels."""
    found = llama.shapes(PUBLISHED_ROWS + added)
    found |= linear("model.mm_projector", clip.width, llama.hidden)
    fuse, cut = "model.spi_module.mlvl_fuse", "model.spi_module.roi_align"
    for level in range(4):
        found[f"{fuse}.input_conv.{level}.weight"] = (width, clip.width + 2, 1, 1)
        found[f"{fuse}.input_conv.{level}.bias"] = (width,)
        found[f"{cut}.pconvs.{level}.weight"] = (width, width, 3, 3)
        found[f"{cut}.pconvs.{level}.bias"] = (width,)
    for index in range(5):
        found[f"{fuse}.fuse_convs.{index}.conv.weight"] = (width, width, 3, 3)
        found[f"{fuse}.fuse_convs.{index}.gn.weight"] = (width,)
        found[f"{fuse}.fuse_convs.{index}.gn.bias"] = (width,)
    for index, (inputs, outputs) in ((0, (4, 256)), (3, (256, 1024))):
        found |= linear(f"{cut}.pos_embedd.{index}", inputs, outputs)
        found[f"{cut}.pos_embedd.{index + 2}.weight"] = (outputs,)
        found[f"{cut}.pos_embedd.{index + 2}.bias"] = (outputs,)
    found |= linear(f"{cut}.flatten_linear", width * roi**2, 1024)
    return found | linear(f"{cut}.updims", 1024, llama.hidden)


def pvit_shapes(
    llama: LlamaSizes, clip: ClipSizes, region: RegionClipSizes, *, added: int = 5
) -> dict[str, Shape]:
    """Every weight of a PVIT checkpoint."""
    found = llama.shapes(PUBLISHED_ROWS + added)
    found |= linear("model.mm_projector", clip.width, llama.hidden)
    found |= linear("model.prompt_projector", region.out, llama.hidden)
    return found | linear("model.bbox_fc", 4, llama.hidden)
