"""The mixture of questions that the starter learns from: what is asked how often.

Annotations say that most boxes are persons and that most questions could be about naming them; here
is what the starter should be good at instead. It does not know how a question is made.
"""

import numpy as np

from regionqa.finetune.relations import (
    comparing,
    locating,
    matching,
    naming_several,
    neighbouring,
    overlapping,
    relating,
    siding,
)
from regionqa.finetune.scenes import Maker, Sample, Scene, draw
from regionqa.finetune.single import (
    checking,
    choosing,
    colouring,
    counting_alike,
    describing,
    doing,
    grouping,
    naming,
    placing,
    sizing,
)
from regionqa.finetune.wholes import biggest, captioning, counting, finding, presence

MIXTURE: tuple[tuple[Maker, float], ...] = (
    (naming, 0.2), (describing, 0.05), (placing, 0.03), (sizing, 0.01), (colouring, 0.08),
    (checking, 0.07), (choosing, 0.01), (grouping, 0.02), (doing, 0.03), (counting_alike, 0.015),
    (presence, 0.07), (counting, 0.05), (finding, 0.015), (biggest, 0.015), (captioning, 0.05),
    (naming_several, 0.03), (relating, 0.18), (siding, 0.04), (comparing, 0.1), (locating, 0.04),
    (matching, 0.04), (overlapping, 0.01), (neighbouring, 0.015),
)  # fmt: skip
"""What is asked how often, up to a common factor."""
FIRST: tuple[tuple[Maker, float], ...] = (
    (siding, 0.26), (relating, 0.12), (comparing, 0.06), (locating, 0.06), (placing, 0.04),
    (naming, 0.16), (naming_several, 0.04), (describing, 0.04), (colouring, 0.05),
    (checking, 0.05), (presence, 0.05), (counting, 0.04), (captioning, 0.03),
)  # fmt: skip
"""The same for the first steps. "left or right?" can be answered from what one box's place adds and
the other's takes away; "is it left of?" only once that is known, so it is asked less at first."""


def draw_sample(
    scene: Scene, rng: np.random.Generator, mixture: tuple[tuple[Maker, float], ...] = MIXTURE
) -> Sample:
    """One question about a view that shows at least one box."""
    return draw(mixture, scene, rng)
