"""Torch definition of the starter's region encoder: two cuts of the image's own pixels per box.

A close cut shows the box with a little around it, a wide one its surroundings. Both are resampled
to a small square, one residual trunk looks at both, and what it finds is joined with the box's
place and its colours. A fourth channel marks which pixels of a cut are inside the box. Cutting is
two products with matrices of weights that antialias, as Pillow's bilinear resize does, so a box may
be larger or smaller than its cut. It does not know how the image was resized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionqa.export.modules.base import RegionModule
from regionqa.export.modules.resnet import residual_stages, residual_stem

PLACES = 8
"""Numbers that say where a box is: its corners, its sides, the logarithms of these."""
PATCH = 4
"""Rows and columns of pixels that are one cell of the trunk's first map."""
SMALLEST = 2.0
"""A box or a window counts as at least this many pixels wide and high."""


@dataclass(frozen=True)
class CropConfig:
    """Shape of a `CropRegionEncoder`."""

    widths: tuple[int, ...] = (64, 128, 256, 320)
    """Channels of the trunk's stages; the first has stride 4, every further one doubles it."""
    depths: tuple[int, ...] = (2, 2, 2, 1)
    """Residual blocks of the stages."""
    side: int = 64
    """Rows and columns of a cut; a multiple of `PATCH`."""
    close: float = 1.25
    """Sides of the close cut over those of the box."""
    wide: float = 3.0
    """Sides of the wide cut over those of the box."""
    slim: float = 0.4
    """A box's shorter side counts as at least this share of its longer one."""
    region_width: int = 384
    """Width of what is found in both cuts together."""
    colour_grid: int = 3
    """Rows and columns of mean colours taken from the box."""
    hidden_size: int = 192
    """Width of the language model's embeddings."""
    input_size: int | None = None
    """Side of the square input, in pixels; None where height and width vary with the image."""
    place_width: int = 0
    """Hidden width of an embedding of the box that is added when it is carried; 0: none."""

    @property
    def trunk_width(self) -> int:
        """Width of what the trunk gives for one cut."""
        return sum(self.widths[-2:])

    @property
    def vector_width(self) -> int:
        """Width of a region's vector: what is found, the place, the colours."""
        return self.region_width + PLACES + 3 * self.colour_grid**2


class CropTrunk(nn.Module):
    """Residual network over images with a fourth channel; the means of its last two maps."""

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


