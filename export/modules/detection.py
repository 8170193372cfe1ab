"""Torch definition of a detection head over a vision encoder's levels.

One stage without anchors, as FCOS (Tian et al. 2019, arXiv 1904.01355): every cell of a feature
pyramid (Lin et al. 2017, arXiv 1612.03144) gives a score per class and its distances to the four
sides of a box. A score is that of class and overlap at once (Li et al. 2020, arXiv 2006.04388), so
there is no branch for centredness. Convolutions are depthwise separable and shared by all strides.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIOR = 0.01
"""Score of an untrained head; most cells show no object (Lin et al. 2017, arXiv 1708.02002)."""


@dataclass(frozen=True)
class DetectionConfig:
    """Shape of a `DetectionHead`. ValueError for sizes that do not fit together."""

    in_channels: tuple[int, ...]
    """Channels of the levels, shallowest first."""
    sides: tuple[int, ...]
    """Sides of the levels."""
    classes: int
    """Number of classes."""
    pixels: bool = False
    """Whether the first level is the image itself, which is not read."""
    width: int = 96
    """Channels of the feature pyramid."""
    depth: int = 2
    """Convolutions before the scores, and before the boxes."""
    groups: int = 8
    """Of group normalization; they divide `width`."""

    def __post_init__(self) -> None:
        if len(self.sides) != len(self.in_channels):
            raise ValueError(f"{len(self.in_channels)} in_channels, but {len(self.sides)} sides")
        if len(self.in_channels) <= self.pixels:
            raise ValueError("in_channels: there is no level to find objects in")
        if list(self.sides) != sorted(self.sides, reverse=True):
            raise ValueError(f"sides are {list(self.sides)}; the largest comes first")
        if self.classes < 1 or self.width % self.groups:
            raise ValueError(
                f"classes is {self.classes}, width {self.width} and groups {self.groups}; there "
                "is at least one class, and groups divide width"
            )

    @property
    def pyramid(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Side of every map of the pyramid, and the levels that it is made of."""
        read = list(enumerate(self.sides))[self.pixels :]
        sides = dict.fromkeys(side for _, side in read)
        return tuple((side, tuple(i for i, own in read if own == side)) for side in sides)


class DetectionHead(nn.Module):
    """Levels of B images -> boxes and scores of every cell of the pyramid."""

    def __init__(self, config: DetectionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        channels = [
            sum(config.in_channels[index] for index in levels) for _, levels in config.pyramid
        ]
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each, width, 1, bias=False), nn.GroupNorm(config.groups, width))
            for each in channels
        )
        self.smooth = nn.ModuleList(Separable(width, config.groups) for _ in channels)
        self.class_tower, self.box_tower = (
            nn.Sequential(*(Separable(width, config.groups) for _ in range(config.depth)))
            for _ in range(2)
        )
        self.classes = nn.Conv2d(width, config.classes, 1)
        self.distances = nn.Conv2d(width, 4, 1)
        self.scales = nn.Parameter(torch.ones(len(channels)))
        nn.init.normal_(self.classes.weight, std=0.01)
        assert self.classes.bias is not None
        nn.init.constant_(self.classes.bias, -math.log(1 / PRIOR - 1))
        self.register_buffer("points", cell_centres(config), persistent=False)  # (P, 2)
        self.register_buffer("strides", cell_strides(config), persistent=False)  # (P, 1)

    @property
    def source_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, h, w) of every level."""
        levels = zip(self.config.in_channels, self.config.sides, strict=True)
        return tuple((channels, side, side) for channels, side in levels)

    def logits(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Boxes (B, P, 4) as `forward` returns them, and scores (B, P, C) before the sigmoid."""
        above: Tensor | None = None
        maps: list[Tensor] = []
        stages = list(zip(self.config.pyramid, self.lateral, self.smooth, strict=True))
        for (side, members), lateral, smooth in reversed(stages):
            joined = lateral(torch.cat([levels[index] for index in members], 1))
            if above is not None:
                joined = joined + F.interpolate(above, size=(side, side))
            above = smooth(joined)
            maps.append(above)
        maps.reverse()
        scores = [self.classes(self.class_tower(each)) for each in maps]
        sides = [
            F.softplus(self.distances(self.box_tower(each)) * self.scales[index])
            for index, each in enumerate(maps)
        ]
        distances = by_cell(sides) * self.get_buffer("strides")  # (B, P, 4)
        points = self.get_buffer("points")
        boxes = torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)
        return boxes, by_cell(scores)

    def forward(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        """Find objects.

        Args:
            levels: The vision encoder's levels, each (B, C_l, h_l, w_l), shallowest first.

        Returns:
            Boxes (B, P, 4) xyxy in fractions of the input, which may reach outside it, and scores
            (B, P, C) from 0 to 1, one row for every cell: row by row, the finest map first.
        """
        boxes, logits = self.logits(levels)
        return boxes, logits.sigmoid()


class Separable(nn.Sequential):
    """A 3x3 convolution of every channel, 1x1 of all, normalization and ReLU, added to the input.

    Without the shortcut, a short training finds next to nothing.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
            nn.GroupNorm(groups, width),
            nn.ReLU(),
        )

    def forward(self, values: Tensor) -> Tensor:
        """(B, width, h, w) in and out."""
        changed: Tensor = super().forward(values)  # type: ignore[no-untyped-call]
        return values + changed


def by_cell(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, h, w) -> (B, P, C)."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], 1)


def cell_centres(config: DetectionConfig) -> Tensor:
    """(P, 2) x and y of every cell's centre, in fractions of the input."""
    parts = []
    for side, _ in config.pyramid:
        places = (torch.arange(side) + 0.5) / side
        down, across = torch.meshgrid(places, places, indexing="ij")
        parts.append(torch.stack([across, down], -1).reshape(-1, 2))
    return torch.cat(parts)


def cell_strides(config: DetectionConfig) -> Tensor:
    """(P, 1) side of every cell, in fractions of the input."""
    return torch.cat([torch.full((side * side, 1), 1 / side) for side, _ in config.pyramid])
