"""Multi-task training of the vision and region encoders.

The backbone is pretrained on ImageNet, and its shallow stages stay frozen. The other stages, the
region encoder and linear heads are trained together: to classify boxes, to predict which classes a
cell and the whole image show and how often, and to keep the pretrained classifier's predictions for
boxes (distillation).
"""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.starter.photos import Photo, Rng, View, random_view
from regionqa.export.modules.roi import RoIConfig, RoIRegionEncoder
from regionqa.export.modules.timm_vision import TimmConfig, TimmVision
from regionqa.export.sources.timm_checkpoints import LITE_MEAN, LITE_STD
from regionqa.files import write_whole

log = logging.getLogger("recipes.starter")
IMAGENET_CLASSES = 1000
FROZEN = ("conv_stem", "bn1", "blocks.0.", "blocks.1.", "blocks.2.")
"""Stages of the backbone up to stride 8, by timm's names."""


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of the encoders and of their training."""

    architecture: str = "tf_efficientnet_lite2"
    """The backbone, by timm's name."""
    levels: tuple[int, ...] = (2, 3, 4)
    """Maps that the region encoder reads, of strides 8, 16 and 32, by timm's numbers."""
    side: int = 320
    """Of the image, in pixels."""
    width: int = 512
    """Of a region's features, and of an image token's."""
    hidden_size: int = 256
    """Of the language model's embeddings."""
    grid: int = 4
    """Rows and columns of image tokens."""
    place_width: int = 96
    """Hidden width of the embedding of a box's place."""
    dropout: float = 0.3
    epochs: float = 4
    batch: int = 8
    """Photos in a step."""
    most_boxes: int = 96
    """In a step."""
    backbone_rate: float = 1.5e-4
    head_rate: float = 4e-4
    weight_decay: float = 0.02
    warm_up: tuple[float, float] = (0.1, 0.02)
    """Shares of the steps of linear warm-up, of backbone and heads."""
    average: float = 0.997
    """Decay of the averaged weights, which are the result."""
    mixup: float = 0.3
    """Share of the steps with mixup (Zhang et al. 2018)."""
    box_noise: float = 0.04
    """Standard deviation of the shift of a box's edges, as a share of its sides."""
    smoothing: float = 0.05
    class_balance: float = 0.3
    """A class's weight in the loss is its frequency to the power of minus this."""
    teacher: float = 0.2
    presence: float = 10.0
    counts: float = 4.0
    cells: float = 5.0
    """Weights of the losses beside that of the boxes' classes."""
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Scores:
    """Outputs of the heads.

    classes: (N, C) logits of boxes. fine: (N, 1000) logits of ImageNet's classes. presence: (B, C)
    logits. counts: (B, C) log(1 + number). cells: (B, T, C) logits of classes in a cell.
    """

    classes: Tensor
    fine: Tensor
    presence: Tensor
    counts: Tensor
    cells: Tensor


