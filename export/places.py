"""A box's place as a small language model reads it with ease.

Four numbers alone are hard to compare for a decoder of a few million weights. Waves of several
lengths over a box's edges, middle and sides, and a layer on top, make "left of" or "twice as large"
a matter of a dot product. It does not know what is in the box.
"""

import math

import torch
from torch import Tensor, nn

WAVES = (1, 2, 4)
"""Half waves from one side of the picture to the other."""
LOUD = 0.3
"""Standard deviation of the last layer's weights at first: where a box is shall be as loud in its
token as what is in it, or comparing boxes is found out late."""
NUMBERS = 9
"""Edges, middle, sides, and the logarithm of the area."""


class PlaceEmbedding(nn.Module):
    """Boxes (N, 4) xyxy in [0, 1] -> (N, hidden_size)."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(NUMBERS * (1 + 2 * len(WAVES)), width)
        self.outer = nn.Linear(width, hidden_size)
        nn.init.normal_(self.outer.weight, std=LOUD)

    def forward(self, boxes: Tensor) -> Tensor:
        """float32 in, float32 out."""
        low, high = boxes[:, :2], boxes[:, 2:]
        sides = high - low  # (N, 2)
        area = sides.prod(1, keepdim=True).clamp(min=1e-4).log() / 9  # (N, 1), -1 to 0
        numbers = torch.cat([boxes, (low + high) / 2, sides, area], 1)  # (N, NUMBERS)
        angles = torch.cat([numbers * (math.pi * count) for count in WAVES], 1)
        waves = torch.cat([numbers, angles.sin(), angles.cos()], 1)
        placed: Tensor = self.outer(self.inner(waves).relu())
        return placed
