"""Collation of samples into padded batches, with the features of their images.

The frozen encoders encode an image once for all questions about it in a batch, and cache its
features as long as there is room.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from regionqa.bundles.card import ModelCard
from regionqa.data.records import Record
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.finetune.dataset import IGNORE_INDEX, Sample, SampleBuilder, jitter_box
from regionqa.images.reading import open_image
from regionqa.language.packing import PackedRows, pack_prompts
from regionqa.regions import Box

CACHE_BYTES = 2 << 30
"""Bytes of encoded images to cache, so that later epochs need not encode them again."""
MAX_VECTORS = 200_000
"""Region vectors of a frozen encoder to cache."""


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """Q conversations, padded on the right to L ids.

    Attributes:
        input_ids: (Q, L) token ids; those in slots are placeholders.
        labels: (Q, L), IGNORE_INDEX outside of answers.
        mask: (Q, L), 1 for tokens and 0 for padding.
        distilled: (Q,) bool, whether an answer is learned from a teacher.
    """

    input_ids: Tensor
    labels: Tensor
    mask: Tensor
    distilled: Tensor

    @property
    def answer_tokens(self) -> int:
        """Number of positions with a loss."""
        return int(self.learned.sum())

    def with_noise(self, mixing: float, noise: float, seed: Sequence[int]) -> Self:
        """Return the batch with noise on frozen features; unchanged where it holds none.

        Args:
            mixing: `StageSettings.feature_mixing`.
            noise: `StageSettings.feature_noise`.
            seed: Random seed.
        """
        return self

    @property
    def learned(self) -> Tensor:
        """(Q, L - 1) bool: positions with a loss, without the first, which nothing predicts."""
        return self.labels[:, 1:] != IGNORE_INDEX

    def to(self, device: torch.device) -> Self:
        """Copy the batch's tensors to a device."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        tensors = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class Batch(LabelledBatch):
    """Q questions about B images with N boxes.

    Attributes:
        features: (B, T, C) of the frozen vision encoder.
        image_rows: (Q,) row of each question's image in `features`.
        image_starts: (Q,) position of each question's first image token.
        sources: Inputs of the region encoder: a list for each group of images of one shape.
        boxes: (N, 4) in [0, 1] of the fitted image.
        places: (N, 2) group and row of each box's image in `sources`.
        vectors: (N, D) of a frozen region encoder, else None.
        region_slots: (M, 3) question, position and box of every region slot.
        packed: The questions in rows where those about one image share its tokens; None where that
            saves nothing.
        feature_width: Leading values of `vectors` that describe what a box shows; None: all.
    """

    features: Tensor
    image_rows: Tensor
    image_starts: Tensor
    sources: list[list[Tensor]]
    boxes: Tensor
    places: Tensor
    vectors: Tensor | None
    region_slots: Tensor
    packed: PackedRows | None = None
    feature_width: int | None = None

    def with_noise(self, mixing: float, noise: float, seed: Sequence[int]) -> Self:
        """See `LabelledBatch.with_noise`; positions in region vectors stay as they are."""
        (state,) = np.random.SeedSequence(list(seed)).generate_state(1).tolist()
        generator = torch.Generator().manual_seed(state)
        features, vectors = noisy_rows(self.features, mixing, noise, generator), self.vectors
        if vectors is not None:
            width = self.feature_width or vectors.shape[1]
            seen = noisy_rows(vectors[:, :width], mixing, noise, generator)
            vectors = torch.cat([seen, vectors[:, width:]], 1)
        return replace(self, features=features, vectors=vectors)

    def to(self, device: torch.device) -> Self:
        """Copy the batch to a device."""
        sources = [[t.to(device) for t in group] for group in self.sources]
        packed = self.packed and self.packed.to(device)
        return replace(super().to(device), sources=sources, packed=packed)


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


