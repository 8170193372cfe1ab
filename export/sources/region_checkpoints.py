"""RegionCLIP's published `.pth`, or safetensors of it: the network, and what else the file holds.

Tensors are read as the reference loads them, the age of the file's frozen BatchNorm included. It
does not know what becomes of them, nor which sizes are right.
"""

import pickle
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regionqa.errors import BundleError
from regionqa.export.modules.regionclip import EPS
from regionqa.export.modules.tower import TowerVision

OWN = "backbone."
"""What the names of the tensors that are read begin with."""
EXTRAS = (
    "roi_heads.",
    "image_projection",
    "language_encoder.",
    "lang_encoder.",
    "offline_backbone.",
    "offline_proposal_generator.",
    "proposal_generator.",
    "teacher_backbone.",
    "teacher_roi_heads.",
    "concept_emb",
    "teacher_concept_emb",
    "pixel_mean",
    "pixel_std",
    "offline_pixel_mean",
    "offline_pixel_std",
)
"""What the detector and its training keep beside the network; dropped by name."""
COUNTER = ".num_batches_tracked"
"""A buffer of BatchNorm that was not frozen; dropped by name."""
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError)
"""What torch and safetensors raise for a file that is broken or holds more than tensors."""
WITH_EPS = 3
"""State dicts of frozen BatchNorm note a version. Below this one, or where a plain BatchNorm wrote
the file, the reference takes the variance to hold eps already."""


def read_regionclip(file: Path) -> dict[str, Tensor]:
    """Every tensor under `backbone.` of a RegionCLIP checkpoint, float32, names unchanged.

    The state dict stands under "model" or is the whole file. Raises BundleError, one line, where
    the file is none or holds an unknown name. Whether all is there is seen when it is loaded.
    """
    entries, versions = _state(file)
    found: dict[str, Tensor] = {}
    for name, value in entries.items():
        if name.startswith(EXTRAS) or name.endswith(COUNTER):
            continue
        if not name.startswith(OWN) or not isinstance(value, Tensor):
            raise BundleError(
                f"{file}: {name!r} is unknown; a RegionCLIP ResNet with {OWN}* is expected"
            )
        found[name] = value.float()
    if not found:
        raise BundleError(f"{file}: holds no {OWN}*; a RegionCLIP checkpoint is expected")
    for name in found:
        module, _, leaf = name.rpartition(".")
        if leaf != "running_var":
            continue
        version = versions.get(module, {}).get("version")
        if version is not None and version < WITH_EPS:
            found[name] = found[name] - EPS
    return found


def _state(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The state dict in a file, and what torch notes of every module (none in a plain dict)."""
    try:
        content = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise BundleError(f"{file}: no such file") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BundleError(
            f"{file}: cannot be read as a checkpoint of torch ({reason}); get it again"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BundleError(f"{file}: holds no state dict; a RegionCLIP checkpoint is expected")
    return content, getattr(content, "_metadata", None) or {}


HEAD_WIDTH = 64
"""Channels of a head of CLIP's attention pool, at every width."""
State = Mapping[str, Tensor]


def multilevel_sizes(state: State, vision: TowerVision) -> dict[str, Any]:
    """Fields of `MultiLevelConfig` for the weights of GPT4RoI's `spi_module`.

    The levels are resized to 8, 4, 2 and 1 times the tower's grid. Raises KeyError, naming a weight
    that is missing.
    """
    levels = len(vision.levels)
    width = state["mlvl_fuse.input_conv.0.weight"].shape[0]
    region_width, flat = state["roi_align.flatten_linear.weight"].shape
    return {
        "input_size": vision.side,
        "in_channels": [vision.width] * levels,
        "sizes": [vision.grid * 2 ** (levels - 1 - level) for level in range(levels)],
        "sides": [vision.grid] * levels,
        "width": width,
        "rounds": sum(_ends(name, "fuse_convs.", ".conv.weight") for name in state),
        "roi_size": isqrt(flat // width),
        "position_width": state["roi_align.pos_embedd.0.weight"].shape[0],
        "region_width": region_width,
    }


def regionclip_sizes(state: State, vision: TowerVision) -> dict[str, Any]:
    """Fields of `RegionClipConfig` for RegionCLIP's weights under `backbone.`.

    Raises KeyError, naming a weight that is missing.
    """
    stages = (1, 2, 3, 4)
    first = [state[f"backbone.layer{stage}.0.conv1.weight"] for stage in stages]
    tokens, width = state["backbone.attnpool.positional_embedding"].shape
    return {
        "stem": state["backbone.conv3.weight"].shape[0],
        "planes": [weight.shape[0] for weight in first],
        "depths": [
            sum(_ends(name, f"backbone.layer{stage}.", ".conv1.weight") for name in state)
            for stage in stages
        ],
        "roi_size": 2 * isqrt(tokens - 1),
        "heads": max(1, width // HEAD_WIDTH),
        "region_width": state["backbone.attnpool.c_proj.weight"].shape[0],
    }


def _ends(name: str, within: str, end: str) -> bool:
    return within in name and name.endswith(end)
