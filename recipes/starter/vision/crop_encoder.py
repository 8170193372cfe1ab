"""Training of the starter's region encoder on naming tiles, and boxes by their cuts.

From nothing: tiles first, small, then larger, then mostly boxes; then again tiles and boxes, half
of these shining through each other.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.starter.vision.async_sgd import Phase, TrainingSchedule
from recipes.starter.vision.classifier import CropClassifier
from recipes.starter.vision.crop_batches import CropBatch, CropSource, open_photo, shorter_sides
from recipes.starter.vision.mixup import mixed
from recipes.starter.vision.photos import PhotoSet, normalise

CROP_SCHEDULE = TrainingSchedule(
    steps=3800,
    phases=(
        Phase(0.395, 48, (16, 224)),
        Phase(0.553, 64, (12, 168)),
        Phase(1.0, 64, (80, 32)),
    ),
    kernel_rate=0.03,
)
"""Tiles teach more than boxes can, there are so many; small cuts teach as much in less time."""
SECOND_CROP_SCHEDULE = TrainingSchedule(
    steps=1650,
    phases=(Phase(0.55, 64, (12, 168)), Phase(1.0, 64, (80, 32))),
    kernel_rate=0.016,
    learning_rate=1.3e-3,
    seed=11,
)
"""Once more from a higher rate (Loshchilov and Hutter 2017), on mixtures: by the end of the first
schedule boxes are overfitted, and tiles far from all learned."""


@dataclass(frozen=True)
class CropTask:
    """Boxes, each by two cuts, and tiles, each by one."""

    source: CropSource
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    around: float = 6.0
    """Weight of saying what the wide cut shows."""
    dropout: float = 0.2
    """Share of what is found that the classifier does not see."""
    mixed: float = 0.0
    """Share of boxes that another one shines through."""
    kinds: tuple[str, ...] = ("boxes", "tiles")

    def batch(self, phase: Phase, rng: np.random.Generator) -> CropBatch:
        """The cuts of one step."""
        boxes, tiles = phase.counts
        batch = self.source.batch(boxes, tiles, phase.side, rng)
        if not self.mixed:
            return batch
        told = (batch.close, batch.wide, batch.places, batch.names, batch.shown)
        close, wide, places, names, shown = mixed(told, self.mixed, rng)
        return replace(batch, close=close, wide=wide, places=places, names=names, shown=shown)

    def loss(self, model: CropClassifier, batch: CropBatch) -> tuple[Tensor, Tensor]:
        """The mean loss of boxes and tiles, and how many of each are named rightly (2,)."""
        boxes, tiles = len(batch.names), len(batch.tile_labels)
        with torch.autocast("cpu", torch.bfloat16):
            names, around, tile_names = model(
                batch.close, batch.wide, batch.places, batch.tiles, self.dropout
            )
        naming = partial(F.cross_entropy, label_smoothing=self.label_smoothing, reduction="sum")
        showing = F.binary_cross_entropy_with_logits(around.float(), batch.shown)
        loss = naming(names.float(), batch.names) + boxes * self.around * showing
        loss = loss + naming(tile_names.float(), batch.tile_labels)
        right = [(names.argmax(1) == batch.labels).sum()]
        right += [(tile_names.argmax(1) == batch.tile_labels).sum()]
        return loss / (boxes + tiles), torch.stack(right)


@torch.no_grad()
def named_boxes(
    namer: CropClassifier, photos: PhotoSet, smallest: float = 32.0
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of the photos' boxes of at least `smallest` pixels.

    The encoder sees the photos as they are, of at most 320 pixels.
    """
    namer.eval()
    logits, labels = [], []
    for photo in photos.photos:
        rows = np.flatnonzero(shorter_sides(photo.boxes) >= smallest)
        if len(rows):
            pixels = normalise(np.array(open_photo(photo))[np.newaxis])
            boxes = torch.from_numpy(photo.boxes[rows] / photo.scale)
            index = torch.zeros(len(rows), dtype=torch.int64)
            logits.append(namer.logits(namer.region.region_vectors([pixels], boxes, index)))
            labels.append(torch.from_numpy(photo.labels[rows]))
    return torch.cat(logits), torch.cat(labels)


def scores(logits: Tensor, labels: Tensor, names: tuple[str, ...]) -> str:
    """Shares of boxes named rightly: of all, of all but persons, and the mean over classes."""
    right = (logits.argmax(1) == labels).float()
    others = right[labels != names.index("person")]
    per_class = torch.stack([right[labels == label].mean() for label in set(labels.tolist())])
    return (
        f"{right.mean():.3f} of {len(labels)} boxes, {others.mean():.3f} of the {len(others)} that "
        f"are no person, mean over classes {per_class.mean():.3f}"
    )


def balanced(logits: Tensor, counts: Tensor, strength: float) -> Tensor:
    """Logits with `strength` times the logarithm of each class's share added."""
    return logits + strength * (counts / counts.sum()).log().float()
