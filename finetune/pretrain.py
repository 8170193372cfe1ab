"""Pretraining of the two encoders on naming boxes: tiles first, then photos.

Vision and region encoder train together, end to end, on pictures with labelled boxes; a linear
classifier over the region vectors stands where the language model will. Tiles (Tiny-ImageNet
mosaics) teach many names in many pictures, photos (COCO) teach real scenes. It does not know about
language, bundles or ONNX.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionqa.export.region import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.vision import ResNetConfig, ResNetVision
from regionqa.finetune.pictures import (
    Canvas,
    PhotoSet,
    Tiles,
    mosaic,
    photo_view,
    tile_cells,
    whole_photo,
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class PretrainSettings:
    """How long and how fast one pretraining stage runs."""

    epochs: float
    """Passes over the tiles or photos."""
    batch: int
    """Canvases per step."""
    learning_rate: float
    """Peak of AdamW's learning rate; warm-up over 300 steps, then a cosine to zero."""
    weight_decay: float = 0.05
    """AdamW's decay, on matrices and kernels only."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    balance: float = 0.0
    """Class weights are (count of the class) ** -balance; 0 keeps the data's own proportions."""
    coarse: tuple[float, float] = (0.0, 0.5)
    """Share of mosaics with large cells, at the start and at the end (tiles only)."""
    average: float = 0.998
    """Decay of the running average of the weights; the average is what the stage gives back."""
    seed: int = 0
    """Seed of every random choice of the stage."""


TILES = PretrainSettings(epochs=6, batch=6, learning_rate=2e-3)
PHOTOS = (
    PretrainSettings(epochs=8, batch=8, learning_rate=1e-3, balance=0.3, seed=1),
    PretrainSettings(epochs=7, batch=8, learning_rate=7e-4, balance=0.5, seed=3),
)
"""Two rounds, the second with more weight on rare classes."""


class Recogniser(nn.Module):
    """The two encoders, and a classifier over region vectors that is thrown away afterwards."""

    def __init__(self, vision: ResNetVision, region: MultiLevelRegionEncoder, classes: int) -> None:
        super().__init__()
        self.vision = vision
        self.region = region
        self.classifier = nn.Linear(region.config.region_width, classes)

    def forward(self, pixel_values: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor:
        """Logits (N, classes) of the boxes (N, 4) in pixel_values (B, 3, S, S)."""
        _, levels = self.vision.features(pixel_values)
        logits: Tensor = self.classifier(self.region.region_vectors(levels, boxes, image_index))
        return logits


def new_encoders(config: ResNetConfig) -> tuple[ResNetVision, MultiLevelRegionEncoder]:
    """Untrained encoders that fit each other."""
    vision = ResNetVision(config)
    region = MultiLevelRegionEncoder(
        MultiLevelConfig(
            input_size=config.input_size,
            in_channels=tuple(channels for channels, _, _ in vision.level_shapes),
            sizes=tuple(side for _, side, _ in vision.level_shapes),
            hidden_size=config.hidden_size,
        )
    )
    return vision, region


def normalise(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) in [-1, 1], channels last in memory."""
    values = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return values.to(torch.float32).div_(127.5).sub_(1)


def batch_of(canvases: list[Canvas]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pixel_values (B, 3, S, S), boxes (N, 4), image_index (N,), labels (N,) of some canvases."""
    index = np.repeat(np.arange(len(canvases)), [len(canvas.labels) for canvas in canvases])
    return (
        normalise(np.stack([canvas.pixels for canvas in canvases])),
        torch.from_numpy(np.concatenate([canvas.boxes for canvas in canvases])),
        torch.from_numpy(index),
        torch.from_numpy(np.concatenate([canvas.labels for canvas in canvases])),
    )


def mosaics(
    tiles: Tiles, size: int, coarse: Callable[[], float], rng: np.random.Generator
) -> Iterator[Canvas]:
    """Mosaics without end; every tile is used once before any is used again."""
    order = rng.permutation(len(tiles.labels))
    start = 0
    while True:
        cells = tile_cells(size, coarse(), rng)
        if start + len(cells) > len(order):
            order, start = rng.permutation(len(tiles.labels)), 0
        yield mosaic(tiles, order[start : start + len(cells)], cells, size, rng)
        start += len(cells)


def photo_views(photos: PhotoSet, size: int, rng: np.random.Generator) -> Iterator[Canvas]:
    """Random views of the photos without end; views that show no box are left out."""
    while True:
        for index in rng.permutation(len(photos.photos)):
            view = photo_view(photos.photos[index], size, rng)
            if len(view.labels):
                yield view


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 300) -> float:
    """Linear warm-up, then a cosine that reaches zero at `steps`."""
    warm_up = min(warm_up, steps // 10 + 1)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """An optimizer's groups: matrices and kernels decay, biases and norms do not."""
    every = list(parameters)
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]


