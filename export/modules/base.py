"""What every vision and every region encoder offers, whatever it is made of.

Training, export and bundles know encoders by these two classes alone. Both split the work the same
way: an encoder proper, which may stay frozen, and a small last part that carries what it found
into the language model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class VisionModule(nn.Module, ABC):
    """Fitted images -> image tokens, and feature maps where a region encoder reads them."""

    config: Any
    """A frozen dataclass; with it and the weights the module can be built again."""
    projector: nn.Module
    """Carries `features` into the language model: (B, T, C) -> (B, T, hidden_size)."""

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Side of the square input, in pixels."""

    @property
    @abstractmethod
    def image_tokens(self) -> int:
        """Language-model tokens T that an image takes."""

    @property
    @abstractmethod
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, h, w) of every map given to the region encoder; none where it reads none."""

    @abstractmethod
    def features(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, T, C) before the projector, and the levels (B, C_l, h_l, w_l).

        pixel_values: (B, 3, S, S) float32.
        """

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Image tokens (B, T, hidden_size), then the levels."""
        features, levels = self.features(pixel_values)
        return (self.projector(features), *levels)


class RegionModule(nn.Module, ABC):
    """Feature maps, or pixels of its own, and boxes -> region tokens."""

    config: Any
    """A frozen dataclass; with it and the weights the module can be built again."""
    carrier: ClassVar[tuple[str, ...]]
    """Names of the submodules that `carry` uses."""
    reads_pixels: ClassVar[bool] = False
    """Whether the one source is the image, fitted by a rule of its own, and not the levels."""

    @property
    @abstractmethod
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(C, h, w) of every source; None is a side that varies from image to image."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Language-model tokens K that a region takes."""

    @abstractmethod
    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """One vector (N, D) per box, before it is carried into the language model."""

    @abstractmethod
    def carry(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Vectors (N, D) and their boxes (N, 4) -> region tokens (N, K, hidden_size)."""

    def forward(self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Region tokens (N, K, hidden_size).

        sources: the vision encoder's levels, each (B, C_l, h_l, w_l), shallowest first; or, where
        the encoder looks at pixels of its own, the one tensor (B, 3, h, w).
        boxes: (N, 4) float32 xyxy in [0, 1] of the fitted image; N may be 0.
        image_index: (N,) int64, which of the B images a box belongs to.
        """
        return self.carry(self.region_vectors(sources, boxes, image_index), boxes)
