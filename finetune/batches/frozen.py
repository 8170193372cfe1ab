"""Features of images and regions by frozen encoders.

An image is encoded once for all questions about it in a batch, and its features are cached as long
as there is room.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from regionqa.bundles.card import ModelCard
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.images.reading import open_image
from regionqa.regions import Box

CACHE_BYTES = 2 << 30
"""Bytes of encoded images to cache, so that later epochs need not encode them again."""
MAX_VECTORS = 200_000
"""Region vectors of a frozen encoder to cache."""


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of one image by frozen encoders.

    Attributes:
        width: In pixels of the image as displayed.
        height: Likewise.
        features: (T, C) of the vision encoder.
        sources: Input of the region encoder: a map (C, h, w) for each level, or pixels (3, h, w).
    """

    width: int
    height: int
    features: Tensor
    sources: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.features, *self.sources))


class FrozenEncoders:
    """The vision encoder, and the region encoder where it is frozen too, with a cache."""

    def __init__(
        self,
        card: ModelCard,
        vision: VisionModule,
        region: RegionModule | None,
        device: torch.device,
        cache_bytes: int = CACHE_BYTES,
        boxes: Mapping[Path, Collection[Box]] = MappingProxyType({}),
    ) -> None:
        """Begin with an empty cache.

        Args:
            card: Of the model.
            vision: The vision encoder.
            region: The region encoder; None where the model has none.
            device: Where both are.
            cache_bytes: Bytes of encoded images to cache.
            boxes: All boxes that will be asked about, by image, where the region encoder is frozen
                in all stages: their vectors then take the place of the much larger levels.
        """
        self._card = card
        self._vision = vision
        self._region = region
        self._device = device
        self._room = cache_bytes
        self._boxes = boxes
        self._images: dict[Path, FrozenFeatures] = {}
        self._vectors: dict[tuple[Path, Box], Tensor] = {}

    @property
    def takes_regions(self) -> bool:
        """Whether prompts have region slots."""
        return self._region is not None and self._card.prompt.takes_features

    @property
    def feature_width(self) -> int | None:
        """Of region vectors; see `RegionModule`."""
        return None if self._region is None else self._region.feature_width

    @torch.no_grad()
    def image(self, path: Path) -> FrozenFeatures:
        """Encode an image, or return it from the cache."""
        if path in self._images:
            return self._images[path]
        source = open_image(path)
        image = source.load()
        pixels = torch.from_numpy(self._card.preprocessing.pixel_values(image))
        features, levels = self._vision.features(pixels.to(self._device))
        sources: tuple[Tensor, ...] = ()
        if self.takes_regions:
            own = self._card.preprocessing.region_pixels(image)  # (1, 3, h, w)
            if own is None:
                sources = tuple(level[0] for level in levels)
            else:
                sources = (torch.from_numpy(own[0]).to(self._device),)
        encoded = FrozenFeatures(source.width, source.height, features[0], sources)
        if path in self._boxes:
            self._vectors |= self._computed(path, encoded, list(self._boxes[path]))
            encoded = replace(encoded, sources=())
        if encoded.size <= self._room:
            self._images[path] = encoded
            self._room -= encoded.size
        return encoded

    def fitted(
        self, image: FrozenFeatures, boxes: Sequence[Box]
    ) -> list[tuple[float, float, float, float]]:
        """Convert boxes to [0, 1] of the image as it is fitted for the region encoder."""
        return self._card.preprocessing.boxes(boxes, image.width, image.height)

    @torch.no_grad()
    def vectors(self, path: Path, image: FrozenFeatures, boxes: Sequence[Box]) -> list[Tensor]:
        """Compute region vectors (D,) of boxes of one image with the frozen region encoder."""
        known = {box: self._vectors.get((path, box)) for box in boxes}
        new = [box for box, vector in known.items() if vector is None]
        if new:
            computed = self._computed(path, image, new)
            known |= {box: vector for (_, box), vector in computed.items()}
            if len(self._vectors) < MAX_VECTORS:  # jittered boxes do not recur
                self._vectors |= computed
        return [vector for box in boxes if (vector := known[box]) is not None]

    def _computed(
        self, path: Path, image: FrozenFeatures, boxes: Sequence[Box]
    ) -> dict[tuple[Path, Box], Tensor]:
        """Compute region vectors (D,) of boxes of one image from its sources."""
        assert self._region is not None
        if not boxes:
            return {}
        sources = [source.unsqueeze(0) for source in image.sources]
        fitted = torch.tensor(self.fitted(image, boxes), device=self._device)  # (N, 4)
        index = torch.zeros(len(boxes), dtype=torch.long, device=self._device)
        vectors = self._region.region_vectors(sources, fitted, index)  # (N, D)
        return {(path, box): vector.clone() for box, vector in zip(boxes, vectors, strict=True)}


class Encoders(Protocol):
    """Interface of frozen encoders; see `FrozenEncoders`."""

    @property
    def takes_regions(self) -> bool:
        """Whether prompts have region slots."""

    @property
    def feature_width(self) -> int | None:
        """Leading values of region vectors that describe what a box shows; None: all."""

    def image(self, path: Path) -> FrozenFeatures:
        """Return the features of an image."""

    def fitted(
        self, image: FrozenFeatures, boxes: Sequence[Box]
    ) -> list[tuple[float, float, float, float]]:
        """Convert boxes to [0, 1] of the fitted image."""

    def vectors(self, path: Path, image: FrozenFeatures, boxes: Sequence[Box]) -> list[Tensor]:
        """Return region vectors (D,) of boxes of one image."""
