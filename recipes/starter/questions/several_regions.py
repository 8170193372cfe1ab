"""Questions about several regions: what they are, how they lie to each other, whether they match.

A question is left out where its answer would be too close to call.
"""

from dataclasses import dataclass

import numpy as np

from recipes.starter.questions.phrases import box_area, coco_plural, listed, pick
from recipes.starter.questions.scenes import Floats, QuestionSample, Scene, pick_box
from regionqa.data.english import with_article

NAMING_SEVERAL = (
    "what are these?", "what are these?", "what is in these regions?", "name these objects.",
    "name the objects.", "what do you see in these regions?", "what are they?", "name them.",
    "what is each of these?", "identify these.",
)  # fmt: skip
NEXT_TO = (
    "what is <region1> next to?", "what is next to <region1>?", "what is next to this?",
    "what is near <region1>?", "what is beside it?", "what is close to this?",
    "what stands next to <region1>?", "what is right beside <region1>?", "what is around this?",
)  # fmt: skip
SAME = (
    "are they the same?", "are these the same?", "are these the same kind of thing?",
    "are <region1> and <region2> the same?", "is <region1> the same as <region2>?",
    "do these show the same thing?", "are both the same kind of object?",
    "is <region2> the same thing as <region1>?",
)  # fmt: skip
CLOSE = 0.04
"""A difference below this, in sides of the picture or as the logarithm of a ratio of areas over 6,
is too close to call."""


@dataclass(frozen=True)
class Measure:
    """One way in which regions are compared: more of it, and less of it."""

    more: tuple[str, ...]
    less: tuple[str, ...]
    most: tuple[str, ...]
    """How to ask for the region that has most of it."""
    least: tuple[str, ...]


MEASURES = (
    Measure(
        ("right of", "to the right of", "on the right of", "further right than"),
        ("left of", "to the left of", "on the left of", "further left than"),
        ("further to the right", "on the right", "more to the right"),
        ("further to the left", "on the left", "more to the left"),
    ),
    Measure(
        ("below", "under", "lower than", "beneath"),
        ("above", "over", "higher than", "on top of"),
        ("lower", "further down", "below the other"),
        ("higher", "further up", "above the other"),
    ),
    Measure(
        ("bigger than", "larger than"),
        ("smaller than", "less big than"),
        ("bigger", "larger", "the biggest", "the largest"),
        ("smaller", "the smallest"),
    ),
    Measure(
        ("in front of", "nearer than", "closer than"),
        ("behind", "further away than"),
        ("in front", "nearer", "closer"),
        ("behind", "further away", "at the back"),
    ),
)
"""Right, down, size, nearness: in this order of `box_measures`."""
SHARES = (0.28, 0.28, 0.28, 0.16)
"""How often each measure is asked about."""
OPPOSITES = (("right", "left"), ("below", "above"), ("bigger", "smaller"), ("in front", "behind"))
"""More and less of each measure, as an answer."""
JOINED = ("of ", "", "than ", "of ")
"""What joins them to the other region."""


def box_measures(box: Floats) -> tuple[float, float, float, float]:
    """How far right and down a box's middle is, its size, its nearness: things stand on a floor, so
    the lower a box ends the nearer it is taken to be."""
    x, y = (box[:2] + box[2:]) / 2
    return float(x), float(y), float(np.log(max(box_area(box), 1e-6))) / 6, float(box[3])


