"""The mixture of questions that the starter learns from: what is asked how often.

Annotations say that most boxes are persons and that most questions could be about naming them; here
is what the starter should be good at instead.
"""

import numpy as np

from recipes.starter.questions.one_region import (
    activity,
    checking,
    choosing,
    colouring,
    counting_alike,
    describing,
    grouping,
    naming,
    position,
    sizing,
)
from recipes.starter.questions.scenes import Maker, QuestionSample, Scene, draw_question
from recipes.starter.questions.several_regions import (
    comparing,
    locating,
    matching,
    naming_several,
    neighbouring,
    overlapping,
    relating,
    siding,
)
from recipes.starter.questions.whole_image import (
    biggest,
    captioning,
    counting,
    counting_evenly,
    finding,
    presence,
)

Mixture = tuple[tuple[Maker, float], ...]
"""What is asked how often, up to a common factor."""

MIXTURE: Mixture = (
    (naming, 0.2), (describing, 0.04), (position, 0.03), (sizing, 0.01), (colouring, 0.1),
    (checking, 0.08), (choosing, 0.01), (grouping, 0.02), (activity, 0.03), (counting_alike, 0.015),
    (presence, 0.27), (counting, 0.065), (finding, 0.015), (biggest, 0.015), (captioning, 0.05),
    (naming_several, 0.03), (relating, 0.16), (siding, 0.04), (comparing, 0.1), (locating, 0.03),
    (matching, 0.04), (overlapping, 0.01), (neighbouring, 0.015),
)  # fmt: skip
"""What the starter should be able to answer."""
MORE: Mixture = (
    *[(maker, share) for maker, share in MIXTURE if maker not in (naming, presence, counting)],
    (naming, 0.25), (presence, 0.35),
)  # fmt: skip
"""Without numbers, and with more of what the last runs should leave answered best."""
MORE_NAMES: Mixture = (*MORE, (counting, 0.08))
"""What the first of them ask."""
EVEN_NUMBERS: Mixture = (*MORE, (counting_evenly, 0.25))
"""What the second ask: numbers evenly, and often. From the first step on that gives better names
and numbers, and no cat (recipes/starter/LOG.md)."""
REGIONS: Mixture = (
    (naming, 0.4), (describing, 0.06), (position, 0.03), (sizing, 0.01), (colouring, 0.12),
    (checking, 0.12), (choosing, 0.01), (grouping, 0.02), (activity, 0.02), (naming_several, 0.05),
    (relating, 0.08), (siding, 0.03), (comparing, 0.08), (locating, 0.02), (matching, 0.05),
    (overlapping, 0.01),
)  # fmt: skip
"""Nothing about whole images, which the encoders have memorised: names come from boxes."""
WHERE: Mixture = (
    (siding, 0.22), (relating, 0.42), (comparing, 0.2), (locating, 0.08), (position, 0.08),
)  # fmt: skip
"""How boxes lie, whatever is in them. "left or right?" can be answered from what one box's place
adds and the other's takes away; "is it left of?" and "which is bigger?" only once that is known, by
comparing it with a word. Among other questions they are asked too seldom for that to be found."""


def draw_sample(
    scene: Scene, rng: np.random.Generator, mixture: Mixture = MIXTURE
) -> QuestionSample:
    """One question about a view that shows at least one box."""
    return draw_question(mixture, scene, rng)
