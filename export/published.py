"""Sizes of the published region encoders, read from the shapes of their weights.

So that a checkpoint of any width converts by the same command. It does not know where the weights
come from.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor

from regionqa.export.tower import TowerVision

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
