"""Views with the picture of another photo: what is in a box must then be told from the box.

The vision encoder has learned from the very photos that the language model learns from, and a
picture tells much of what its boxes hold. Where the two always agree, the language model reads
names off the picture, even where the box says otherwise: it names the same motorcycle a vase in
front of another photo. What has another picture is asked about its boxes only, so no answer becomes
wrong.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recipes.starter.language.features import ImageView


def swap_crop_images(views: Sequence[ImageView], seed: int) -> list[ImageView]:
    """The views, those that are not complete (random crops) with the picture of any other one."""
    rng = np.random.default_rng(seed)
    return [view if view.scene.complete else with_other_image(view, views, rng) for view in views]


def swap_photo_images(views: Sequence[ImageView], seed: int) -> list[ImageView]:
    """Every complete view (a whole photo, its mirror image) with the picture of any other view."""
    rng = np.random.default_rng(seed)
    return [
        replace(
            with_other_image(view, views, rng),
            name=view.name.with_name(f"{view.name.name}-swapped"),
            scene=replace(view.scene, complete=False, captions=()),
        )
        for view in views
        if view.scene.complete
    ]


def with_other_image(
    view: ImageView, views: Sequence[ImageView], rng: np.random.Generator
) -> ImageView:
    """A view's boxes, and the picture of any of the views."""
    return replace(view, image=views[int(rng.integers(len(views)))].image)
