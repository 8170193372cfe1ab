"""A soup of fine-tuned models: the mean of their weights (Wortsman et al. 2022, "model soups").

Runs that go on from the same weights end where the mean of them is a model too, and one that is
right more often than most of them. It does not know what the weights are of.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def soup(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of state dicts with the same names; what is no float is the first one's.

    shares: up to a common factor. Computed in float64, given back in each weight's own dtype.
    """
    total = sum(shares)
    return {
        name: sum_of([state[name] for state in states], [share / total for share in shares])
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def sum_of(values: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """Each value times its factor, added up."""
    added = torch.zeros_like(values[0], dtype=torch.float64)
    for value, factor in zip(values, factors, strict=True):
        added.add_(value.double(), alpha=factor)
    return added.to(values[0].dtype)
