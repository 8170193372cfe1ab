"""Read published weights of region encoders: RegionCLIP's `.pth` or safetensors, and their sizes.

Tensors are converted as the reference does on loading, which depends on the version of the file's
frozen BatchNorm.
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
"""Prefix of the network's tensors."""
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
"""Prefixes of other tensors of the detector and its training, which are ignored."""
COUNTER = ".num_batches_tracked"
"""A buffer of BatchNorm that was not frozen, which is ignored."""
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, SafetensorError, pickle.UnpicklingError)
"""Exceptions of torch and safetensors for a file that is damaged or holds other objects."""
WITH_EPS = 3
"""Version of frozen BatchNorm's state dict from which the variance does not include eps. In older
files, and in those of a plain BatchNorm, the reference assumes that it does."""


def read_regionclip(file: Path) -> dict[str, Tensor]:
    """Read the tensors under `backbone.` of a RegionCLIP checkpoint as float32, by the same names.

    The state dict is the file's "model", or the whole file. Completeness is checked on loading.

    Raises:
        BundleError: The file is not a checkpoint, or holds an unknown name.
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
    """Read the state dict of a file, and torch's metadata by module (none in a plain dict)."""
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
"""Channels per head of CLIP's attention pool, at every width."""
State = Mapping[str, Tensor]


def multilevel_sizes(state: State, vision: TowerVision) -> dict[str, Any]:
    """Fields of `MultiLevelConfig` for the weights of GPT4RoI's `spi_module`.

    Levels are resized to 8, 4, 2 and 1 times the tower's grid.

    Raises:
        KeyError: A weight, which is named, is missing.
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

    Raises:
        KeyError: A weight, which is named, is missing.
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
