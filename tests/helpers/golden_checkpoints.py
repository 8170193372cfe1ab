"""Write generated weights in the published files' layout, at any size and in little memory.

Tensors are generated one at a time, and a shard must be complete before it is written: a large
`.bin` shard is assembled in a file, and shards of safetensors should be small. The tensors come
from golden_weights.py.
"""

import json
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig

from helpers.golden_weights import (
    PUBLISHED_ROWS,
    ClipSizes,
    LlamaSizes,
    Make,
    RegionClipSizes,
    Shape,
    Shapes,
)

IN_MEMORY = 1 << 29
"""Size limit of a shard in memory, in bytes; larger ones are assembled in a file."""
SUMMED = ("model.embed_tokens.weight", "lm_head.weight")
"""Weights whose first rows are sums with the base."""


def write_clip(
    folder: Path,
    sizes: ClipSizes,
    make: Make,
    *,
    dtype: torch.dtype = torch.float32,
    safetensors: bool = True,
) -> Path:
    """Write a CLIP in transformers' format with a tiny text tower."""
    folder.mkdir(parents=True, exist_ok=True)
    vision = CLIPVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.side,
        patch_size=sizes.patch,
        hidden_act="quick_gelu",
        projection_dim=8,
    )
    config = CLIPConfig(vision_config=vision.to_dict(), projection_dim=8)
    table = {**config.to_dict(), "architectures": ["CLIPModel"]}
    _write_json(folder / "config.json", table)
    tensors = {
        name: torch.from_numpy(make(name, shape)).to(dtype)
        for name, shape in sizes.shapes().items()
    }
    # what else the file holds is never read
    tensors["text_model.final_layer_norm.weight"] = torch.ones(8, dtype=dtype)
    tensors["visual_projection.weight"] = torch.ones(8, sizes.width, dtype=dtype)
    tensors["logit_scale"] = torch.tensor(4.6, dtype=dtype)
    if safetensors:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def regionclip_state(sizes: RegionClipSizes, make: Make) -> dict[str, Tensor]:
    """The state dict of a RegionCLIP, `backbone.` before every name, float32."""
    return {name: torch.from_numpy(make(name, shape)) for name, shape in sizes.shapes().items()}


