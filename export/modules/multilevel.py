"""Torch definition of the multi-level region encoder (GPT4RoI, arXiv 2307.03601, section 3.2).

Feature maps of several depths are fused, RoIAlign crops every box from every level, and the sum
becomes one vector per box, to which a position embedding is added. Layers have the names of the
published checkpoint (`mlvl_fuse`, `roi_align`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from regionqa.export.modules.base import RegionModule


@dataclass(frozen=True)
class MultiLevelConfig:
    """Shape of a `MultiLevelRegionEncoder`."""

    input_size: int
    """Side of the square image of the maps, in pixels."""
    in_channels: tuple[int, ...]
    """Channels of the levels, shallowest first."""
    sizes: tuple[int, ...]
    """Sides of the levels for fusion, which determine their strides."""
    width: int = 96
    """Channels of the fused levels."""
    rounds: int = 1
    """Fusion rounds; the levels share one convolution per round."""
    groups: int = 8
    """Groups of the fusion's GroupNorm."""
    roi_size: int = 4
    """Side of RoIAlign's output."""
    position_width: int = 64
    """Hidden width of the position branch."""
    region_width: int = 256
    """Width of a region's vector."""
    hidden_size: int = 192
    """Width of the language model's embeddings."""
    sides: tuple[int, ...] = ()
    """Sides of the levels as input; empty: the same as `sizes`."""


def resize_aligned(x: Tensor, size: int) -> Tensor:
    """Bilinear resize to (B, C, size, size) with aligned corners, as in the reference."""
    if x.shape[-1] == size and x.shape[-2] == size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=True)


class FusionConv(nn.Module):
    """3x3 convolution without bias, GroupNorm, ReLU: one fusion round."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(groups, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        return F.relu(self.gn(self.conv(x)))


class MultiLevelFusion(nn.Module):
    """Maps all levels to one width, then exchanges channels between neighbouring levels."""

    def __init__(self, config: MultiLevelConfig) -> None:
        super().__init__()
        self.sizes = config.sizes
        self.width = config.width
        self.input_conv = nn.ModuleList(
            nn.Conv2d(channels + 2, config.width, 1) for channels in config.in_channels
        )
        self.fuse_convs = nn.ModuleList(
            FusionConv(config.width, config.groups) for _ in range(config.rounds)
        )
        for index, size in enumerate(config.sizes):
            self.register_buffer(f"grid{index}", coordinate_grid(size), persistent=False)

    def exchange(self, levels: list[Tensor], index: int) -> Tensor:
        """Level `index`: half of its own channels, and a quarter from each neighbour."""
        half, quarter = self.width // 2, self.width // 4
        deeper = levels[min(index + 1, len(levels) - 1)][:, half + quarter :]
        shallower = levels[max(index - 1, 0)][:, half : half + quarter]
        size = self.sizes[index]
        return torch.cat(
            [
                levels[index][:, :half],
                resize_aligned(deeper, size),
                resize_aligned(shallower, size),
            ],
            dim=1,
        )  # (B, width, size, size)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_l, h_l, w_l) -> fused maps (B, width, size_l, size_l)."""
        fused = []
        for index, (level, size) in enumerate(zip(levels, self.sizes, strict=True)):
            grid = self.get_buffer(f"grid{index}").to(level.dtype)  # (1, 2, size, size)
            grid = grid.expand(level.shape[0], -1, -1, -1)
            fused.append(
                self.input_conv[index](torch.cat([resize_aligned(level, size), grid], dim=1))
            )
        for fuse in self.fuse_convs:
            # all levels read the previous round's output, so build the new list before replacing
            fused = [fuse(self.exchange(fused, index)) for index in range(len(fused))]
        return fused


class MultiLevelRoIAlign(nn.Module):
    """RoIAlign on every level, one convolution each, summed; plus the position branch."""

    def __init__(self, config: MultiLevelConfig) -> None:
        super().__init__()
        self.roi_size = config.roi_size
        self.input_size = config.input_size
        self.scales = tuple(size / config.input_size for size in config.sizes)
        self.pconvs = nn.ModuleList(
            nn.Conv2d(config.width, config.width, 3, padding=1) for _ in config.sizes
        )
        self.pos_embedd = nn.Sequential(
            nn.Linear(4, config.position_width),
            nn.ReLU(),
            nn.LayerNorm(config.position_width),
            nn.Linear(config.position_width, config.region_width),
            nn.ReLU(),
            nn.LayerNorm(config.region_width),
        )
        self.flatten_linear = nn.Linear(config.width * config.roi_size**2, config.region_width)
        self.updims = nn.Linear(config.region_width, config.hidden_size)

    def region_vectors(self, levels: list[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Return one vector (N, region_width) per box, before the projection to the hidden size."""
        index = image_index.to(boxes.dtype).unsqueeze(1)  # (N, 1)
        rois = torch.cat([index, boxes * self.input_size], dim=1)  # (N, 5)
        total: Tensor | None = None
        for level, scale, conv in zip(levels, self.scales, self.pconvs, strict=True):
            cut = roi_align(
                level, rois, self.roi_size, scale, sampling_ratio=2, aligned=True
            )  # (N, width, roi_size, roi_size)
            mapped = conv(cut)
            total = mapped if total is None else total + mapped
        assert total is not None
        vectors: Tensor = self.flatten_linear(F.relu(total).flatten(1))  # (N, region_width)
        position: Tensor = self.pos_embedd(boxes)
        return vectors + position


class MultiLevelRegionEncoder(RegionModule):
    """Fusion and RoIAlign together: maps of B images and N boxes to N region tokens."""

    config: MultiLevelConfig
    projector_parts: ClassVar[tuple[str, ...]] = ("roi_align.updims",)

    def __init__(self, config: MultiLevelConfig) -> None:
        super().__init__()
        self.config = config
        self.mlvl_fuse = MultiLevelFusion(config)
        self.roi_align = MultiLevelRoIAlign(config)

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(C, h, w) of the levels as they are given, before they are resized."""
        sides = self.config.sides or self.config.sizes
        levels = zip(self.config.in_channels, sides, strict=True)
        return tuple((channels, side, side) for channels, side in levels)

    @property
    def tokens(self) -> int:
        """One token a region."""
        return 1

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """Return one vector (N, region_width) per box; arguments as in `forward`."""
        return self.roi_align.region_vectors(self.mlvl_fuse(sources), boxes, image_index)

    def project(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, region_width) -> region tokens (N, 1, hidden_size)."""
        tokens: Tensor = self.roi_align.updims(vectors)
        return tokens.unsqueeze(1)


def coordinate_grid(size: int) -> Tensor:
    """x then y from -1 to 1, both ends included, as two channels (1, 2, size, size)."""
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y]).unsqueeze(0)
