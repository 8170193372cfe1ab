"""Torch definition of a region encoder over a backbone's own maps.

RoIAlign (He et al. 2017) of every map, averaged, beside the mean of the deepest map over the whole
image, passes through one hidden layer. One pass of the backbone serves all regions of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from regionqa.export.modules.positions import PLACES, PositionedRegionModule, box_position

SAMPLES = 2
"""RoIAlign's samples per side of a cell of features."""
COLOUR_SAMPLES = 8
"""RoIAlign's samples per side of a cell of colours, so that a large cell's mean is accurate."""
MIN_SHARE = 1 / 256
"""Minimum side of a box for RoIAlign, as a share of the image's side."""


@dataclass(frozen=True)
class RoIConfig:
    """Shape of a `RoIRegionEncoder`. ValueError for sizes that do not fit together."""

    in_channels: tuple[int, ...]
    """Channels of the levels, shallowest first."""
    sides: tuple[int, ...]
    """Sides of the levels."""
    hidden_size: int
    """Width of the language model's embeddings."""
    pixels: bool = False
    """Whether the first level is the image itself, from which only colours are taken."""
    roi_size: int = 7
    """Side of RoIAlign's output."""
    pool: int = 1
    """Side of the grid to which RoIAlign's output is averaged; divides `roi_size`."""
    context: bool = True
    """Whether the mean of the deepest level over the whole image belongs to the features."""
    region_width: int = 512
    """Width of the hidden layer."""
    dropout: float = 0.0
    """Share of the hidden layer's values that are dropped in training mode."""
    colour_grid: int = 3
    """Rows and columns of mean colours taken from the box, with `pixels`."""
    place_width: int = 0
    """Hidden width of the position embedding that the projector adds; 0: none."""

    def __post_init__(self) -> None:
        if len(self.sides) != len(self.in_channels):
            raise ValueError(f"{len(self.in_channels)} in_channels, but {len(self.sides)} sides")
        if len(self.in_channels) <= self.pixels:
            raise ValueError("in_channels: there is no level to take features from")
        if self.pool < 1 or self.roi_size % self.pool:
            raise ValueError(f"pool {self.pool} does not divide roi_size {self.roi_size}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, not in [0, 1)")

    @property
    def pooled_width(self) -> int:
        """Width of a region's features before the hidden layer."""
        channels = self.in_channels[self.pixels :]
        return sum(channels) * self.pool**2 + (channels[-1] if self.context else 0)

    @property
    def vector_width(self) -> int:
        """Width of a region's vector: features, position, colours."""
        return self.region_width + PLACES + (3 * self.colour_grid**2 if self.pixels else 0)


class RoIRegionEncoder(PositionedRegionModule):
    """Levels of B images and N boxes -> N region tokens."""

    config: RoIConfig

    def __init__(self, config: RoIConfig) -> None:
        super().__init__()
        self.config = config
        self.join = nn.Linear(config.pooled_width, config.region_width)
        self.dropout = nn.Dropout(config.dropout)
        self.add_projector()

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(C, h, w) of every level."""
        levels = zip(self.config.in_channels, self.config.sides, strict=True)
        return tuple((channels, side, side) for channels, side in levels)

    def pooled(self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features (N, pooled_width) of the levels, without weights; arguments as in `forward`."""
        config = self.config
        maps = sources[config.pixels :]
        parts = []
        for level in maps:
            found = aligned(level, boxes, image_index, config.roi_size, SAMPLES)
            each = config.roi_size // config.pool
            cells = found.reshape(-1, level.shape[1], config.pool, each, config.pool, each)
            parts.append(cells.mean((3, 5)).flatten(1))  # (N, C pool ** 2)
        if config.context:
            parts.append(maps[-1].mean((2, 3))[image_index])
        return torch.cat(parts, 1)

    def colours(self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Mean colours (N, 3 colour_grid ** 2) of a grid over each box; (N, 0) without `pixels`."""
        if not self.config.pixels:
            return boxes[:, :0]
        grid = self.config.colour_grid
        return aligned(sources[0], boxes, image_index, grid, COLOUR_SAMPLES).flatten(1)

    def features(self, pooled: Tensor) -> Tensor:
        """Map `pooled` (N, pooled_width) through the hidden layer; (N, region_width)."""
        hidden: Tensor = self.dropout(self.join(pooled).relu())
        return hidden

    def vectors(self, features: Tensor, boxes: Tensor, colours: Tensor) -> Tensor:
        """Join features (N, region_width), boxes (N, 4) and colours; (N, vector_width)."""
        return torch.cat([features, box_position(boxes), colours], 1)

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """Return one vector (N, vector_width) per box; arguments as in `forward`."""
        features = self.features(self.pooled(sources, boxes, image_index))
        return self.vectors(features, boxes, self.colours(sources, boxes, image_index))


def aligned(level: Tensor, boxes: Tensor, image_index: Tensor, size: int, samples: int) -> Tensor:
    """RoIAlign of a level (B, C, h, w) for boxes (N, 4) in [0, 1]; (N, C, size, size)."""
    height, width = level.shape[-2:]
    scale = torch.tensor([width, height] * 2, dtype=boxes.dtype)
    index = image_index.to(boxes.dtype).unsqueeze(1)  # (N, 1)
    rois = torch.cat([index, inside(boxes) * scale], 1)  # (N, 5)
    found: Tensor = roi_align(
        level, rois.to(level.dtype), size, 1.0, sampling_ratio=samples, aligned=True
    )
    return found


def inside(boxes: Tensor) -> Tensor:
    """Order the corners of boxes (N, 4) and clip them to [0, 1]; sides are at least MIN_SHARE."""
    first, second = boxes[:, :2], boxes[:, 2:]
    low = torch.minimum(first, second).clamp(min=0).clamp(max=1 - MIN_SHARE)
    high = torch.maximum(torch.maximum(first, second).clamp(max=1), low + MIN_SHARE)
    return torch.cat([low, high], 1)
