"""Torch definition of PVIT's region encoder: RegionCLIP's ResNet and two linear layers.

CLIP's ResNet (arXiv 2103.00020, section 2.4) up to its third stage runs on the whole image.
RoIAlign crops every box from that map; the last stage and the attention pool run on each crop
(RegionCLIP, arXiv 2112.09106). Two linear layers map the vector and the box into the language model
(PVIT, arXiv 2308.13437). Layers have the published names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from regionqa.export.modules.base import RegionModule

EXPANSION = 4
"""Ratio of a block's output channels to its planes."""
STRIDE = 16
"""Nominal stride of the third stage, in pixels; exact for sides that it divides."""
EPS = 1e-5
"""BatchNorm's epsilon."""


@dataclass(frozen=True)
class RegionClipConfig:
    """Shape of a `RegionClipEncoder`, RN50x4 by default. ValueError for an impossible one."""

    stem: int = 80
    """Channels of the stem."""
    planes: tuple[int, ...] = (80, 160, 320, 640)
    """Inner channels of the blocks by stage; their output has four times as many."""
    depths: tuple[int, ...] = (4, 6, 10, 6)
    """Blocks of the stages."""
    roi_size: int = 18
    """Side of RoIAlign's output; the last stage halves it."""
    heads: int = 40
    """Heads of the attention pool."""
    region_width: int = 640
    """Width of a region's vector."""
    hidden_size: int = 4096
    """Width of the language model's embeddings."""
    input_size: int | None = None
    """Side of the square input, in pixels; None where height and width vary with the image."""

    def __post_init__(self) -> None:
        if len(self.planes) != 4 or len(self.depths) != 4 or min(self.depths) < 1:
            raise ValueError(f"planes {self.planes} and depths {self.depths}: four stages each")
        if self.roi_size < 2:
            raise ValueError(f"roi_size is {self.roi_size}; the last stage halves it, so 2 or more")
        if self.pool_width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide {self.pool_width} channels")

    @property
    def pool_width(self) -> int:
        """Channels of the last stage, which the attention pool reads."""
        return EXPANSION * self.planes[-1]

    @property
    def pool_tokens(self) -> int:
        """Number of the attention pool's tokens: the last stage's cells, and their mean."""
        return (self.roi_size // 2) ** 2 + 1


class FrozenBatchNorm(nn.Module):
    """BatchNorm with statistics and affine parameters as buffers, the same in training."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0),
                            ("running_var", 1.0)):  # fmt: skip
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=EPS
        )


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut; a stride is average pooling in both branches."""

    def __init__(self, channels: int, planes: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = FrozenBatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(planes)
        self.conv3 = nn.Conv2d(planes, EXPANSION * planes, 1, bias=False)
        self.bn3 = FrozenBatchNorm(EXPANSION * planes)
        self.downsample: nn.Sequential | None = None
        if first:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, EXPANSION * planes, 1, bias=False),
                FrozenBatchNorm(EXPANSION * planes),
            )

    def pool(self, x: Tensor) -> Tensor:
        """Average pooling by `stride`, sides rounded down."""
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 * planes, h // stride, w // stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.pool(y)))
        shortcut = self.downsample(self.pool(x)) if self.downsample else x
        return F.relu(y + shortcut)


class AttentionPool(nn.Module):
    """Attention over a map's cells and their mean, with the mean as the query."""

    def __init__(self, config: RegionClipConfig) -> None:
        super().__init__()
        width = config.pool_width
        self.heads = config.heads
        self.positional_embedding = nn.Parameter(torch.zeros(config.pool_tokens, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, config.region_width)

    def split(self, x: Tensor) -> Tensor:
        """(N, T, C) -> (N, heads, T, C / heads)."""
        return x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, region_width)."""
        cells = x.flatten(2).transpose(1, 2)  # (N, h * w, C)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], 1) + self.positional_embedding
        query = self.split(self.q_proj(tokens[:, :1]))  # (N, heads, 1, C / heads)
        keys, values = self.split(self.k_proj(tokens)), self.split(self.v_proj(tokens))
        scores = query @ keys.transpose(2, 3) / keys.shape[-1] ** 0.5  # (N, heads, 1, T)
        pooled = (scores.softmax(-1) @ values).transpose(1, 2).flatten(1)  # (N, C)
        vectors: Tensor = self.c_proj(pooled)
        return vectors


class RegionClipBackbone(nn.Module):
    """RegionCLIP's network by its published names."""

    def __init__(self, config: RegionClipConfig) -> None:
        super().__init__()
        half = config.stem // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm(half)
        self.conv3 = nn.Conv2d(half, config.stem, 3, padding=1, bias=False)
        self.bn3 = FrozenBatchNorm(config.stem)
        channels = config.stem
        for index, (planes, depth) in enumerate(zip(config.planes, config.depths, strict=True)):
            blocks = []
            for number in range(depth):
                stride = 2 if index and not number else 1
                blocks.append(Bottleneck(channels, planes, stride, first=not number))
                channels = EXPANSION * planes
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(config)

    def stem(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, stem, h / 4, w / 4), rounded down at the end."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return F.avg_pool2d(x, 2)

    def region_map(self, pixel_values: Tensor) -> Tensor:
        """Return the third stage's map (B, 4 * planes[2], h / 16, w / 16)."""
        x = self.stem(pixel_values)
        for index in (1, 2, 3):
            x = self.get_submodule(f"layer{index}")(x)
        return x

    def pooled(self, crops: Tensor) -> Tensor:
        """Crops of the map (N, 4 * planes[2], roi_size, roi_size) -> vectors (N, region_width)."""
        vectors: Tensor = self.attnpool(self.get_submodule("layer4")(crops))
        return vectors


class RegionClipEncoder(RegionModule):
    """Pixels of B images and N boxes -> N region tokens."""

    config: RegionClipConfig
    projector_parts: ClassVar[tuple[str, ...]] = ("prompt_projector", "bbox_fc")
    reads_pixels: ClassVar[bool] = True

    def __init__(self, config: RegionClipConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = RegionClipBackbone(config)
        self.prompt_projector = nn.Linear(config.region_width, config.hidden_size)
        self.bbox_fc = nn.Linear(4, config.hidden_size)

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(3, h, w) of the one source; None where the sides vary from image to image."""
        return ((3, self.config.input_size, self.config.input_size),)

    @property
    def tokens(self) -> int:
        """One token a region."""
        return 1

    def crops(self, pixel_values: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Crop the boxes from the map with RoIAlign: (N, 4 * planes[2], roi_size, roi_size).

        As in the reference, the number of sampling points adapts to the box, and the scale is
        1 / 16 even if the map's sides were rounded.
        """
        height, width = pixel_values.shape[-2:]
        x0, y0, x1, y1 = boxes.unbind(1)
        index = image_index.to(boxes.dtype)
        rois = torch.stack([index, x0 * width, y0 * height, x1 * width, y1 * height], 1)  # (N, 5)
        crops: Tensor = roi_align(
            self.backbone.region_map(pixel_values),
            rois,
            self.config.roi_size,
            1 / STRIDE,
            sampling_ratio=0,
            aligned=True,
        )
        return crops

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """Return one vector (N, region_width) per box; arguments as in `forward`."""
        (pixel_values,) = sources
        return self.backbone.pooled(self.crops(pixel_values, boxes, image_index))

    def project(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, region_width) and boxes (N, 4) -> region tokens (N, 1, hidden_size)."""
        tokens: Tensor = self.prompt_projector(vectors) + self.bbox_fc(boxes)
        return tokens.unsqueeze(1)
