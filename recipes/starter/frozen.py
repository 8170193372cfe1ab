"""Cached features of the frozen backbone, heads trained on them, and the teacher's predictions.

Heads that begin untrained would send random gradients into the pretrained backbone (Kumar et al.
2022, "linear probing then fine-tuning").
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.starter.encoders import (
    StarterEncoders,
    class_weights,
    classes_in_cells,
    pixel_values,
    save,
)
from recipes.starter.photos import SMALLEST_SIDE, Photo, whole_view

log = logging.getLogger("recipes.starter")
STEPS, BATCH, RATE, DECAY = 2000, 128, 1e-3, 0.05
"""Training of the heads."""
INPUT_DROPOUT = 0.1
TEACHER_SIDE = 24
"""Least shorter side, in pixels of the square, of boxes that are distilled."""


@dataclass(frozen=True)
class BackboneFeatures:
    """Features of P photos and N boxes.

    pooled: (N, D) of boxes, `RoIRegionEncoder.pooled`. scenes: (P, C) the mean of the last map.
    cells: (P, T, C) its means over the grid. photos: (N,) the photo of each box.
    """

    pooled: Tensor
    scenes: Tensor
    cells: Tensor
    photos: Tensor

    def teachers(self, classifier: nn.Linear, count: int) -> list[Tensor]:
        """Logits (n, 1000) of the backbone's classifier for the boxes of each of `count` photos."""
        width = classifier.in_features  # the last map is pooled twice: in the box, and as a whole
        own = self.pooled[:, -2 * width : -width]
        with torch.no_grad():
            logits = torch.cat([classifier(part.float()) for part in torch.split(own, 4096)])
        return [logits[self.photos == number] for number in range(count)]


@torch.no_grad()
def frozen_features(
    encoders: StarterEncoders, photos: Sequence[Photo], path: Path
) -> BackboneFeatures:
    """Compute features of whole photos and all of their boxes, or read them from a file."""
    if path.exists():
        return BackboneFeatures(**torch.load(path, weights_only=True))
    vision, region, batch = encoders.vision, encoders.region, encoders.settings.batch
    parts: dict[str, list[Tensor]] = {"pooled": [], "scenes": [], "cells": [], "photos": []}
    for start in range(0, len(photos), batch):
        chosen = photos[start : start + batch]
        pixels = pixel_values([whole_view(p, encoders.settings.side).pixels for p in chosen])
        index = torch.from_numpy(np.repeat(range(len(chosen)), [len(p.boxes) for p in chosen]))
        boxes = np.concatenate([p.boxes / np.array(p.size * 2, np.float32) for p in chosen])
        maps = vision.backbone(pixels)
        parts["pooled"].append(
            region.pooled(vision.levels(pixels, maps), torch.from_numpy(boxes), index).half()
        )
        means = vision.cell_means(maps).half()
        parts["scenes"].append(means[:, 0])
        parts["cells"].append(means[:, 1:])
        parts["photos"].append(index + start)
        if start % (50 * batch) == 0:
            log.info("frozen features: %d of %d photos", start, len(photos))
    found = {name: torch.cat(values) for name, values in parts.items()}
    save(found, path)
    return BackboneFeatures(**found)


def train_heads(
    encoders: StarterEncoders,
    features: BackboneFeatures,
    photos: Sequence[Photo],
    teachers: list[Tensor],
) -> None:
    """Train all that lies behind the frozen backbone, in place."""
    settings, classes = encoders.settings, encoders.classes.out_features
    labels = torch.from_numpy(np.concatenate([photo.labels for photo in photos]))
    targets = torch.cat(teachers).softmax(1)
    sides = np.concatenate(
        [((p.boxes[:, 2:] - p.boxes[:, :2]) / np.array(p.size)).min(axis=1) for p in photos]
    )
    large = torch.from_numpy(sides * settings.side >= TEACHER_SIDE).float()
    learned = torch.from_numpy(np.flatnonzero(sides * settings.side >= SMALLEST_SIDE))
    weights = class_weights(photos, classes, settings.class_balance)
    join, head, fine = encoders.region.join, encoders.classes, encoders.fine

    def boxes_loss(chosen: Tensor) -> Tensor:
        rows = learned[chosen]
        hidden = F.dropout(join(normal_boxes(rows)).relu(), settings.dropout)
        named = F.cross_entropy(
            head(hidden), labels[rows], weights, label_smoothing=settings.smoothing
        )
        distilled = F.cross_entropy(fine(hidden), targets[rows], reduction="none")
        return named + settings.teacher * (distilled * large[rows]).mean()

    normal_boxes = Normalized(features.pooled)
    fit([join, head, fine], boxes_loss, len(learned), STEPS)
    normal_boxes.fold_into(join)
    counts = torch.from_numpy(
        np.stack([np.bincount(photo.labels, minlength=classes) for photo in photos])
    ).float()

    in_cells = torch.stack(
        [classes_in_cells(whole_view(p, settings.side), settings.grid, classes) for p in photos]
    )

    def tokens_loss(rows: Tensor) -> Tensor:
        hidden = F.dropout(scene(normal_scenes(rows)).relu(), settings.dropout)
        present = F.binary_cross_entropy_with_logits(
            encoders.presence(hidden), (counts[rows] > 0).float()
        )
        counted = F.smooth_l1_loss(encoders.counts(hidden), counts[rows].log1p())
        parts = F.dropout(cell(normal_cells(rows)).relu(), settings.dropout)
        shown = F.binary_cross_entropy_with_logits(encoders.presence(parts), in_cells[rows])
        return settings.presence * present + settings.counts * counted + settings.cells * shown

    scene, cell = first_layer(encoders.vision.scene), first_layer(encoders.vision.token)
    normal_scenes, normal_cells = Normalized(features.scenes), Normalized(features.cells)
    fit([scene, cell, encoders.presence, encoders.counts], tokens_loss, len(photos), STEPS)
    normal_scenes.fold_into(scene)
    normal_cells.fold_into(cell)


def first_layer(layers: nn.Module) -> nn.Linear:
    """Return the linear layer that a sequence begins with."""
    first = next(layers.children())
    assert isinstance(first, nn.Linear)
    return first


class Normalized:
    """Features of rows with zero mean and unit variance over all of them, dropped at random."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        values = features.float().flatten(0, -2)
        self.mean, self.scale = values.mean(0), 1 / (values.std(0) + 1e-3)

    def __call__(self, rows: Tensor) -> Tensor:
        """(R, ..., D) float32."""
        values = (self.features[rows].float() - self.mean) * self.scale
        return F.dropout(values, INPUT_DROPOUT)

    @torch.no_grad()
    def fold_into(self, layer: nn.Linear) -> None:
        """Make a layer that was trained on normalized features read raw ones."""
        layer.weight.mul_(self.scale)
        layer.bias.sub_(layer.weight @ self.mean)


def fit(
    layers: Sequence[nn.Module], loss_of: Callable[[Tensor], Tensor], count: int, steps: int
) -> None:
    """Train layers by the loss of random rows out of `count`."""
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = loss_of(torch.randint(count, (min(BATCH, count),)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
