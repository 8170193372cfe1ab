"""The box's position in a region's vector and in its token."""

import math
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from regionqa.export.modules.base import RegionModule

PLACES = 8
"""Numbers of a box's position: corners, sides, and the logarithms of the sides."""
WAVES = (1, 2, 4)
"""Frequencies of the position embedding, in half waves per image side."""
POSITION_STD = 0.3
"""Initial standard deviation of the last layer: the position must have about the same magnitude in
a token as the content, or comparisons of boxes are learned late."""
NUMBERS = 9
"""Numbers per box: corners, centre, sides, and the logarithm of the area."""


def box_position(boxes: Tensor) -> Tensor:
    """(N, PLACES): boxes (N, 4) in [0, 1], their sides, and half the logarithms of these."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes, sides, sides.clamp(min=0.01).log() / 2], 1)


class PositionEmbedding(nn.Module):
    """Boxes (N, 4) xyxy in [0, 1] -> (N, hidden_size)."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.inner = nn.Linear(NUMBERS * (1 + 2 * len(WAVES)), width)
        self.outer = nn.Linear(width, hidden_size)
        nn.init.normal_(self.outer.weight, std=POSITION_STD)

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


class PositionedRegionModule(RegionModule):
    """A region encoder whose vectors hold the box's position, with one token per region.

    A vector is [features (region_width), position (PLACES), anything else]. The projector is a
    linear layer, to which an embedding of the position may be added.
    """

    projector_parts: ClassVar[tuple[str, ...]] = ("carry_linear", "place")

    def add_projector(self) -> None:
        """Create the projector from the config's vector_width, hidden_size and place_width."""
        config = self.config
        self.carry_linear = nn.Linear(config.vector_width, config.hidden_size)
        self.place: nn.Module = nn.Identity()
        if config.place_width:
            self.place = PositionEmbedding(config.place_width, config.hidden_size)

    @classmethod
    def with_new_projector(cls, trained: Self, **changes: Any) -> Self:
        """Copy a trained encoder, except for its projector, which is untrained.

        Args:
            trained: The encoder to copy.
            changes: Changed fields of its config, such as `hidden_size` and `input_size`.
        """
        encoder = cls(replace(trained.config, **changes))
        state = {
            name: value
            for name, value in trained.state_dict().items()
            if name.split(".")[0] not in cls.projector_parts
        }
        encoder.load_state_dict(state, strict=False)
        return encoder.eval()

    @property
    def tokens(self) -> int:
        """One token a region."""
        return 1

    @property
    def feature_width(self) -> int:
        """Width of the features, before the position."""
        width: int = self.config.region_width
        return width

    def moved(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Replace the position in vectors (N, vector_width) by that of boxes (N, 4) in [0, 1]."""
        start = self.feature_width
        before, after = vectors[:, :start], vectors[:, start + PLACES :]
        return torch.cat([before, box_position(boxes).to(vectors.dtype), after], 1)

    def project(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, vector_width) -> region tokens (N, 1, hidden_size)."""
        tokens: Tensor = self.carry_linear(vectors)
        if self.config.place_width:
            tokens = tokens + self.place(boxes)
        return tokens.unsqueeze(1)