def pick_boxes(scene: Scene, count: int, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Different boxes; None where there are too few."""
    if len(scene.labels) < count:
        return None
    return tuple(int(row) for row in rng.choice(len(scene.labels), count, replace=False))


def pick_pair(scene: Scene, rng: np.random.Generator) -> tuple[tuple[int, ...], int, float] | None:
    """Two boxes, one of `MEASURES`, and by how much the first has more of it.

    None where there are too few boxes, or it is too close to call.
    """
    rows = pick_boxes(scene, 2, rng)
    if rows is None:
        return None
    kind = int(rng.choice(len(MEASURES), p=SHARES))
    margin = box_measures(scene.boxes[rows[0]])[kind] - box_measures(scene.boxes[rows[1]])[kind]
    return None if abs(margin) < CLOSE else (rows, kind, margin)


def naming_several(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """What two to four regions are, in their order."""
    rows = pick_boxes(scene, int(rng.integers(2, 5)), rng)
    if rows is None:
        return None
    references = listed([f"<region{number}>" for number in range(1, len(rows) + 1)])
    question = pick((*NAMING_SEVERAL, f"what are {references}?"), rng)
    return QuestionSample(
        rows, question, f"{listed([with_article(scene.name(row)) for row in rows])}."
    )


def relating(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Whether one region is left of, above, bigger than or in front of another."""
    pair = pick_pair(scene, rng)
    if pair is None:
        return None
    rows, kind, margin = pair
    more = bool(rng.random() < 0.5)
    words = pick(MEASURES[kind].more if more else MEASURES[kind].less, rng)
    order = pick(("<region1> {} <region2>",) * 5 + ("the first one {} the second",), rng)
    if rng.random() < 0.15:
        order, margin = "<region2> {} <region1>", -margin
    question = f"is {order.format(words)}?"
    return QuestionSample(rows, question, "yes." if (margin > 0) == more else "no.")


def siding(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """On which of two opposite sides of another region one is, or which of the two is bigger."""
    pair = pick_pair(scene, rng)
    if pair is None:
        return None
    rows, kind, margin = pair
    sides = list(OPPOSITES[kind])
    answer = sides[0] if margin > 0 else sides[1]
    if rng.random() < 0.5:
        sides.reverse()
    one, other = ("<region1>", "<region2>") if rng.random() < 0.8 else ("the first", "the second")
    question = f"is {one} {' or '.join(sides)} {JOINED[kind]}{other}?"
    return QuestionSample(rows, question, f"{answer}.")


def comparing(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Which of two or three regions is bigger, further left, higher, nearer."""
    rows = pick_boxes(scene, 2 if rng.random() < 0.7 else 3, rng)
    if rows is None:
        return None
    kind = int(rng.choice(len(MEASURES), p=SHARES))
    more = bool(rng.random() < 0.5)
    sign = 1 if more else -1
    values = [sign * box_measures(scene.boxes[row])[kind] for row in rows]
    first, second = sorted(values, reverse=True)[:2]
    if first - second < CLOSE:
        return None
    words = pick(MEASURES[kind].most if more else MEASURES[kind].least, rng)
    references = [f"<region{number}>" for number in range(1, len(rows) + 1)]
    which = pick(("which is", "which one is", "which region is", "which of these is"), rng)
    tail = f", {' or '.join(references)}?" if rng.random() < 0.5 else "?"
    return QuestionSample(rows, f"{which} {words}{tail}", f"region {values.index(first) + 1}.")


def locating(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """On which side of another region one is."""
    rows = pick_boxes(scene, 2, rng)
    if rows is None:
        return None
    one, other = (box_measures(scene.boxes[row]) for row in rows)
    across, down = one[0] - other[0], one[1] - other[1]
    if max(abs(across), abs(down)) < 2 * CLOSE or abs(abs(across) - abs(down)) < CLOSE:
        return None
    if abs(across) > abs(down):
        answer = "to the right" if across > 0 else "to the left"
    else:
        answer = "below" if down > 0 else "above"
    question = pick(
        ("where is <region1> relative to <region2>?", "on which side of <region2> is <region1>?",
         "where is <region1>, seen from <region2>?", "how does <region1> lie to <region2>?"),
        rng,
    )  # fmt: skip
    return QuestionSample(rows, question, f"{answer}.")


def matching(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Whether two regions are the same kind of thing; where it can be, half of them are."""
    first = pick_box(scene, rng)
    others = np.flatnonzero(np.arange(len(scene.labels)) != first)
    wanted = scene.labels[others] == scene.labels[first]
    if rng.random() < 0.5:
        wanted = ~wanted
    chosen = others[wanted]
    if not len(chosen):
        return None
    second = int(chosen[int(rng.integers(len(chosen)))])
    if scene.labels[first] == scene.labels[second]:
        answer = f"yes, {coco_plural(scene.name(first))}"
    else:
        names = [with_article(scene.name(row)) for row in (first, second)]
        answer = f"no, {listed(names)}"
    return QuestionSample((first, second), pick(SAME, rng), f"{answer}.")


def overlapping(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Whether two regions overlap, or one lies inside the other."""
    rows = pick_boxes(scene, 2, rng)
    if rows is None:
        return None
    first, second = scene.boxes[rows[0]], scene.boxes[rows[1]]
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])  # (2,)
    if np.abs(sides).min() < 0.02 and sides.max() > 0:
        return None
    overlap = bool((sides > 0).all())
    question = pick(
        ("do they overlap?", "do <region1> and <region2> overlap?", "do these regions overlap?",
         "does <region1> touch <region2>?"),
        rng,
    )  # fmt: skip
    return QuestionSample(rows, question, "yes." if overlap else "no.")


def neighbouring(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """What the nearest other thing to a region is."""
    if not scene.complete or len(scene.labels) < 2:
        return None
    row = pick_box(scene, rng)
    box = scene.boxes[row]
    gaps = np.maximum(
        np.maximum(scene.boxes[:, :2] - box[2:], box[:2] - scene.boxes[:, 2:]), 0
    ).sum(axis=1)  # (N,) between edges, 0 where they overlap
    middles = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    apart = np.abs(middles - (box[:2] + box[2:]) / 2).sum(axis=1)
    distance = gaps + 0.2 * apart
    distance[row] = np.inf
    nearest = int(distance.argmin())
    if gaps[nearest] > 0.25:
        return None
    return QuestionSample((row,), pick(NEXT_TO, rng), f"{with_article(scene.name(nearest))}.")
