"""Examples that others shine through (Zhang et al. 2018, "mixup").

What is learned by heart of a few thousand boxes is of no use for others; of mixtures there is no
end. It does not know what is mixed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def mixed(
    parts: Sequence[Tensor], share: float, shine: float, rng: np.random.Generator
) -> list[Tensor]:
    """What is told of N examples, each (N, ...), a `share` of them with another shining through.

    shine: how much each of the two gives is drawn from Beta(shine, shine); an example keeps at
    least half of its own.
    """
    count = len(parts[0])
    drawn = rng.beta(shine, shine, count)
    own = np.where(rng.random(count) < share, np.maximum(drawn, 1 - drawn), 1.0)
    kept = torch.from_numpy(own.astype(np.float32))  # (N,)
    others = torch.from_numpy(rng.permutation(count))
    return [
        torch.lerp(part[others], part, kept.reshape(-1, *[1] * (part.ndim - 1))) for part in parts
    ]
