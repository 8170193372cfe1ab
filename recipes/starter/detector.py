"""Training of the detection head over the frozen encoders.

Cells learn from the objects that they predict best (task-aligned assignment, Feng et al. 2021,
arXiv 2108.07755), by quality focal loss (Li et al. 2020, arXiv 2006.04388) and GIoU loss
(Rezatofighi et al. 2019, arXiv 1902.09630). The vision encoder is run once per view.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from recipes.starter.encoders import (
    StarterEncoders,
    pixel_values,
    resumed,
    save,
    save_checkpoint,
)
from recipes.starter.photos import Photo, View, random_view, whole_view
from regionqa.export.modules.detection import DetectionConfig, DetectionHead
from regionqa.export.onnx.export import round_to_float16

log = logging.getLogger("recipes.starter")


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of the head and of its training."""

    crops: int = 1
    """Random views of each photo, beside the whole photo."""
    smallest: int = 6
    """Least shorter side, in pixels of the view, of a box that is learned from."""
    epochs: float = 12
    """Of all photos, in one view each."""
    batch: int = 8
    rate: float = 2e-3
    weight_decay: float = 0.05
    warm_up: float = 0.03
    """Share of the steps of linear warm-up."""
    cells: int = 10
    """Most cells that learn an object."""
    alignment: tuple[float, float] = (0.5, 6.0)
    """Powers of score and overlap by which cells are chosen."""
    box_weight: float = 2.0
    """Of the boxes' loss."""
    save_every: int = 250
    seed: int = 0


def train_detector(
    encoders: StarterEncoders, photos: Sequence[Photo], settings: DetectorSettings, out: Path
) -> DetectionHead:
    """Train a head, or continue; return it with weights that float16 represents exactly."""
    torch.manual_seed(settings.seed)
    channels, sides, _ = zip(*encoders.vision.level_shapes, strict=True)
    config = DetectionConfig(channels, sides, encoders.classes.out_features, pixels=True)
    head = DetectionHead(config)
    done, levels = out / "detector.pt", out / "levels.pt"
    if done.exists():
        head.load_state_dict(torch.load(done, weights_only=True))
        return head.eval()
    assert head.distances.bias is not None
    nn.init.constant_(head.distances.bias, 2.0)  # boxes of a few cells, which overlap with some
    if not levels.exists():
        save(levels_of_views(encoders, photos, settings), levels)
    views = torch.load(levels, weights_only=True, mmap=True)
    fit_head(head, views, settings, out / "detector.checkpoint")
    round_to_float16(head)
    save(head.state_dict(), done)
    levels.unlink()
    return head.eval()


@torch.no_grad()
def levels_of_views(
    encoders: StarterEncoders, photos: Sequence[Photo], settings: DetectorSettings
) -> dict[str, list[Tensor]]:
    """Compute what a head learns from, in V views: the whole photos, then random crops.

    Returns:
        `levels`: (V, C, h, w) float16 each, without the image itself. `boxes`: (N, 4) in [0, 1] of
        each view. `labels`: (N,) of each view.
    """
    side, smallest = encoders.settings.side, settings.smallest
    count = len(photos) * (1 + settings.crops)

    def view_of_row(row: int) -> View:
        photo, rng = photos[row % len(photos)], np.random.default_rng([settings.seed, row])
        whole = row < len(photos)
        return (
            whole_view(photo, side, smallest) if whole else random_view(photo, side, rng, smallest)
        )

    shapes = encoders.vision.level_shapes[1:]
    levels = [torch.empty(count, *shape, dtype=torch.float16) for shape in shapes]
    boxes: list[Tensor] = []
    labels: list[Tensor] = []
    for start in range(0, count, settings.batch):
        views = [view_of_row(row) for row in range(start, min(count, start + settings.batch))]
        _, found = encoders.vision.features(pixel_values([view.pixels for view in views]))
        for level, part in zip(levels, found[1:], strict=True):
            level[start : start + len(views)] = part
        boxes += [torch.from_numpy(view.boxes) for view in views]
        labels += [torch.from_numpy(view.labels) for view in views]
        if start % (100 * settings.batch) == 0:
            log.info("detector: levels of %d of %d views", start, count)
    return {"levels": levels, "boxes": boxes, "labels": labels}


