"""Training of the starter's vision encoder on what whole photos show, and in which part of them.

Its trunk begins as a copy of the region encoder's, without the mark of a box and the last stage.
Every cell of the token grid says which things have their middle in it or fill half of it, and all
of them together which things are there, and how often.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.starter.vision.async_sgd import Phase, TrainingSchedule
from recipes.starter.vision.classifier import AT_LEAST
from recipes.starter.vision.mixup import MIXED, mixed
from recipes.starter.vision.photos import (
    Floats,
    PhotoSet,
    TrainingImage,
    batch_of,
    photo_view,
    whole_photo,
)
from regionqa.export.modules.crops import CropTrunk
from regionqa.export.modules.resnet import ResNetVision

IMAGE_SCHEDULE = TrainingSchedule(
    steps=1200,
    phases=(Phase(1.0, 128, (32,)),),
    kernel_rate=0.012,
    learning_rate=2e-3,
    average=0.99,
)
"""Photos are few: about 33 views of each, changed every time."""


class ImageClassifier(nn.Module):
    """A vision encoder and the two classifiers it learns by."""

    def __init__(self, vision: ResNetVision, classes: int) -> None:
        super().__init__()
        self.vision = vision
        width = vision.config.widths[-1]
        self.cell = nn.Linear(width, classes)
        self.whole = nn.Linear(width, len(AT_LEAST) * classes)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of cells (B, cells, classes) and of pictures (B, 3 classes)."""
        cells, _ = self.vision.features(pixel_values)  # (B, cells, width)
        return self.cell(cells), self.whole(cells.mean(1))


@torch.no_grad()
def begin(vision: ResNetVision, trunk: CropTrunk) -> None:
    """Copy the trunk's stem and first stages, as if nothing in the picture were marked.

    The mark of what is outside a box is -1; what its channel added is taken from the mean that the
    stem's norm subtracts.
    """
    state = {name: value.clone() for name, value in trunk.stem.state_dict().items()}
    kernels = state["1.weight"]  # (C, 4 patch ** 2, 3, 3): colours first, then the mark
    colours = 3 * vision.config.patch**2
    state["1.weight"] = kernels[:, :colours]
    state["2.running_mean"] += kernels[:, colours:].sum((1, 2, 3))
    vision.stem.load_state_dict(state)
    for own, other in zip(vision.stages, trunk.stages, strict=False):
        own.load_state_dict(other.state_dict())


def in_cells(canvas: TrainingImage, grid: int, classes: int) -> Floats:
    """(grid ** 2, classes): 1 where a box of the class has its middle in a cell or fills half."""
    shown = np.zeros((grid, grid, classes), np.float32)
    edges = np.arange(grid + 1) / grid
    for box, label in zip(canvas.boxes, canvas.labels, strict=True):
        covered = [
            (np.minimum(edges[1:], box[axis + 2]) - np.maximum(edges[:-1], box[axis])).clip(0)
            for axis in (0, 1)
        ]  # across, down: (grid,) each
        shown[np.outer(covered[1], covered[0]) * grid**2 >= 0.5, label] = 1
        x, y = ((box[:2] + box[2:]) / 2 * grid).astype(int).clip(0, grid - 1)
        shown[y, x, label] = 1
    return shown.reshape(grid**2, classes)


@dataclass(frozen=True)
class ImageBatch:
    """B views to learn from."""

    pixel_values: Tensor
    """(B, 3, S, S)."""
    cells: Tensor
    """(B, cells, classes): how much of each class is in each cell; a part only in mixtures."""
    shown: Tensor
    """(B, 3 classes): whether the view shows at least 1, 2, 4 of a class."""


@dataclass(frozen=True)
class ImageTask:
    """Random views of photos."""

    photos: PhotoSet
    grid: int
    """Cells along a side of what the vision encoder gives."""
    mixed: float = MIXED
    """Share of views that another one shines through."""
    kinds: tuple[str, ...] = ("photos",)

    def view(self, side: int, rng: np.random.Generator) -> TrainingImage:
        """A view that shows something."""
        while True:
            photo = self.photos.photos[int(rng.integers(len(self.photos.photos)))]
            view = photo_view(photo, side, rng)
            if len(view.labels):
                return view

    def batch(self, phase: Phase, rng: np.random.Generator) -> ImageBatch:
        """The views of one step."""
        views = [self.view(phase.side, rng) for _ in range(phase.counts[0])]
        classes = len(self.photos.names)
        counts = np.stack([np.bincount(view.labels, minlength=classes) for view in views])
        shown = np.concatenate([counts >= number for number in AT_LEAST], axis=1)  # (B, 3 classes)
        cells = np.stack([in_cells(view, self.grid, classes) for view in views])
        told = (
            batch_of(views)[0],
            torch.from_numpy(cells),
            torch.from_numpy(shown.astype(np.float32)),
        )
        return ImageBatch(*mixed(told, self.mixed, rng))

    def loss(self, model: ImageClassifier, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        """The loss, and in how many views the likeliest thing is (for the most part) there (1,)."""
        with torch.autocast("cpu", torch.bfloat16):
            cells, whole = model(batch.pixel_values)
        loss = F.binary_cross_entropy_with_logits(cells.float(), batch.cells)
        loss = loss + F.binary_cross_entropy_with_logits(whole.float(), batch.shown)
        classes = len(self.photos.names)
        likeliest = whole[:, :classes].argmax(1, keepdim=True)
        there = batch.shown.gather(1, likeliest) > 0.5
        return classes * loss, there.float().sum(0)


@torch.no_grad()
def presence_scores(classifier: ImageClassifier, photos: PhotoSet) -> str:
    """How well photos are seen as wholes: mean average precision over the classes they show."""
    classifier.eval()
    classes = len(photos.names)
    scores, truths = [], []
    for photo in photos.photos:
        canvas = whole_photo(photo, classifier.vision.input_size)
        _, whole = classifier(batch_of([canvas])[0])
        scores.append(whole[0, :classes])
        truths.append(torch.bincount(torch.from_numpy(photo.labels), minlength=classes) > 0)
    order = torch.stack(scores).argsort(0, descending=True)  # (P, classes)
    there = torch.stack(truths).gather(0, order).float()
    precision = there.cumsum(0) / torch.arange(1, len(there) + 1).unsqueeze(1)
    shown = there.sum(0) > 0
    average = (precision * there).sum(0)[shown] / there.sum(0)[shown]
    return f"mean average precision {average.mean():.3f} over {int(shown.sum())} classes"