def train_recogniser(
    model: Recogniser,
    canvases: Iterator[Canvas],
    settings: PretrainSettings,
    steps: int,
    class_weights: Tensor | None,
    checkpoint: Path,
    log: Log,
) -> nn.Module:
    """One flat loop of `steps` steps; returns the average of the weights.

    The state is written to `checkpoint` every 200 steps and read back when the file exists, so a
    killed run goes on from there (with newly drawn pictures, not the very same ones).
    """
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        parameter_groups(model.parameters(), settings.weight_decay), lr=settings.learning_rate
    )
    average = torch.optim.swa_utils.AveragedModel(
        model,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
            settings.average
        ),
        use_buffers=True,
    )
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        log(f"resumed at step {first} of {steps}")
    model.train()
    seen, right, loss_sum, started = 0, 0, 0.0, time.monotonic()
    for step in range(first, steps):
        pixel_values, boxes, image_index, labels = batch_of(
            [next(canvases) for _ in range(settings.batch)]
        )
        rate = learning_rate(step, steps, settings.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(pixel_values, boxes, image_index)  # (N, classes)
        loss = F.cross_entropy(
            logits, labels, weight=class_weights, label_smoothing=settings.label_smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        seen += len(labels)
        right += int((logits.argmax(1) == labels).sum())
        loss_sum += loss.item() * len(labels)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            pace = (time.monotonic() - started) / (step + 1 - first)
            log(
                f"step {step + 1}/{steps} loss {loss_sum / seen:.3f} accuracy {right / seen:.3f} "
                f"rate {rate:.2e} {pace:.2f} s/step"
            )
            seen, right, loss_sum = 0, 0, 0.0
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_atomically(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                checkpoint,
            )
    return average.module


def save_atomically(state: dict[str, object], path: Path) -> None:
    """Write beside the file, then rename: a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def pretrain_on_tiles(
    model: Recogniser, tiles: Tiles, settings: PretrainSettings, checkpoint: Path, log: Log
) -> Recogniser:
    """Stage one: 200 names from mosaics."""
    rng = np.random.default_rng(settings.seed)
    size = model.vision.config.input_size
    share = [settings.coarse[0]]
    start, end = settings.coarse
    per_canvas = 36 + (end + start) / 2 * (18.8 - 36)  # expected tiles of a mosaic
    steps = round(settings.epochs * len(tiles.labels) / per_canvas / settings.batch)
    drawn = 0

    def canvases() -> Iterator[Canvas]:
        nonlocal drawn
        for canvas in mosaics(tiles, size, lambda: share[0], rng):
            yield canvas
            drawn += 1
            share[0] = start + (end - start) * min(1.0, drawn / (steps * settings.batch))

    trained = train_recogniser(model, canvases(), settings, steps, None, checkpoint, log)
    assert isinstance(trained, Recogniser)
    return trained


def pretrain_on_photos(
    model: Recogniser, photos: PhotoSet, settings: PretrainSettings, checkpoint: Path, log: Log
) -> Recogniser:
    """Stage two: 80 names in real scenes."""
    rng = np.random.default_rng(settings.seed)
    counts = np.bincount(
        np.concatenate([photo.labels for photo in photos.photos]), minlength=len(photos.names)
    )
    weights = np.maximum(counts, 1.0) ** -settings.balance
    weights *= counts.sum() / (weights * counts).sum()  # the mean weight of a box stays 1
    steps = round(settings.epochs * len(photos.photos) / settings.batch)
    canvases = photo_views(photos, model.vision.config.input_size, rng)
    trained = train_recogniser(
        model,
        canvases,
        settings,
        steps,
        torch.tensor(weights, dtype=torch.float32),
        checkpoint,
        log,
    )
    assert isinstance(trained, Recogniser)
    return trained


@torch.no_grad()
def recognise_photos(model: Recogniser, photos: PhotoSet) -> list[tuple[int, int, float]]:
    """(label, predicted label, shorter side in pixels of the photo) of every box."""
    model.eval()
    rows: list[tuple[int, int, float]] = []
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        canvas = whole_photo(photo, model.vision.config.input_size)
        pixel_values, boxes, image_index, _ = batch_of([canvas])
        predicted = model(pixel_values, boxes, image_index).argmax(1).tolist()
        shorter = (photo.boxes[:, 2:] - photo.boxes[:, :2]).min(axis=1).tolist()
        rows += zip(photo.labels.tolist(), predicted, shorter, strict=True)
    return rows