def fit_head(
    head: DetectionHead, views: dict[str, list[Tensor]], settings: DetectorSettings, path: Path
) -> None:
    """Train in place on the result of `levels_of_views`; continue from a checkpoint at `path`."""
    count = len(views["boxes"])
    steps = max(2, round(settings.epochs * count / (1 + settings.crops) / settings.batch))
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.rate, steps, pct_start=settings.warm_up, cycle_momentum=False
    )
    parts = {"head": head, "optimizer": optimizer, "schedule": schedule}
    for step in range(resumed(parts, path), steps):
        rng = np.random.default_rng([settings.seed, step])
        rows = rng.choice(count, min(settings.batch, count), replace=False).tolist()
        levels = [level[rows].float() for level in views["levels"]]
        boxes, logits = head.logits([levels[0], *levels])  # the first level is not read
        truth = [(views["boxes"][row], views["labels"][row]) for row in rows]
        loss = detection_loss(logits, boxes, head.get_buffer("points"), truth, settings)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % settings.save_every == 0 or step + 1 == steps:
            log.info("detector: step %d of %d, loss %.2f", step + 1, steps, loss.item())
            save_checkpoint(parts, step + 1, path)


def detection_loss(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    truth: Sequence[tuple[Tensor, Tensor]],
    settings: DetectorSettings,
) -> Tensor:
    """Quality focal loss of logits (B, P, C) and GIoU loss of boxes (B, P, 4), per object.

    points: (P, 2) the cells' centres. truth: boxes (N, 4) and labels (N,) of each image.
    """
    scores = logits.detach().sigmoid()
    targets = [
        assign(scores[row], boxes[row].detach(), points, *objects, settings)
        for row, objects in enumerate(truth)
    ]
    wanted, placed = (torch.stack(each) for each in zip(*targets, strict=True))
    score_loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    score_loss = score_loss * (wanted - logits.sigmoid()).square()
    weights = wanted.sum(-1)  # (B, P)
    cells = weights > 0
    box_loss: Tensor = generalized_box_iou_loss(boxes[cells], placed[cells]) * weights[cells]
    return (score_loss.sum() + settings.box_weight * box_loss.sum()) / wanted.sum().clamp(min=1)


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    truth: Tensor,
    labels: Tensor,
    settings: DetectorSettings,
) -> tuple[Tensor, Tensor]:
    """Choose the cells of an image that learn its objects truth (N, 4) of classes labels (N,).

    A cell's centre (P, 2) lies inside its object, or is the nearest to the object's; of several
    objects a cell learns the one that its box overlaps most.

    Returns:
        Scores (P, C) to be learned: at most the overlap, in the column of the class; and boxes
        (P, 4).
    """
    wanted = torch.zeros_like(scores)
    if not len(truth):
        return wanted, boxes
    power, sharpness = settings.alignment
    overlap = box_iou(truth, boxes)  # (N, P)
    inside = ((points > truth[:, None, :2]) & (points < truth[:, None, 2:])).all(-1)
    nearest = torch.cdist((truth[:, :2] + truth[:, 2:]) / 2, points).argmin(1, keepdim=True)
    inside.scatter_(1, nearest, True)
    aligned = inside * (scores[:, labels].T.pow(power) * overlap.pow(sharpness) + 1e-12)
    best = aligned.topk(min(settings.cells, len(points)), 1)
    chosen = torch.zeros_like(inside).scatter_(1, best.indices, best.values > 0)
    owner = overlap.masked_fill(~chosen, -1).argmax(0)  # (P,)
    chosen &= owner == torch.arange(len(truth)).unsqueeze(1)
    aligned, overlap = aligned * chosen, overlap * chosen
    aligned *= overlap.amax(1, keepdim=True) / aligned.amax(1, keepdim=True).clamp(min=1e-12)
    cells = chosen.any(0).nonzero().flatten()
    wanted[cells, labels[owner[cells]]] = aligned[owner[cells], cells]
    return wanted, truth[owner]
