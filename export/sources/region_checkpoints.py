"""Read published weights of region encoders: RegionCLIP's `.pth` or safetensors, and their sizes.

Tensors are converted as the reference does on loading, which depends on the version of the file's
frozen BatchNorm.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from regionqa.errors import BundleError, message_of
from regionqa.export.modules.regionclip import EPS, RegionClipConfig, RegionClipEncoder
from regionqa.export.modules.tower import TowerVision
from regionqa.export.sources.shards import load_pickle

OWN = "backbone."
"""Prefix of the network's tensors."""
COUNTER = ".num_batches_tracked"
"""A buffer of BatchNorm that was not frozen, which is ignored."""
WITH_EPS = 3
"""Version of frozen BatchNorm's state dict from which the variance does not include eps. In older
files, and in those of a plain BatchNorm, the reference assumes that it does."""


@dataclass(frozen=True)
class RegionClipWeights:
    """What a RegionCLIP checkpoint holds."""

    tensors: dict[str, Tensor]
    """The network's, in float32, by their published names."""
    ignored: tuple[str, ...]
    """Names of all others: PVIT's loader, too, takes those of the network only."""

    @property
    def note(self) -> str | None:
        """What was ignored, by the names' first parts with counts; None if nothing."""
        counts = Counter(first_part(name) for name in self.ignored)
        listed = ", ".join(f"{part} ({count})" for part, count in sorted(counts.items()))
        return f"ignored, as PVIT does, what is not under {OWN}*: {listed}" if listed else None


def read_regionclip(file: Path) -> RegionClipWeights:
    """Read a RegionCLIP checkpoint: the tensors under `backbone.`, and the names of the others.

    The state dict is the file's "model", or the whole file. Completeness is checked on loading.

    Raises:
        BundleError: The file is not a checkpoint, or holds something else than tensors under
            `backbone.`.
    """
    entries, versions = _state(file)
    found: dict[str, Tensor] = {}
    ignored = []
    for name, value in entries.items():
        if not name.startswith(OWN):
            ignored.append(name)
            continue
        if name.endswith(COUNTER):
            continue
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not isinstance(tensor, Tensor):
            raise BundleError(f"{file}: {name} is a {type(value).__name__}, not a tensor")
        found[name] = tensor.float()
    if not found:
        there = ", ".join(sorted({first_part(name) for name in ignored})[:5]) or "nothing"
        raise BundleError(
            f"{file}: holds no {OWN}* but {there}; a RegionCLIP checkpoint is expected"
        )
    for name in found:
        module, _, leaf = name.rpartition(".")
        if leaf != "running_var":
            continue
        version = versions.get(module, {}).get("version")
        if version is not None and version < WITH_EPS:
            found[name] = found[name] - EPS
    return RegionClipWeights(found, tuple(ignored))


def first_part(name: str) -> str:
    """The first part of a dotted name, as a pattern."""
    first, dot, _ = name.partition(".")
    return f"{first}.*" if dot else first


def check_regionclip(file: Path) -> str | None:
    """Check that a RegionCLIP checkpoint is complete, in names and shapes, without a model.

    Returns:
        What is to be said about it (see `RegionClipWeights.note`).

    Raises:
        BundleError: It cannot be read, or a tensor is missing, unknown or of another size.
    """
    weights = read_regionclip(file)
    tensors = weights.tensors
    try:
        shape = RegionClipConfig(**regionclip_sizes(tensors))
    except (KeyError, ValueError, IndexError) as error:  # IndexError: a tensor is a number
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{file}: {what}; RegionCLIP's ResNet is expected") from error
    with torch.device("meta"):
        encoder = RegionClipEncoder(shape)
    wanted = {n: v.shape for n, v in encoder.state_dict().items() if n.startswith(OWN)}
    for what, names in (
        ("is missing", wanted.keys() - tensors.keys()),
        ("is unknown", tensors.keys() - wanted.keys()),
        ("has another size", _of_other_size(tensors, wanted)),
    ):
        if first := min(names, default=None):
            raise BundleError(f"{file}: {first} {what}; RegionCLIP's ResNet is expected")
    return weights.note


def _of_other_size(tensors: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> set[str]:
    """Names whose shapes differ."""
    return {n for n, shape in wanted.items() if n in tensors and tensors[n].shape != shape}


def _state(file: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read the state dict of a file, and torch's metadata by module (none in a plain dict)."""
    try:
        content = load_file(file) if file.suffix == ".safetensors" else load_pickle(file)
    except BundleError:  # of an object that would have to be run
        raise
    except FileNotFoundError:
        raise BundleError(f"{file}: no such file") from None
    except Exception as error:  # torch raises nearly every kind on damaged data
        reason = message_of(error)[:200]
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


def regionclip_sizes(state: State, vision: TowerVision | None = None) -> dict[str, Any]:
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
