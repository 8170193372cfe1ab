"""Torch definition of the starter's region encoder: two crops of the image per box.

A close crop shows the box with a margin, a wide one its surroundings. Both are resampled to a small
square with a fourth channel that marks the box, and pass through one residual trunk; their features
are combined with the box's position and colours. Cropping is a product with two matrices of
antialiasing weights, equal to Pillow's bilinear resize, so a box may be larger or smaller than its
crop.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionqa.export.modules.positions import PLACES, PositionedRegionModule, box_position
from regionqa.export.modules.resnet import residual_stages, residual_stem

PATCH = 4
"""Side, in pixels, of a cell of the trunk's first map."""
SMALLEST = 2.0
"""Minimum side of a box or window, in pixels."""


@dataclass(frozen=True)
class CropConfig:
    """Shape of a `CropRegionEncoder`."""

    widths: tuple[int, ...] = (64, 128, 256, 320)
    """Channels of the trunk's stages; the first has stride 4, every further one doubles it."""
    depths: tuple[int, ...] = (2, 2, 2, 1)
    """Residual blocks of the stages."""
    side: int = 64
    """Side of a crop, in pixels; a multiple of `PATCH`."""
    close: float = 1.25
    """Scale of the close crop relative to the box."""
    wide: float = 3.0
    """Scale of the wide crop relative to the box."""
    slim: float = 0.4
    """Minimum of a box's shorter side for cropping, as a share of its longer one."""
    region_width: int = 384
    """Width of the joint features of both crops."""
    colour_grid: int = 3
    """Rows and columns of mean colours taken from the box."""
    hidden_size: int = 192
    """Width of the language model's embeddings."""
    input_size: int | None = None
    """Side of the square input, in pixels; None where height and width vary with the image."""
    place_width: int = 0
    """Hidden width of the position embedding that the projector adds; 0: none."""

    @property
    def trunk_width(self) -> int:
        """Width of the trunk's features of one crop."""
        return sum(self.widths[-2:])

    @property
    def vector_width(self) -> int:
        """Width of a region's vector: features, position, colours."""
        return self.region_width + PLACES + 3 * self.colour_grid**2


class CropTrunk(nn.Module):
    """Residual network over images with a fourth channel; the mean of its last two maps."""

    def __init__(self, config: CropConfig) -> None:
        super().__init__()
        self.stem = residual_stem(config.widths[0], in_channels=4, patch=PATCH)
        self.stages = residual_stages(config.widths, config.depths)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 4, H, W) -> (B, widths[-2] + widths[-1])."""
        x = self.stem(x)
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean((2, 3)))
        return torch.cat(means[-2:], 1)


class CropRegionEncoder(PositionedRegionModule):
    """Pixels of B images and N boxes -> N region tokens."""

    config: CropConfig
    reads_pixels: ClassVar[bool] = True

    def __init__(self, config: CropConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = CropTrunk(config)
        self.join = nn.Linear(2 * config.trunk_width + PLACES, config.region_width)
        self.add_projector()

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(3, h, w) of the one source; None where the sides vary from image to image."""
        return ((3, self.config.input_size, self.config.input_size),)

    def found(self, close: Tensor, wide: Tensor, places: Tensor) -> Tensor:
        """Joint features (N, region_width) of both crops' features (N, trunk_width).

        places: (N, PLACES), from `box_position`.
        """
        return F.relu(self.join(torch.cat([close, wide, places], 1)))

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """Return one vector (N, vector_width) per box; arguments as in `forward`."""
        (pixel_values,) = sources
        height, width = pixel_values.shape[-2:]
        config, count = self.config, boxes.shape[0]
        images = pixel_values[image_index]  # (N, 3, h, w)
        scale = torch.tensor([width, height] * 2, device=boxes.device)
        pixels = within(boxes * scale, width, height)  # (N, 4)
        crops = []
        for grow in (config.close, config.wide):
            window = within(grown(pixels, grow, config.slim), width, height)
            crop = crop_windows(images, window, config.side)
            crops.append(torch.cat([crop, box_mask(window, pixels, config.side)], 1))
        close, wide = self.trunk(torch.cat(crops)).reshape(2, count, config.trunk_width).unbind(0)
        places = box_position(boxes)
        colours = crop_windows(images, pixels, config.colour_grid).flatten(1)  # (N, 3 grid ** 2)
        return torch.cat([self.found(close, wide, places), places, colours], 1)


def grown(boxes: Tensor, grow: float, slim: float) -> Tensor:
    """Scale boxes (N, 4) in pixels about their centres.

    Args:
        boxes: xyxy.
        grow: Factor of the sides.
        slim: Minimum of the shorter side, as a share of the longer one.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    half = torch.maximum(sides, slim * sides.flip(1)) * (grow / 2)
    return torch.cat([middle - half, middle + half], 1)


def within(boxes: Tensor, width: int, height: int) -> Tensor:
    """Clip boxes (N, 4) in pixels to the image; sides are at least `SMALLEST`."""
    far = torch.tensor([width, height], dtype=boxes.dtype, device=boxes.device)
    low = torch.minimum(boxes[:, :2], far - SMALLEST).clamp(min=0)
    high = torch.maximum(torch.minimum(boxes[:, 2:], far), low + SMALLEST)
    return torch.cat([low, high], 1)


def cells(start: Tensor, stop: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres (N, count) and length (N, 1) of `count` equal parts of start to stop (N,)."""
    length = ((stop - start) / count).unsqueeze(1)
    # as a constant: ONNX Runtime warns about nodes that compute it from constants
    steps = torch.tensor([index + 0.5 for index in range(count)], device=start.device)
    return start.unsqueeze(1) + steps * length, length


def box_mask(window: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Mask (N, 1, side, side) of boxes in windows (N, 4): 1 inside, -1 outside.

    A cell at the border has the share that is inside, mapped from [0, 1] to [-1, 1].
    """
    shares = []
    for axis in (0, 1):
        middle, length = cells(window[:, axis], window[:, axis + 2], side)
        after = ((middle - boxes[:, axis : axis + 1]) / length + 0.5).clamp(0, 1)
        before = ((boxes[:, axis + 2 : axis + 3] - middle) / length + 0.5).clamp(0, 1)
        shares.append(after * before)  # (N, side)
    across, down = shares
    return (down.unsqueeze(2) * across.unsqueeze(1)).unsqueeze(1) * 2 - 1


def sampling_weights(start: Tensor, stop: Tensor, pixels: int, count: int) -> Tensor:
    """Weigh the pixels for each of `count` parts of start to stop (N,) -> (N, count, pixels).

    The kernel is a triangle, two parts and at least two pixels wide: antialiased bilinear
    interpolation.
    """
    middle, length = cells(start, stop, count)
    places = torch.arange(pixels, device=middle.device) + 0.5
    distance = (places - middle.unsqueeze(2)).abs()  # (N, count, pixels)
    weights = (1 - distance / length.clamp(min=1).unsqueeze(2)).clamp(min=0)
    return weights / weights.sum(2, keepdim=True).clamp(min=1e-6)


def crop_windows(images: Tensor, window: Tensor, side: int) -> Tensor:
    """Crop windows (N, 4) in pixels from images (N, 3, h, w); (N, 3, side, side)."""
    height, width = images.shape[-2:]
    down = sampling_weights(window[:, 1], window[:, 3], height, side)  # (N, side, h)
    across = sampling_weights(window[:, 0], window[:, 2], width, side)  # (N, side, w)
    rows = down.unsqueeze(1) @ images  # (N, 3, side, w)
    return rows @ across.transpose(1, 2).unsqueeze(1)