class CropRegionEncoder(RegionModule):
    """Pixels of B images and N boxes -> N region tokens."""

    config: CropConfig
    carrier: ClassVar[tuple[str, ...]] = ("carry_linear", "place")
    reads_pixels: ClassVar[bool] = True

    def __init__(self, config: CropConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = CropTrunk(config)
        self.join = nn.Linear(2 * config.trunk_width + PLACES, config.region_width)
        self.carry_linear = nn.Linear(config.vector_width, config.hidden_size)
        self.place: nn.Module = nn.Identity()
        if config.place_width:
            self.place = PositionEmbedding(config.place_width, config.hidden_size)

    @classmethod
    def told_anew(cls, trained: "CropRegionEncoder", **changes: Any) -> Self:
        """An encoder that finds what another has learned to, with an untrained carrier.

        changes: of the other's config, such as `hidden_size` and `input_size`.
        """
        encoder = cls(replace(trained.config, **changes))
        state = {
            name: value
            for name, value in trained.state_dict().items()
            if name.split(".")[0] not in cls.carrier
        }
        encoder.load_state_dict(state, strict=False)
        return encoder.eval()

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(3, h, w) of the one source; None where the sides vary from image to image."""
        return ((3, self.config.input_size, self.config.input_size),)

    @property
    def tokens(self) -> int:
        """One token a region."""
        return 1

    def found(self, close: Tensor, wide: Tensor, places: Tensor) -> Tensor:
        """What is found (N, region_width) in what the trunk saw of cuts (N, trunk_width).

        places: (N, PLACES).
        """
        return F.relu(self.join(torch.cat([close, wide, places], 1)))

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """One vector (N, vector_width) per box; arguments as in `forward`."""
        (pixel_values,) = sources
        height, width = pixel_values.shape[-2:]
        config, count = self.config, boxes.shape[0]
        images = pixel_values[image_index]  # (N, 3, h, w)
        pixels = within(boxes * torch.tensor([width, height] * 2), width, height)  # (N, 4)
        cuts = []
        for grow in (config.close, config.wide):
            window = within(grown(pixels, grow, config.slim), width, height)
            seen = crop_windows(images, window, config.side)
            cuts.append(torch.cat([seen, box_mask(window, pixels, config.side)], 1))
        close, wide = self.trunk(torch.cat(cuts)).reshape(2, count, config.trunk_width).unbind(0)
        places = box_position(boxes)
        colours = crop_windows(images, pixels, config.colour_grid).flatten(1)  # (N, 3 grid ** 2)
        return torch.cat([self.found(close, wide, places), places, colours], 1)

    def moved(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, vector_width) as if the same had been found in boxes (N, 4) in [0, 1]."""
        start = self.config.region_width
        before, after = vectors[:, :start], vectors[:, start + PLACES :]
        return torch.cat([before, box_position(boxes).to(vectors.dtype), after], 1)

    def carry(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, vector_width) -> region tokens (N, 1, hidden_size)."""
        tokens: Tensor = self.carry_linear(vectors)
        if self.config.place_width:
            tokens = tokens + self.place(boxes)
        return tokens.unsqueeze(1)


def box_position(boxes: Tensor) -> Tensor:
    """(N, PLACES): boxes (N, 4) in [0, 1], their sides, and half the logarithms of these."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes, sides, sides.clamp(min=0.01).log() / 2], 1)


def grown(boxes: Tensor, grow: float, slim: float) -> Tensor:
    """Boxes (N, 4) in pixels about the same middle with sides `grow` times as long.

    slim: the shorter side counts as at least this share of the longer one.
    """
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = boxes[:, 2:] - boxes[:, :2]
    half = torch.maximum(sides, slim * sides.flip(1)) * (grow / 2)
    return torch.cat([middle - half, middle + half], 1)


def within(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes (N, 4) in pixels cut to the image; `SMALLEST` where nothing or too little is left."""
    far = torch.tensor([width, height], dtype=boxes.dtype)
    low = torch.minimum(boxes[:, :2], far - SMALLEST).clamp(min=0)
    high = torch.maximum(torch.minimum(boxes[:, 2:], far), low + SMALLEST)
    return torch.cat([low, high], 1)


def cells(start: Tensor, stop: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Middles (N, count) and length (N, 1) of `count` equal parts of start to stop (N,)."""
    length = ((stop - start) / count).unsqueeze(1)
    # written out: what computes it from constants makes ONNX Runtime warn that it cannot
    steps = torch.tensor([index + 0.5 for index in range(count)])
    return start.unsqueeze(1) + steps * length, length


def box_mask(window: Tensor, boxes: Tensor, side: int) -> Tensor:
    """(N, 1, side, side): 1 where a cell of the window (N, 4) is inside its box, else -1.

    At the border of the box the share that is inside, carried from [0, 1] to [-1, 1].
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
    """(N, count, pixels): what each pixel gives to each of `count` parts of start to stop (N,).

    A triangle two parts wide, and never narrower than two pixels: bilinear interpolation that
    antialiases.
    """
    middle, length = cells(start, stop, count)
    distance = (torch.arange(pixels) + 0.5 - middle.unsqueeze(2)).abs()  # (N, count, pixels)
    weights = (1 - distance / length.clamp(min=1).unsqueeze(2)).clamp(min=0)
    return weights / weights.sum(2, keepdim=True).clamp(min=1e-6)


def crop_windows(images: Tensor, window: Tensor, side: int) -> Tensor:
    """Windows (N, 4) in pixels of images (N, 3, h, w), as (N, 3, side, side)."""
    height, width = images.shape[-2:]
    down = sampling_weights(window[:, 1], window[:, 3], height, side)  # (N, side, h)
    across = sampling_weights(window[:, 0], window[:, 2], width, side)  # (N, side, w)
    rows = down.unsqueeze(1) @ images  # (N, 3, side, w)
    return rows @ across.transpose(1, 2).unsqueeze(1)


WAVES = (1, 2, 4)
"""Half waves from one side of the image to the other."""
LOUD = 0.3
"""Standard deviation of the last layer's weights at first: where a box is shall be as loud in its
token as what is in it, or comparing boxes is found out late."""
NUMBERS = 9
"""Edges, middle, sides, and the logarithm of the area."""


class PositionEmbedding(nn.Module):
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
