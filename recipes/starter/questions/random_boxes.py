"""Views whose boxes lie anywhere: what comparing two boxes is learned from first.

Boxes of photos lie close together and much alike, and half of the pairs are nearly too close to
call; of boxes drawn at random there is no end, and most are far apart. What is in them is taken at
random from boxes of photos, so that the answer cannot follow from it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recipes.starter.language.features import ImageView
from recipes.starter.questions.scenes import Floats, Scene
from regionqa.export.modules.crops import CropRegionEncoder

COUNT = 6000
"""How many views there are."""
SIZES = (0.05, 0.9)
"""Smallest and largest square root of a box's area before it is cut to the picture."""
SLIM = 0.5
"""Largest change of a side, as a logarithm."""
LEAST = 0.02
"""Sides are at least this long."""


def boxes_anywhere(count: int, rng: np.random.Generator) -> Floats:
    """(count, 4) xyxy in [0, 1]: sizes even in their logarithm."""
    low, high = np.log(SIZES)
    sides = np.exp(rng.uniform(low, high, (count, 1)) + rng.uniform(-SLIM, SLIM, (count, 2)))
    middles = rng.uniform(0.05, 0.95, (count, 2))
    first = (middles - sides / 2).clip(0, 1 - LEAST)
    last = np.maximum((middles + sides / 2).clip(0, 1), first + LEAST)
    return np.concatenate([first, last], axis=1).astype(np.float32)


def views_anywhere(
    views: Sequence[ImageView], region: CropRegionEncoder, seed: int, count: int = COUNT
) -> list[ImageView]:
    """Views of two to four boxes each, without image tokens."""
    rng = np.random.default_rng(seed)
    found = torch.cat([view.vectors for view in views])  # (N, D)
    made = []
    for number in range(count):
        boxes = boxes_anywhere(int(rng.integers(2, 5)), rng)
        rows = torch.from_numpy(rng.integers(0, len(found), len(boxes)))
        vectors = region.moved(found[rows], torch.from_numpy(boxes))
        scene = Scene(
            boxes=boxes,
            labels=np.zeros(len(boxes), np.int64),
            captions=(),
            names=views[0].scene.names,
            complete=False,
            box_weights=np.ones(len(boxes), np.float32),
        )
        made.append(ImageView(Path(f"anywhere-{number}"), views[0].image[:0], vectors, scene))
    return made
