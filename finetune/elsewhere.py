"""Views with the picture of another photo: what is in a box must then be told from the box.

The vision encoder has learned from the very photos that the language model learns from, and a
picture tells much of what its boxes hold. Where the two always agree, the language model reads
names off the picture, even where the box says otherwise: it names the same motorcycle a vase in
front of another photo. It does not know about questions.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from regionqa.finetune.views import View


def elsewhere(views: Sequence[View], seed: int) -> list[View]:
    """The views, those that are not complete (random crops) with the picture of any other one.

    Crops are asked about their boxes only, so no answer becomes wrong.
    """
    rng = np.random.default_rng(seed)
    return [
        view
        if view.scene.complete
        else replace(view, image=views[int(rng.integers(len(views)))].image)
        for view in views
    ]
