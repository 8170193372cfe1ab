"""Weight averaging of fine-tuned models (Wortsman et al. 2022).

The mean of runs from the same initial weights is often more accurate than most of them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def average_weights(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of state dicts with the same names; what is no float is the first one's.

    shares: up to a common factor. Computed in float64, given back in each weight's own dtype.
    """
    parts = torch.tensor(shares, dtype=torch.float64) / sum(shares)
    mean = dict(states[0])
    for name in [name for name, value in mean.items() if value.is_floating_point()]:
        values = torch.stack([state[name] for state in states])
        mean[name] = torch.tensordot(parts, values.double(), 1).to(values.dtype)
    return mean
