"""Base classes of the vision and region encoders, the interface of export and training.

Both split an encoder in two: a backbone, which may stay frozen, and a small last part that maps its
features into the language model.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn


class VisionModule(nn.Module, ABC):
    """Preprocessed images -> image tokens, and feature maps for a region encoder."""

    config: Any
    """A frozen dataclass, from which with the weights the module can be rebuilt."""
    projector: nn.Module
    """Maps `features` into the language model: (B, T, C) -> (B, T, hidden_size)."""

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Side of the square input, in pixels."""

    @property
    @abstractmethod
    def image_tokens(self) -> int:
        """Number T of language-model tokens per image."""

    @property
    @abstractmethod
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, h, w) of every map for the region encoder."""

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
    """Feature maps, or its own pixels, and boxes -> region tokens."""

    config: Any
    """A frozen dataclass, from which with the weights the module can be rebuilt."""
    projector_parts: ClassVar[tuple[str, ...]]
    """Names of the submodules used by `project`."""
    reads_pixels: ClassVar[bool] = False
    """Whether its source is the image with its own preprocessing, not the levels."""

    @property
    @abstractmethod
    def source_shapes(self) -> tuple[tuple[int, int | None, int | None], ...]:
        """(C, h, w) of every source; None for a side that depends on the image."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Number K of language-model tokens per region."""

    @property
    def feature_width(self) -> int | None:
        """Leading values of a vector that describe what a box shows; None: all of them."""
        return None

    @abstractmethod
    def region_vectors(
        self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor
    ) -> Tensor:
        """Return one vector (N, D) per box, the input of `project`."""

    @abstractmethod
    def project(self, vectors: Tensor, boxes: Tensor) -> Tensor:
        """Map vectors (N, D) with their boxes (N, 4) to region tokens (N, K, hidden_size)."""

    def forward(self, sources: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Compute region tokens (N, K, hidden_size).

        Args:
            sources: The vision encoder's levels, each (B, C_l, h_l, w_l), shallowest first; or the
                pixels (B, 3, h, w), if the encoder reads them.
            boxes: (N, 4) float32 xyxy in [0, 1] of the preprocessed image; N may be 0.
            image_index: (N,) int64, the image of each box.
        """
        return self.project(self.region_vectors(sources, boxes, image_index), boxes)
