"""Torch definition of a region encoder with pixels of its own (PVIT, arXiv 2308.13437, section 3).

A residual trunk sees the whole image, RoIAlign cuts every box out of one of its maps, and the
trunk's remaining stages run on every cut alone, as in RegionCLIP (arXiv 2112.09106). The mean over
a cut is the region's vector. Two linear layers, named as in the published checkpoint, carry the
vector and the box into the language model. It does not know how the image was resized.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from regionqa.export.modules.base import RegionModule
from regionqa.export.modules.resnet import ResNetVision, residual_stages, residual_stem


@dataclass(frozen=True)
class PixelRegionConfig:
    """Shape of a `PixelRegionEncoder`. ValueError where it contradicts itself."""

    widths: tuple[int, ...] = (32, 64, 160, 256)
    """Channels of the trunk's stages; the first has stride 4, every further one doubles it."""
    depths: tuple[int, ...] = (2, 2, 3, 2)
    """Residual blocks of the stages."""
    roi_level: int = 2
    """Stage whose map regions are cut from; the stages after it run on every region alone."""
    roi_size: int = 8
    """Rows and columns RoIAlign cuts a region into."""
    sampling_ratio: int = 2
    """Points a cell is sampled at, per side; 0 takes as many as the cell has map cells."""
    hidden_size: int = 192
    """Width of the language model's embeddings."""
    input_size: int | None = None
    """Side of the square input, in pixels; None where height and width vary with the image."""
    patch: int = 0
    """As of the vision encoder whose trunk it has; sides must then be multiples of it."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.depths):
            raise ValueError(f"{len(self.widths)} widths for {len(self.depths)} depths")
        if not 0 <= self.roi_level < len(self.widths):
            raise ValueError(f"roi_level is {self.roi_level}, of {len(self.widths)} stages")

    @property
    def stride(self) -> int:
        """Pixels of the input that one cell of the map takes, to either side."""
        return 4 << self.roi_level


class PixelRegionEncoder(RegionModule):
    """Pixels of B images and N boxes -> N region tokens."""

    config: PixelRegionConfig
    carrier: ClassVar[tuple[str, ...]] = ("prompt_projector", "bbox_fc")
    reads_pixels: ClassVar[bool] = True

    def __init__(self, config: PixelRegionConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = residual_stem(config.widths[0], patch=config.patch)
        self.stages = residual_stages(config.widths, config.depths)
        self.prompt_projector = nn.Linear(config.widths[-1], config.hidden_size)
        self.bbox_fc = nn.Linear(4, config.hidden_size)

    @classmethod
    def from_vision(
        cls,
        vision: ResNetVision,
        hidden_size: int,
        *,
        roi_size: int = 8,
        sampling_ratio: int = 2,
        input_size: int | None = None,
    ) -> Self:
        """An encoder whose trunk is a copy of a vision encoder's, its last stage run per region.

        The two linear layers are untrained.
        """
        own = vision.config
        encoder = cls(
            PixelRegionConfig(
                widths=own.widths,
                depths=own.depths,
                roi_level=max(0, len(own.widths) - 2),
                roi_size=roi_size,
                sampling_ratio=sampling_ratio,
                hidden_size=hidden_size,
                input_size=input_size,
                patch=own.patch,
            )
        )
        encoder.stem.load_state_dict(vision.stem.state_dict())
        encoder.stages.load_state_dict(vision.stages.state_dict())
        return encoder

    @property
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(3, h, w) of the one source; None where the sides vary from image to image."""
        return ((3, self.config.input_size, self.config.input_size),)

    @property
    def tokens(self) -> int:
        """One token a region."""
        return 1

    def region_map(self, pixel_values: Tensor) -> Tensor:
        """The map (B, C, ceil(h / stride), ceil(w / stride)) that regions are cut from.

        pixel_values: (B, 3, h, w) float32.
        """
        x: Tensor = self.stem(pixel_values)  # (B, widths[0], h / 4, w / 4)
        for stage in self.stages[: self.config.roi_level + 1]:
            x = stage(x)
        return x

    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """One vector (N, widths[-1]) per box; arguments as in `forward`."""
        (pixel_values,) = sources
        height, width = pixel_values.shape[-2:]
        x0, y0, x1, y1 = boxes.unbind(1)
        index = image_index.to(boxes.dtype)
        rois = torch.stack([index, x0 * width, y0 * height, x1 * width, y1 * height], 1)  # (N, 5)
        x = roi_align(
            self.region_map(pixel_values),
            rois,
            self.config.roi_size,
            1 / self.config.stride,
            sampling_ratio=self.config.sampling_ratio,
            aligned=True,
        )  # (N, C, roi_size, roi_size)
        for stage in self.stages[self.config.roi_level + 1 :]:
            x = stage(x)
        vectors: Tensor = x.mean((2, 3))  # (N, widths[-1])
        return vectors

    def carry(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, widths[-1]) and boxes (N, 4) -> region tokens (N, 1, hidden_size)."""
        tokens: Tensor = self.prompt_projector(vectors) + self.bbox_fc(boxes)
        return tokens.unsqueeze(1)
