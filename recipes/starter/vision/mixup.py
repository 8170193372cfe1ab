"""Mixup augmentation (Zhang et al. 2018), against memorising a few thousand boxes or photos."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MIXED = 0.5
"""Share of the examples of a step that another one shines through."""
SHINE = 0.4
"""How much each of the two gives is drawn from Beta(SHINE, SHINE)."""


def mixed(parts: Sequence[Tensor], share: float, rng: np.random.Generator) -> list[Tensor]:
    """What is told of N examples, each (N, ...), a `share` of them with another shining through.

    An example keeps at least half of its own.
    """
    count = len(parts[0])
    drawn = rng.beta(SHINE, SHINE, count)
    own = np.where(rng.random(count) < share, np.maximum(drawn, 1 - drawn), 1.0)
    kept = torch.from_numpy(own.astype(np.float32))  # (N,)
    others = torch.from_numpy(rng.permutation(count))
    return [
        torch.lerp(part[others], part, kept.reshape(-1, *[1] * (part.ndim - 1))) for part in parts
    ]