@dataclass(frozen=True)
class Collator:
    """Collate records into batches."""

    builder: SampleBuilder
    encoders: Encoders
    frozen_region: bool
    """Whether region vectors come from the frozen encoder and only their projection trains."""

    def batch(
        self, records: Sequence[Record], noise: float = 0.0, seeds: Sequence[Sequence[int]] = ()
    ) -> Batch:
        """Collate records, with box jitter of size `noise` drawn from the seed of each."""
        paths = list(dict.fromkeys(record.image for record in records))
        encoded = {path: self.encoders.image(path) for path in paths}
        samples = [
            self._sample(record, encoded[record.image], noise, seeds[row] if noise else ())
            for row, record in enumerate(records)
        ]
        length = max(len(sample.input_ids) for sample in samples)
        lengths = torch.tensor([len(sample.input_ids) for sample in samples])
        image_rows = [paths.index(sample.record.image) for sample in samples]
        return Batch(
            input_ids=padded_rows([sample.input_ids for sample in samples], length, 0),
            labels=padded_rows([sample.labels for sample in samples], length, IGNORE_INDEX),
            mask=(torch.arange(length) < lengths.unsqueeze(1)).long(),
            features=torch.stack([image.features for image in encoded.values()]),
            image_rows=torch.tensor(image_rows),
            image_starts=torch.tensor([sample.image_start for sample in samples]),
            distilled=torch.zeros(len(samples), dtype=torch.bool),
            packed=pack_prompts(image_rows, lengths.tolist(), samples[0].shared, length),
            feature_width=self.encoders.feature_width,
            **self._regions(samples, encoded),
        )

    def _sample(
        self, record: Record, image: FrozenFeatures, noise: float, seed: Sequence[int]
    ) -> Sample:
        size = (image.width, image.height)
        boxes = [region.box for region in record.regions]
        if noise:
            rng = np.random.default_rng(list(seed))
            boxes = [jitter_box(box, noise, *size, rng) for box in boxes]
        return self.builder.sample(record, size, boxes)

    def _regions(
        self, samples: Sequence[Sample], encoded: Mapping[Path, FrozenFeatures]
    ) -> dict[str, Any]:
        """Return the fields of `Batch` about regions."""
        groups, sources = _stacked([image.sources for image in encoded.values()])
        place_of = dict(zip(encoded, groups, strict=True))
        slots: list[tuple[int, int, int]] = []
        boxes: list[tuple[float, float, float, float]] = []
        places: list[tuple[int, int]] = []
        vectors: list[Tensor] = []
        known = self._vectors(samples, encoded) if self.frozen_region else {}
        for row, sample in enumerate(samples if self.encoders.takes_regions else ()):
            path = sample.record.image
            slots += [(row, at, len(boxes) + index) for at, index in sample.region_starts]
            boxes += self.encoders.fitted(encoded[path], sample.boxes)
            places += [place_of[path]] * len(sample.boxes)
            if self.frozen_region:
                vectors += [known[path, box] for box in sample.boxes]
        return {
            "sources": [] if self.frozen_region else sources,
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "places": torch.tensor(places, dtype=torch.long).reshape(-1, 2),
            "vectors": torch.stack(vectors) if vectors else None,
            "region_slots": torch.tensor(slots, dtype=torch.long).reshape(-1, 3),
        }

    def _vectors(
        self, samples: Sequence[Sample], encoded: Mapping[Path, FrozenFeatures]
    ) -> dict[tuple[Path, Box], Tensor]:
        """Compute vectors (D,) of all boxes, in one call of the region encoder for each image."""
        known: dict[tuple[Path, Box], Tensor] = {}
        for path, image in encoded.items() if self.encoders.takes_regions else ():
            own = (sample.boxes for sample in samples if sample.record.image == path)
            boxes = list(dict.fromkeys(box for boxes in own for box in boxes))
            if boxes:
                vectors = self.encoders.vectors(path, image, boxes)
                known |= {(path, box): v for box, v in zip(boxes, vectors, strict=True)}
        return known


def noisy_rows(features: Tensor, mixing: float, noise: float, generator: torch.Generator) -> Tensor:
    """Mix a share of another row into each of features (R, ..., C), and add normal noise.

    Args:
        features: Of images or regions.
        mixing: Largest share; each row's is drawn evenly from 0 on.
        noise: Standard deviation of the noise, as a share of that of the rows.
        generator: Draws shares, rows and noise, on the CPU, whatever the features' device.
    """
    rows = len(features)
    shares = mixing * torch.rand(rows, *[1] * (features.ndim - 1), generator=generator)
    others = features[torch.randperm(rows, generator=generator)]
    spread = features.std(0, correction=0)
    drawn = torch.randn(features.shape, generator=generator)
    device, dtype = features.device, features.dtype
    mixed = features.lerp(others, shares.to(device, dtype).expand_as(features))
    return mixed + noise * spread * drawn.to(device, dtype)


def padded_rows(rows: Sequence[Sequence[int]], length: int, value: int) -> Tensor:
    """Pad rows of ids on the right, to (Q, length)."""
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def _stacked(
    images: Sequence[tuple[Tensor, ...]],
) -> tuple[list[tuple[int, int]], list[list[Tensor]]]:
    """Stack sources of images by shape; return (group, row) of every image, and the stacks."""
    members: dict[tuple[torch.Size, ...], list[tuple[Tensor, ...]]] = {}
    places = []
    for sources in images:
        shape = tuple(source.shape for source in sources)
        group = members.setdefault(shape, [])
        places.append((list(members).index(shape), len(group)))
        group.append(sources)
    stacks = [
        [torch.stack(parts) for parts in zip(*group, strict=True)] for group in members.values()
    ]
    return places, stacks