class StarterEncoders(nn.Module):
    """Vision and region encoder, and linear heads over their features.

    One head reads which classes an image token shows, be it a cell's or that of the whole image.
    """

    def __init__(self, settings: EncoderSettings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.vision = TimmVision(
            TimmConfig(
                settings.architecture,
                input_size=settings.side,
                hidden_size=settings.hidden_size,
                levels=settings.levels,
                top=True,
                pixels=4,
                token_grid=settings.grid,
                token_width=settings.width,
                scene_token=True,
            )
        )
        shapes = self.vision.level_shapes
        self.region = RoIRegionEncoder(
            RoIConfig(
                in_channels=tuple(shape[0] for shape in shapes),
                sides=tuple(shape[1] for shape in shapes),
                hidden_size=settings.hidden_size,
                pixels=True,
                region_width=settings.width,
                dropout=settings.dropout,
                place_width=settings.place_width,
            )
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.classes = nn.Linear(settings.width, classes)
        self.fine = nn.Linear(settings.width, IMAGENET_CLASSES)
        self.presence = nn.Linear(settings.width, classes)
        self.counts = nn.Linear(settings.width, classes)

    def forward(self, pixel_values: Tensor, boxes: Tensor, image_index: Tensor) -> Scores:
        """Score B images (B, 3, S, S) and N boxes (N, 4) in [0, 1] of images (N,)."""
        tokens, levels = self.vision.features(pixel_values)
        features = self.region.features(self.region.pooled(levels, boxes, image_index))
        scene, cells = self.dropout(tokens).split([1, self.settings.grid**2], 1)
        return Scores(
            self.classes(features),
            self.fine(features),
            self.presence(scene[:, 0]),
            self.counts(scene[:, 0]),
            self.presence(cells),
        )

    def freeze(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Freeze shallow stages and projectors; return the trained weights: backbone's, others.

        The projectors are trained with the language model.
        """
        backbone: list[nn.Parameter] = []
        heads: list[nn.Parameter] = []
        untrained = ("vision.projector.", *(f"region.{n}" for n in self.region.projector_parts))
        for name, parameter in self.named_parameters():
            in_backbone = name.removeprefix("vision.backbone.model.")
            trained = not in_backbone.startswith(FROZEN) and not name.startswith(untrained)
            parameter.requires_grad_(trained)
            if trained:
                (heads if in_backbone == name else backbone).append(parameter)
        return backbone, heads


@dataclass(frozen=True)
class Targets:
    """Inputs and targets of a step: B images with N boxes."""

    pixel_values: Tensor
    boxes: Tensor
    image_index: Tensor
    labels: Tensor
    teacher: Tensor
    """(N, 1000) probabilities."""
    counts: Tensor
    """(B, C)."""
    cells: Tensor
    """(B, T, C) 1 where a class is in a cell."""


def pixel_values(pixels: Sequence[Any]) -> Tensor:
    """uint8 (S, S, 3) each -> (B, 3, S, S) float32 as the backbone was trained with."""
    values = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return (
        values.float()
        .sub_(255 * LITE_MEAN)
        .div_(255 * LITE_STD)
        .contiguous(memory_format=torch.channels_last)
    )


def step_targets(
    views: Sequence[View],
    teachers: Sequence[Tensor],
    classes: int,
    settings: EncoderSettings,
    rng: Rng,
) -> Targets:
    """Stack views, and logits (N, 1000) of the teacher for their boxes."""
    boxes = np.concatenate([view.boxes for view in views])
    index = np.repeat(np.arange(len(views)), [len(view.boxes) for view in views])
    labels = np.concatenate([view.labels for view in views])
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    noisy = (boxes + rng.normal(0, settings.box_noise, boxes.shape) * sides).clip(0, 1)
    kept = torch.from_numpy(rng.permutation(len(boxes))[: settings.most_boxes])
    return Targets(
        pixel_values([view.pixels for view in views]),
        torch.from_numpy(noisy.astype(np.float32))[kept],
        torch.from_numpy(index)[kept],
        torch.from_numpy(labels)[kept],
        torch.cat(list(teachers))[kept].float().softmax(1),
        torch.from_numpy(np.stack([np.bincount(v.labels, minlength=classes) for v in views])),
        torch.stack([classes_in_cells(view, settings.grid, classes) for view in views]),
    )


def classes_in_cells(view: View, grid: int, classes: int) -> Tensor:
    """(grid ** 2, C): 1 where a box covers a quarter of a cell, or a quarter of it lies there."""
    edges = np.arange(grid + 1) / grid
    low = np.maximum(view.boxes[:, :2, None], edges[:-1])  # (N, 2, grid)
    high = np.minimum(view.boxes[:, 2:, None], edges[1:])
    across, down = (high - low).clip(0).transpose(1, 0, 2)  # (N, grid) each
    areas = (view.boxes[:, 2:] - view.boxes[:, :2]).prod(axis=1)  # (N,)
    least = np.minimum(areas, 1 / grid**2) / 4
    inside = (down[:, :, None] * across[:, None]).reshape(-1, grid**2) >= least[:, None]
    found = torch.zeros(grid**2, classes)
    for row, label in zip(inside, view.labels, strict=True):
        found[torch.from_numpy(row), int(label)] = 1
    return found


def mixup(targets: Targets, rng: Rng) -> tuple[Targets, float]:
    """Blend every photo with another; return also the share of the photo that its boxes are of."""
    share = float(rng.uniform(0.5, 0.8))
    pixels = share * targets.pixel_values + (1 - share) * targets.pixel_values.flip(0)
    return (
        replace(
            targets,
            pixel_values=pixels.contiguous(memory_format=torch.channels_last),
            counts=targets.counts + targets.counts.flip(0),
            cells=torch.maximum(targets.cells, targets.cells.flip(0)),
        ),
        share,
    )


def loss_of(
    scores: Scores, targets: Targets, weights: Tensor, share: float, settings: EncoderSettings
) -> Tensor:
    """Sum the losses; weights (C,) of the classes, share of the photo that boxes are of."""
    named = F.cross_entropy(
        scores.classes, targets.labels, weights, label_smoothing=settings.smoothing
    )
    present = (targets.counts > 0).float()
    return (
        share * named
        + settings.teacher * F.cross_entropy(scores.fine, targets.teacher)
        + settings.presence * F.binary_cross_entropy_with_logits(scores.presence, present)
        + settings.counts * F.smooth_l1_loss(scores.counts, targets.counts.float().log1p())
        + settings.cells * F.binary_cross_entropy_with_logits(scores.cells, targets.cells)
    )


def class_weights(photos: Sequence[Photo], classes: int, balance: float) -> Tensor:
    """Weights (C,) that fall with a class's frequency; their mean over all boxes is 1."""
    labels = torch.from_numpy(np.concatenate([photo.labels for photo in photos]))
    weights = (torch.bincount(labels, minlength=classes) + 1.0) ** -balance
    return weights / weights[labels].mean()


def train_encoders(
    encoders: StarterEncoders,
    photos: Sequence[Photo],
    teachers: Sequence[Tensor],
    checkpoint: Path,
) -> StarterEncoders:
    """Train in place, resuming from a checkpoint where there is one; return the average.

    Args:
        encoders: With trained heads.
        photos: To learn from.
        teachers: Logits (N, 1000) for the boxes of each photo.
        checkpoint: File that holds the state of the run.
    """
    settings, classes = encoders.settings, encoders.classes.out_features
    average = copy.deepcopy(encoders).requires_grad_(False)
    backbone, heads = encoders.freeze()
    optimizer = torch.optim.AdamW(
        [
            {"params": backbone, "peak": settings.backbone_rate, "warm_up": settings.warm_up[0]},
            {"params": heads, "peak": settings.head_rate, "warm_up": settings.warm_up[1]},
        ],
        weight_decay=settings.weight_decay,
    )
    weights = class_weights(photos, classes, settings.class_balance)
    steps = round(settings.epochs * len(photos) / settings.batch)
    parts: dict[str, Any] = {"encoders": encoders, "average": average, "optimizer": optimizer}
    for step in range(resumed(parts, checkpoint), steps):
        rng = np.random.default_rng([settings.seed, step])
        chosen = photos_of_step(len(photos), step, settings)
        views = [random_view(photos[number], settings.side, rng) for number in chosen]
        logits = [teachers[number][view.rows] for number, view in zip(chosen, views, strict=True)]
        targets, share = step_targets(views, logits, classes, settings, rng), 1.0
        if rng.random() < settings.mixup:
            targets, share = mixup(targets, rng)
        set_rates(optimizer, step / steps)
        torch.manual_seed(settings.seed + step)
        encoders.train()
        scores = encoders(targets.pixel_values, targets.boxes, targets.image_index)
        loss = loss_of(scores, targets, weights, share, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*backbone, *heads], 5.0)
        optimizer.step()
        update_average(average, encoders, min(settings.average, (1 + step) / (10 + step)))
        if (step + 1) % settings.save_every == 0 or step + 1 == steps:
            log.info("encoders: step %d of %d, loss %.2f", step + 1, steps, loss.item())
            save_checkpoint(parts, step + 1, checkpoint)
    return average.eval()


def photos_of_step(count: int, step: int, settings: EncoderSettings) -> list[int]:
    """Draw the photos of a step: every photo once in an epoch, in an order of its own."""
    chosen = []
    for position in range(step * settings.batch, (step + 1) * settings.batch):
        epoch, place = divmod(position, count)
        order = np.random.default_rng([settings.seed, epoch]).permutation(count)
        chosen.append(int(order[place]))
    return chosen


def set_rates(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set the learning rates: linear warm-up, times a cosine that falls to zero."""
    for group in optimizer.param_groups:
        warm_up = min(1.0, progress / group["warm_up"])
        group["lr"] = group["peak"] * warm_up * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move averaged weights towards those of a module."""
    for mean, value in zip(average.parameters(), module.parameters(), strict=True):
        if value.requires_grad:
            mean.lerp_(value, 1 - decay)


def resumed(parts: Mapping[str, Any], path: Path) -> int:
    """Load what `save_checkpoint` wrote, if there is a file; return the number of steps taken."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def save_checkpoint(parts: Mapping[str, Any], step: int, path: Path) -> None:
    """Write the states of modules, optimizers and schedules after so many steps."""
    save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, path)


def save(state: Any, path: Path) -> None:
    """Write a file of torch, whole or not at all."""
    with write_whole(path) as file:
        torch.save(state, file)
