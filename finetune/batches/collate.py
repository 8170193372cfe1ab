"""Collation of samples into padded batches, with the features of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from regionqa.data.records import Record
from regionqa.finetune.batches.dataset import IGNORE_INDEX, Sample, SampleBuilder, jitter_box
from regionqa.finetune.batches.frozen import Encoders, FrozenFeatures
from regionqa.finetune.batches.noise import noisy_rows, swapped_rows
from regionqa.finetune.config import StageSettings
from regionqa.language.packing import PackedRows, pack_prompts
from regionqa.regions import Box


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

    def with_changed_features(self, settings: StageSettings, seed: Sequence[int]) -> Self:
        """Return the batch with other frozen features; unchanged where it holds none.

        Args:
            settings: Their `feature_mixing`, `feature_noise` and `swapped_images` say how much.
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

    def with_changed_features(self, settings: StageSettings, seed: Sequence[int]) -> Self:
        """See `LabelledBatch.with_changed_features`; positions in region vectors stay."""
        (state,) = np.random.SeedSequence(list(seed)).generate_state(1).tolist()
        generator = torch.Generator().manual_seed(state)
        mixing, noise = settings.feature_mixing, settings.feature_noise
        features, vectors = self.features, self.vectors
        if settings.swapped_images:
            swappable = self.asked_by_regions_alone
            features = swapped_rows(features, settings.swapped_images, swappable, generator)
        features = noisy_rows(features, mixing, noise, generator)
        if vectors is not None:
            width = self.feature_width or vectors.shape[1]
            seen = noisy_rows(vectors[:, :width], mixing, noise, generator)
            vectors = torch.cat([seen, vectors[:, width:]], 1)
        return replace(self, features=features, vectors=vectors)

    @property
    def asked_by_regions_alone(self) -> Tensor:
        """(B,) bool: which images no question is about that names no region."""
        named = torch.zeros(len(self.image_rows), dtype=torch.bool)
        named[self.region_slots[:, 0].cpu()] = True
        found = torch.ones(len(self.features), dtype=torch.bool)
        found[self.image_rows.cpu()[~named]] = False
        return found

    def to(self, device: torch.device) -> Self:
        """Copy the batch to a device."""
        sources = [[t.to(device) for t in group] for group in self.sources]
        packed = self.packed and self.packed.to(device)
        return replace(super().to(device), sources=sources, packed=packed)


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
