"""Views of photos as image files, and the trained encoders' calibrated predictions for them.

The language model is trained on these predictions rather than on the annotations: the encoders have
memorized their training photos, and correct answers there would make the language model
overconfident.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from recipes.starter.colours import colour_of
from recipes.starter.encoders import Scores, StarterEncoders, pixel_values
from recipes.starter.fine_names import fine_names
from recipes.starter.photos import Photo, Rng, jitter_colour, random_crop, view_of, whole_view
from recipes.starter.records.scenes import Scene

log = logging.getLogger("recipes.starter")
TEMPERATURES = np.geomspace(0.5, 4.0, 31)
QUALITY = 92
"""Of JPEG."""
BLENDED = 0.5
"""Share of the crops that are blended with another photo: predictions are less certain there."""


@dataclass(frozen=True)
class Temperatures:
    """Temperatures of the logits of boxes' classes and of presence."""

    classes: float
    presence: float


@torch.no_grad()
def score(encoders: StarterEncoders, photos: Sequence[Photo]) -> list[Scores]:
    """Score whole photos and all of their boxes; those of a photo in one `Scores` of one image."""
    found, batch = [], encoders.settings.batch
    for start in range(0, len(photos), batch):
        chosen = photos[start : start + batch]
        views = [whole_view(photo, encoders.settings.side) for photo in chosen]
        sizes = [len(view.boxes) for view in views]
        scores = encoders(
            pixel_values([view.pixels for view in views]),
            torch.from_numpy(np.concatenate([view.boxes for view in views])),
            torch.from_numpy(np.repeat(range(len(views)), sizes)),
        )
        parts = zip(scores.classes.split(sizes), scores.fine.split(sizes), strict=True)
        found += [
            Scores(own, fine, scores.presence[row], scores.counts[row], scores.cells[row])
            for row, (own, fine) in enumerate(parts)
        ]
        if start % (100 * batch) == 0:
            log.info("scored %d of %d views", start, len(photos))
    return found


def fit_temperatures(encoders: StarterEncoders, held_out: Sequence[Photo]) -> Temperatures:
    """Fit temperatures by the likelihood of the annotations of photos not learned from."""
    scores = score(encoders, held_out)
    views = [whole_view(photo, encoders.settings.side) for photo in held_out]
    logits = torch.cat([each.classes for each in scores])
    labels = torch.from_numpy(np.concatenate([view.labels for view in views]))
    presence = torch.stack([each.presence for each in scores])
    present = torch.zeros_like(presence)
    for row, view in enumerate(views):
        present[row, torch.from_numpy(view.labels)] = 1
    losses = [
        (
            float(F.cross_entropy(logits / each, labels)),
            float(F.binary_cross_entropy_with_logits(presence / each, present)),
        )
        for each in TEMPERATURES
    ]
    classes, whole = np.argmin(losses, axis=0)
    found = Temperatures(float(TEMPERATURES[classes]), float(TEMPERATURES[whole]))
    log.info("temperatures: classes %.2f, presence %.2f", found.classes, found.presence)
    return found


def write_views(photos: Sequence[Photo], crops: int, folder: Path, seed: int) -> list[Photo]:
    """Write random crops of photos as image files; the photos themselves, then their crops."""
    folder.mkdir(exist_ok=True)
    views = list(photos)
    for number, photo in enumerate(photos):
        for turn in range(crops):
            rng = np.random.default_rng([seed, number, turn])
            other = photos[int(rng.integers(len(photos)))] if rng.random() < BLENDED else None
            views.append(write_crop(photo, other, folder / f"{number}-{turn}.jpg", rng))
    return views


def write_crop(photo: Photo, behind: Photo | None, path: Path, rng: Rng) -> Photo:
    """Write a random crop of a photo, mirrored half of the time, with other colours.

    behind: a photo to blend with; the crop then has no captions.
    """
    window = random_crop(photo, rng)
    size = (max(1, round(window[2] - window[0])), max(1, round(window[3] - window[1])))
    view = view_of(photo, window, max(size), flip=rng.random() < 0.5)
    pixels = jitter_colour(view.pixels, rng)
    if behind is not None:
        other = np.asarray(behind.image.resize(pixels.shape[1::-1]), np.float32)
        share = rng.uniform(0.5, 0.85)
        pixels = (share * pixels + (1 - share) * other).astype(np.uint8)
    if not path.exists():
        Image.fromarray(pixels).resize(size).save(path, quality=QUALITY)
    captions = photo.captions if behind is None else ()
    boxes = view.boxes * np.array(size * 2, np.float32)
    return Photo(path, size, boxes, view.labels, captions)


def believed_scenes(
    encoders: StarterEncoders,
    views: Sequence[Photo],
    names: tuple[str, ...],
    temperatures: Temperatures,
) -> list[Scene]:
    """Describe views by the encoders' predictions."""
    scenes = []
    for view, scores in zip(views, score(encoders, views), strict=True):
        shown = whole_view(view, encoders.settings.side)
        scenes.append(
            Scene(
                image=view.path,
                size=view.size,
                names=names,
                boxes=shown.boxes * np.array(view.size * 2, np.float32),
                labels=shown.labels,
                posteriors=(scores.classes / temperatures.classes).softmax(1).numpy(),
                presence=(scores.presence / temperatures.presence).sigmoid().numpy(),
                counts=scores.counts.expm1().clamp(min=0).numpy(),
                captions=view.captions,
                colours=tuple(colour_of(shown.pixels, box) for box in shown.boxes),
                fine_names=fine_names(scores.fine, [names[label] for label in shown.labels]),
            )
        )
    return scenes
