"""Views of photos as image files, and what is known of each: annotations, colours, fine names."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recipes.starter.colours import colour_of
from recipes.starter.encoders import Scores, StarterEncoders, pixel_values
from recipes.starter.fine_names import fine_names
from recipes.starter.photos import (
    Floats,
    Photo,
    Rng,
    Window,
    close_up,
    jitter_colour,
    random_crop,
    view_of,
    whole_view,
)
from recipes.starter.records.scenes import Scene, annotated_scene

log = logging.getLogger("recipes.starter")
QUALITY = 92
"""Of JPEG."""
BLENDED = 0.5
"""Share of the crops that are blended with another photo."""


def write_views(
    photos: Sequence[Photo], crops: int, folder: Path, seed: int, weights: Floats
) -> list[Photo]:
    """Write crops of photos as image files; return the photos themselves, then their crops.

    Every other crop is a close-up, since the boxes that users ask about often fill their photos.

    weights: (C,) of classes, by which the box of a close-up is drawn.
    """
    folder.mkdir(exist_ok=True)
    views = list(photos)
    for number, photo in enumerate(photos):
        for turn in range(crops):
            rng = np.random.default_rng([seed, number, turn])
            other = photos[int(rng.integers(len(photos)))] if rng.random() < BLENDED else None
            window = close_up(photo, rng, weights) if turn % 2 else random_crop(photo, rng)
            views.append(write_crop(photo, window, other, folder / f"{number}-{turn}.jpg", rng))
    return views


def write_crop(photo: Photo, window: Window, behind: Photo | None, path: Path, rng: Rng) -> Photo:
    """Write a crop of a photo, mirrored half of the time, with other colours.

    behind: a photo to blend with; the crop then has no captions.
    """
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


def described_scenes(
    photos: Sequence[Photo],
    predicted: Sequence[Scores],
    side: int,
    names: tuple[str, ...],
    weights: Floats,
) -> list[Scene]:
    """Describe photos by their annotations, and boxes by their colours and ImageNet's names too.

    Args:
        photos: The photos.
        predicted: The heads' predictions for each, by `score`.
        side: Of the image that the encoders see, in pixels.
        names: Of the classes.
        weights: (C,) how often a box of each class is asked about, relative to the others.
    """
    scenes = []
    for photo, scores in zip(photos, predicted, strict=True):
        view = whole_view(photo, side)  # its boxes are those of some size
        colours: list[str | None] = [None] * len(photo.boxes)
        fine: list[str | None] = [None] * len(photo.boxes)
        found = fine_names(scores.fine, [names[label] for label in view.labels])
        for row, box, name in zip(view.rows, view.boxes, found, strict=True):
            colours[row], fine[row] = colour_of(view.pixels, box), name
        scene = annotated_scene(photo, names)
        asked = weights[photo.labels]  # (N,)
        scenes.append(replace(scene, colours=tuple(colours), fine_names=tuple(fine), weights=asked))
    return scenes
