"""Questions about several regions: what they are, how they lie to each other, whether they match.

A question whose answer would be too close to call is not asked.
"""

from itertools import permutations

import numpy as np

from recipes.starter.records.scenes import DrawnQuestion, Floats, Scene, area_of
from recipes.starter.records.words import TABLES, Rng, SceneError, Table, ask, listed, many_of, pick

CLOSE = 0.04
"""A difference below this, in sides of the image or as the logarithm of a ratio of areas over 6, is
too close to call."""
AXES = tuple(TABLES[f"axis {name}"] for name in ("right", "down", "size", "near"))
"""The columns of `measures`."""
NONE = "none of them."
SHARES = (0.28, 0.28, 0.28, 0.16)
"""How often each is asked about."""


def measures(boxes: Floats) -> Floats:
    """How far right and down boxes (R, 4) lie, how large they are, how near (R, 4).

    Things stand on a floor, so the lower a box ends the nearer it is taken to be.
    """
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
    size = [np.log(max(area_of(box), 1e-6)) / 6 for box in boxes]
    return np.stack([x, y, size, boxes[:, 3]], axis=1)


def compared(scene: Scene, count: int, rng: Rng) -> tuple[Floats, Table, Floats]:
    """Draw boxes (R, 4), an axis, and how much of it each has (R,); all differ clearly."""
    boxes = scene.boxes_to_compare(count, rng)
    axis = int(rng.choice(len(AXES), p=SHARES))
    values = measures(boxes)[:, axis]
    if np.diff(np.sort(values)).min() < CLOSE:
        raise SceneError
    return boxes, AXES[axis], values


def marks(count: int) -> list[str]:
    """`<region1>`, `<region2>`, ..."""
    return [f"<region{number}>" for number in range(1, count + 1)]


def naming_several(scene: Scene, rng: Rng) -> DrawnQuestion:
    """What two to four regions are, in their order."""
    rows = scene.rows(int(rng.integers(2, 5)), rng)
    text = ask("naming several", rng, regions=listed(marks(len(rows))))
    return DrawnQuestion(text, f"{listed([scene.thing(r) for r in rows])}.", scene.fractions[rows])


def relating(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether one region is left of, above, bigger than or in front of another."""
    boxes, axis, (first, second) = compared(scene, 2, rng)
    more = rng.random() < 0.5
    words = pick(axis["more" if more else "less"], rng)
    return DrawnQuestion(
        ask("relating", rng, words=words), "yes." if (first > second) == more else "no.", boxes
    )


def siding(scene: Scene, rng: Rng) -> DrawnQuestion:
    """On which of two sides of another region one is, or which of the two is bigger."""
    boxes, axis, (first, second) = compared(scene, 2, rng)
    choices = tuple(f"{side}." for side in axis["sides"])
    text = ask("siding", rng, sides=pick(axis["asked"], rng))
    return DrawnQuestion(text, choices[int(first < second)], boxes, choices)


def comparing(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Which of two to five regions is bigger, further left, higher, nearer."""
    boxes, axis, values = compared(scene, pick((2, 2, 2, 3, 3, 4, 5), rng), rng)
    more = rng.random() < 0.5
    words = pick(axis["most" if more else "least"], rng)
    regions = marks(len(boxes))
    answer = regions[int((values if more else -values).argmax())]
    return DrawnQuestion(
        ask("comparing", rng, words=words, regions=listed(regions, "or")),
        f"{answer}.",
        boxes,
        tuple(f"{region}." for region in regions),
    )


def ordering(scene: Scene, rng: Rng) -> DrawnQuestion:
    """In which order three regions lie along an axis."""
    boxes, axis, values = compared(scene, 3, rng)
    falling = rng.random() < 0.5
    regions = marks(3)
    orders = [f"{', '.join(order)}." for order in permutations(regions)]
    answer = f"{', '.join(regions[at] for at in np.argsort(-values if falling else values))}."
    wrong = rng.permutation([order for order in orders if order != answer])[:3]
    choices = tuple(str(order) for order in rng.permutation([answer, *wrong]))
    text = ask("ordering", rng, axis=axis["orders"][int(falling)], regions=listed(regions))
    return DrawnQuestion(text, answer, boxes, choices)


def locating(scene: Scene, rng: Rng) -> DrawnQuestion:
    """On which of four sides of another region one is."""
    boxes = scene.boxes_to_compare(2, rng)
    across, down = -np.diff(measures(boxes)[:, :2], axis=0)[0]
    if max(abs(across), abs(down)) < 2 * CLOSE or abs(abs(across) - abs(down)) < CLOSE:
        raise SceneError
    sides = ("to the left.", "to the right.", "above.", "below.")
    answer = sides[int(across > 0)] if abs(across) > abs(down) else sides[2 + int(down > 0)]
    return DrawnQuestion(ask("locating", rng), answer, boxes, sides)


def matching(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether two regions are the same kind of thing; half of the answers are yes."""
    first, *others = scene.rows(min(6, len(scene.labels)), rng)
    same = rng.random() < 0.5
    fits = [row for row in others if (scene.labels[row] == scene.labels[first]) == same]
    rows = [first, pick(fits, rng)]
    if same:
        answer = f"yes, {many_of(scene.name(first))}."
    else:
        answer = f"no, {listed([scene.thing(row) for row in rows])}."
    return DrawnQuestion(ask("matching", rng), answer, scene.fractions[rows])


def overlapping(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether two regions overlap, or one lies inside the other."""
    boxes = scene.boxes_to_compare(2, rng)
    sides = boxes[:, 2:].min(axis=0) - boxes[:, :2].max(axis=0)  # (2,) of what they share
    if np.abs(sides).min() < CLOSE / 2:
        raise SceneError
    return DrawnQuestion(ask("overlapping", rng), "yes." if (sides > 0).all() else "no.", boxes)


def pointing(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Which of several regions is a named thing; sometimes none is."""
    rows = scene.rows(int(rng.integers(2, 7)), rng)
    labels = scene.labels[rows].tolist()
    regions = marks(len(rows))
    answer = NONE
    if rng.random() < 0.85:
        label = pick([label for label in labels if labels.count(label) == 1], rng)
        answer = f"{regions[labels.index(label)]}."
    else:
        taken = np.isin(np.arange(len(scene.names)), labels)
        label = scene.others(taken, 1, rng)[0]
    text = ask("pointing", rng, regions=listed(regions, "and"), **scene.slots(label, rng))
    choices = tuple(f"{each}." for each in regions) if answer != NONE else ()
    return DrawnQuestion(text, answer, scene.fractions[rows], choices)
