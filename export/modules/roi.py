"""Torch definition of a region encoder over a backbone's own maps.

RoIAlign (He et al. 2017) of every map, averaged, beside the mean of the deepest map over the whole
image, passes through one hidden layer. One pass of the backbone serves all regions of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from regionqa.export.modules.positions import PLACES, PositionedRegionModule, box_position
from regionqa.export.modules.timm_vision import TimmBackbone, TimmConfig, TimmVision, levels_of

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
        samples = SAMPLES * config.roi_size
        parts = [
            roi_means(level, boxes, image_index, config.pool, samples).flatten(1) for level in maps
        ]
        if config.context:
            parts.append(maps[-1].mean((2, 3))[image_index])
        return torch.cat(parts, 1)

    def colours(self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Mean colours (N, 3 colour_grid ** 2) of a grid over each box; (N, 0) without `pixels`."""
        if not self.config.pixels:
            return boxes[:, :0]
        grid = self.config.colour_grid
        samples = COLOUR_SAMPLES * grid
        return roi_means(sources[0], boxes, image_index, grid, samples).flatten(1)

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


@dataclass(frozen=True)
class BackboneRegionConfig(RoIConfig):
    """Shape of a `BackboneRegionEncoder`."""

    backbone: TimmConfig = field(kw_only=True)
    """The backbone, its input size and its levels."""


class BackboneRegionEncoder(RoIRegionEncoder):
    """Pixels of B images and N boxes -> N region tokens, by RoIAlign of a backbone of its own.

    PVIT's kind of region encoder (section 3.2): it reads the image once more, at its own size, and
    has learned from boxes before.
    """

    config: BackboneRegionConfig
    reads_pixels: ClassVar[bool] = True

    def __init__(self, config: BackboneRegionConfig) -> None:
        super().__init__(config)
        self.backbone = TimmBackbone(config.backbone)

    @classmethod
    def of(
        cls, vision: TimmVision, region: RoIRegionEncoder, hidden_size: int, input_size: int
    ) -> Self:
        """Join a trained backbone with the region encoder trained on it; its projector is new.

        Args:
            vision: Whose backbone it is.
            region: Which reads that backbone's levels.
            hidden_size: Width of the language model's embeddings.
            input_size: Side of the square image, in pixels, for the backbone.
        """
        backbone = replace(vision.config, input_size=input_size)
        shapes = TimmVision(backbone).level_shapes
        own = replace(region.config, hidden_size=hidden_size, sides=tuple(s[1] for s in shapes))
        encoder = cls(BackboneRegionConfig(**vars(own), backbone=backbone))
        encoder.backbone.load_state_dict(vision.backbone.state_dict())
        encoder.join.load_state_dict(region.join.state_dict())
        return encoder.eval()

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(3, S, S) of the one source."""
        return ((3, self.config.backbone.input_size, self.config.backbone.input_size),)

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """Return one vector (N, vector_width) per box; sources are pixels (B, 3, S, S)."""
        (pixel_values,) = sources
        levels = levels_of(self.config.backbone, pixel_values, self.backbone(pixel_values))
        return super().region_vectors(levels, boxes, image_index)


def roi_means(
    level: Tensor, boxes: Tensor, image_index: Tensor, cells: int, samples: int
) -> Tensor:
    """Average RoIAlign's samples in a grid over each box; (N, C, cells, cells).

    RoIAlign reads a map at points between its pixels, by bilinear interpolation. As the points of a
    box are the rows and columns of a grid, their mean is a product of the map with weights of its
    rows and of its columns: all boxes take two matrix products, and no point is ever read.

    Args:
        level: (B, C, h, w).
        boxes: (N, 4) xyxy in [0, 1].
        image_index: (N,) the image of each box.
        cells: Rows and columns of the grid, whose cells are averaged.
        samples: Points along a side of the box, a multiple of `cells`.
    """
    count, channels, height, width = level.shape
    placed = inside(boxes)
    down = sample_weights(placed[:, 1], placed[:, 3], height, cells, samples)  # (N, cells, h)
    across = sample_weights(placed[:, 0], placed[:, 2], width, cells, samples)  # (N, cells, w)
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]  # (N, cells, cells, h, w)
    own = (image_index.unsqueeze(1) == torch.arange(count, device=level.device)).to(
        level.dtype
    )  # (N, B)
    weights = weights.reshape(-1, cells**2, 1, height * width).to(level.dtype)
    spread = weights * own.reshape(-1, 1, count, 1)  # (N, cells ** 2, B, h * w)
    pixels = level.permute(0, 2, 3, 1).reshape(-1, channels)  # (B * h * w, C)
    means = spread.reshape(-1, cells**2, count * height * width) @ pixels
    return means.transpose(1, 2).reshape(-1, channels, cells, cells)


def sample_weights(start: Tensor, stop: Tensor, side: int, cells: int, samples: int) -> Tensor:
    """Weigh the `side` pixels of a line for the cells between start and stop (N,) in [0, 1].

    Bilinear weights (N, cells, side) of evenly spaced points, averaged over the points of a cell.
    """
    device = start.device
    shares = torch.tensor([(index + 0.5) / samples for index in range(samples)], device=device)
    points = start.unsqueeze(1) + shares * (stop - start).unsqueeze(1)  # (N, samples)
    points = (points * side - 0.5).clamp(0.0, float(side - 1))
    distance = (points.unsqueeze(2) - torch.arange(side, device=device)).abs()  # (N, samples, side)
    weights = (1 - distance).clamp(min=0.0)
    return weights.reshape(-1, cells, samples // cells, side).mean(2)


def inside(boxes: Tensor) -> Tensor:
    """Order the corners of boxes (N, 4) and clip them to [0, 1]; sides are at least MIN_SHARE."""
    first, second = boxes[:, :2], boxes[:, 2:]
    low = torch.minimum(first, second).clamp(min=0).clamp(max=1 - MIN_SHARE)
    high = torch.maximum(torch.maximum(first, second).clamp(max=1), low + MIN_SHARE)
    return torch.cat([low, high], 1)