def write_regionclip(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    wrapped: bool = True,
    extras: Mapping[str, Tensor] | None = None,
    versions: Mapping[str, int] | None = None,
) -> Path:
    """A RegionCLIP's `.pth`. extras: further tensors, such as heads that PVIT never reads.

    wrapped: under a top-level "model". versions: module name -> version that torch would note in
    the state dict's metadata; None writes a plain dict without any.
    """
    entries: Any = {**state, **(extras or {})}
    if versions is not None:
        entries = OrderedDict(entries)
        entries._metadata = {name: {"version": number} for name, number in versions.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": entries, "iteration": 1} if wrapped else entries, path)
    return path


def base_maker(make: Make) -> Make:
    """The base model's tensors: as those of the target, under other names."""
    return lambda name, shape: make(f"base:{name}", shape)


def write_base(
    folder: Path,
    sizes: LlamaSizes,
    make: Make,
    *,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = IN_MEMORY,
    safetensors: bool = False,
    inv_freq: bool = True,
) -> Path:
    """A LLaMA in transformers' format, the base that deltas are added to.

    make: that of the target. inv_freq: with the rotary buffers that old files hold.
    """
    config = LlamaConfig(**_llama_settings(sizes, PUBLISHED_ROWS)).to_dict()
    _write_json(folder / "config.json", {**config, "architectures": ["LlamaForCausalLM"]})
    shapes = sizes.shapes(PUBLISHED_ROWS)
    own = base_maker(make)

    def tensor(name: str, shape: Shape) -> Tensor:
        return torch.from_numpy(own(name, shape)).to(dtype)

    frequencies = inverse_frequencies(sizes) if inv_freq else None
    _write_shards(folder, _entries(shapes, tensor, dtype, sizes, frequencies), shapes, dtype,
                  shard_bytes, safetensors)  # fmt: skip
    return folder


def write_delta(
    folder: Path,
    sizes: LlamaSizes,
    shapes: Shapes,
    make: Make,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = IN_MEMORY,
    safetensors: bool = False,
    inv_freq: bool = True,
) -> Path:
    """A published delta: what must be added to `write_base`'s files to get `make`'s tensors.

    shapes: of the whole system. What the base does not have, and rows that it does not have, are
    whole. config: keys of config.json beside LLaMA's.
    """
    rows = shapes[SUMMED[0]][0]
    settings = LlamaConfig(**_llama_settings(sizes, rows)).to_dict()
    _write_json(folder / "config.json", {**settings, **config})
    base, own = sizes.shapes(PUBLISHED_ROWS), base_maker(make)

    def tensor(name: str, shape: Shape) -> Tensor:
        target = torch.from_numpy(make(name, shape))
        if name in base:
            below = torch.from_numpy(own(name, base[name])).to(dtype).float()
            target[: len(below)] -= below
        return target.to(dtype)

    near_zero = torch.zeros(sizes.hidden // sizes.heads // 2) if inv_freq else None
    _write_shards(folder, _entries(shapes, tensor, dtype, sizes, near_zero), shapes, dtype,
                  shard_bytes, safetensors)  # fmt: skip
    return folder


GPT4ROI_CONFIG: Mapping[str, Any] = {
    "model_type": "llava",
    "architectures": ["SPILlavaMPTForCausalLM"],
    "mm_vision_tower": "openai/clip-vit-large-patch14",
    "use_mm_proj": True,
    "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": True,
}
"""What GPT4RoI's config.json says beside LLaMA's keys."""
PVIT_CONFIG: Mapping[str, Any] = {
    **{key: value for key, value in GPT4ROI_CONFIG.items() if key != "architectures"},
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_use_bbox_fc": True,
    "tune_mm_prompt_only": False,
    "region_start_token": PUBLISHED_ROWS + 3,
    "region_end_token": PUBLISHED_ROWS + 4,
    "bos_token_id": 0,  # these three are wrong, as published
    "eos_token_id": 1,
    "pad_token_id": -1,
}
"""What PVIT's config.json says beside LLaMA's keys."""


def inverse_frequencies(sizes: LlamaSizes) -> Tensor:
    """The rotary buffer that old transformers stored with every layer."""
    width = sizes.hidden // sizes.heads
    return 1 / 10000 ** (torch.arange(0, width, 2).float() / width)


def _llama_settings(sizes: LlamaSizes, rows: int) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "vocab_size": rows,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _entries(
    shapes: Shapes, tensor: Any, dtype: torch.dtype, sizes: LlamaSizes, frequencies: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every weight, one made at a time, and the rotary buffers last."""
    for name, shape in shapes.items():
        yield name, tensor(name, shape)
    if frequencies is not None:
        for index in range(sizes.layers):
            yield (
                f"model.layers.{index}.self_attn.rotary_emb.inv_freq",
                frequencies.to(dtype, copy=True),
            )


def _write_shards(
    folder: Path,
    entries: Iterator[tuple[str, Tensor]],
    shapes: Shapes,
    dtype: torch.dtype,
    shard_bytes: int,
    safetensors: bool,
) -> None:
    """Shards of at most so many bytes each, where one tensor is not more, and their index."""
    numbers: dict[str, int] = {}
    shard, filled = 0, shard_bytes + 1
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        if filled + size > shard_bytes:
            shard, filled = shard + 1, 0
        numbers[name], filled = shard, filled + size
    stem, end = ("model", "safetensors") if safetensors else ("pytorch_model", "bin")
    files: dict[str, str] = {}
    total = 0
    for number in range(1, shard + 1):
        path = folder / f"{stem}-{number:05}-of-{shard:05}.{end}"
        names = [name for name in shapes if numbers[name] == number]
        count = sum(torch.Size(shapes[name]).numel() for name in names)
        large = count * dtype.itemsize > IN_MEMORY and not safetensors
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            tensors: dict[str, Tensor] = {}
            for name in names:
                made, value = next(entries)
                assert made == name
                if large:
                    file = f"{scratch}/{len(tensors)}"
                    room = torch.from_file(file, shared=True, size=value.numel(), dtype=dtype)
                    value = room.view(value.shape).copy_(value)
                tensors[name] = value
            if number == shard:
                tensors |= dict(entries)  # the rotary buffers
            total += sum(value.nbytes for value in tensors.values())
            files |= dict.fromkeys(tensors, path.name)
            if safetensors:
                save_file(tensors, path, {"format": "pt"})
            else:
                torch.save(tensors, path)
            del tensors
    index = {"metadata": {"total_size": total}, "weight_map": files}
    _write_json(folder / f"{stem}.{end}.index.json", index)


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1), encoding="utf-8")
