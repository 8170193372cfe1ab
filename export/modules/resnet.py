"""Torch definition of the convolutional vision encoder, and residual blocks for other encoders."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from regionqa.export.modules.base import VisionModule


@dataclass(frozen=True)
class ResNetConfig:
    """Shape of a `ResNetVision`."""

    input_size: int = 256
    """Side of the square input, in pixels."""
    widths: tuple[int, ...] = (32, 64, 160, 256)
    """Channels of the stages; the first stage has stride 4, every further one doubles it."""
    depths: tuple[int, ...] = (2, 2, 3, 2)
    """Residual blocks of the stages."""
    levels: tuple[int, ...] = (1, 2, 3)
    """Stages whose feature maps the region encoder reads, shallowest first."""
    token_grid: int = 4
    """Rows and columns of the last map after average pooling; each cell is an image token."""
    hidden_size: int = 192
    """Width of the language model's embeddings."""
    patch: int = 0
    """Side of the patches in a one-convolution stem; 0: a stem of two strided convolutions."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and an average-pooled shortcut (He et al. 2015, section 4.1)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.bn2.weight)  # every block starts as the identity
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                # round odd sides up, as the convolution does
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
                if stride > 1
                else nn.Identity(),
                nn.Conv2d(in_channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride), rounded up."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        out: Tensor = (y + self.shortcut(x)).relu()
        return out


class Patches(nn.Module):
    """Space to depth by `patch`; nn.PixelUnshuffle does not export."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C patch ** 2, H / patch, W / patch)."""
        batch, channels, height, width = x.shape
        side = self.patch
        x = x.reshape(batch, channels, height // side, side, width // side, side)
        x = x.permute(0, 1, 3, 5, 2, 4)
        return x.reshape(batch, channels * side**2, height // side, width // side)


def residual_stem(channels: int, in_channels: int = 3, patch: int = 0) -> nn.Sequential:
    """Build the stem: (B, in_channels, H, W) -> (B, channels, H / 4, W / 4).

    Two convolutions of stride 2, which round odd sides up. With `patch`, one convolution over
    patches, which computes nothing at the image's resolution; sides must be multiples of `patch`.
    """
    if patch:
        return nn.Sequential(
            Patches(patch),
            nn.Conv2d(in_channels * patch**2, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, channels, 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def residual_stages(widths: Sequence[int], depths: Sequence[int]) -> nn.ModuleList:
    """Build stages of residual blocks; all but the first halve the map, rounded up."""
    stages = nn.ModuleList()
    channels = widths[0]
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        blocks = [
            BasicBlock(channels if i == 0 else width, width, 2 if i == 0 and index else 1)
            for i in range(depth)
        ]
        stages.append(nn.Sequential(*blocks))
        channels = width
    return stages


class ResNetVision(VisionModule):
    """Residual network with a two-convolution stem, image tokens from its last stage."""

    config: ResNetConfig
    projector: nn.Linear

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = residual_stem(config.widths[0], patch=config.patch)
        self.stages = residual_stages(config.widths, config.depths)
        last_side = config.input_size // (4 * 2 ** (len(config.widths) - 1))
        self.token_pool = nn.AvgPool2d(last_side // config.token_grid)
        self.projector = nn.Linear(config.widths[-1], config.hidden_size)

    @property
    def input_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.config.input_size

    @property
    def image_tokens(self) -> int:
        """Cells of the token grid."""
        return self.config.token_grid**2

    @property
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, h, w) of the region encoder's maps."""
        sides = (self.input_size // (4 * 2**level) for level in self.config.levels)
        widths = (self.config.widths[level] for level in self.config.levels)
        return tuple((width, side, side) for width, side in zip(widths, sides, strict=True))

    def maps(self, pixel_values: Tensor) -> list[Tensor]:
        """Feature maps of every stage, shallowest first; pixel_values (B, 3, S, S) float32."""
        x = self.stem(pixel_values)  # (B, widths[0], S / 4, S / 4)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def features(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Cells of the last map (B, token_grid ** 2, C), and one map (B, C, h, w) per level."""
        maps = self.maps(pixel_values)
        cells = self.token_pool(maps[-1]).flatten(2).transpose(1, 2)  # (B, grid ** 2, C)
        return cells, [maps[level] for level in self.config.levels]
