"""Questions about labelled photos, one maker per kind; starter_questions.py writes them.

The wordings and the order of random draws are fixed: they define the questions that the figures of
docs/starter.md are about, so a change here makes earlier figures incomparable. A question is left
out where its answer would be too close to call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from labelled_photos import Floats, PhotoQuestion, PhotoScene
from question_words import NUMBER_WORDS, alike, everyday_name, pick, place_of, several

from regionqa.data.english import with_article

PLACE = (
    "where is <region1>?", "where is this?", "where in the picture is <region1>?", "where is it?",
    "where in the picture is this?", "in which part of the picture is this?",
    "which part of the picture is <region1> in?", "where does <region1> lie?",
    "whereabouts in the picture is it?",
)  # fmt: skip
SAME = (
    "are they the same?", "are these the same?", "are these the same kind of thing?",
    "are <region1> and <region2> the same?", "is <region1> the same as <region2>?",
    "do these show the same thing?", "are both the same kind of object?",
    "is <region2> the same thing as <region1>?",
)  # fmt: skip
CLOSE = 0.04
"""A difference below this, in sides of the photo or as the logarithm of a ratio of areas over 6, is
too close to call."""


@dataclass(frozen=True)
class Comparison:
    """One property by which regions are compared, from more of it to less."""

    more: tuple[str, ...]
    less: tuple[str, ...]
    most: tuple[str, ...]
    """Words for the region that has most of it."""
    least: tuple[str, ...]
    opposites: tuple[str, str]
    """More and less of it, as an answer."""
    joined: str
    """What joins an opposite to the other region."""


COMPARISONS = (
    Comparison(
        ("right of", "to the right of", "on the right of", "further right than"),
        ("left of", "to the left of", "on the left of", "further left than"),
        ("further to the right", "on the right", "more to the right"),
        ("further to the left", "on the left", "more to the left"),
        ("right", "left"), "of ",
    ),
    Comparison(
        ("below", "under", "lower than", "beneath"),
        ("above", "over", "higher than", "on top of"),
        ("lower", "further down", "below the other"),
        ("higher", "further up", "above the other"),
        ("below", "above"), "",
    ),
    Comparison(
        ("bigger than", "larger than"),
        ("smaller than", "less big than"),
        ("bigger", "larger", "the biggest", "the largest"),
        ("smaller", "the smallest"),
        ("bigger", "smaller"), "than ",
    ),
    Comparison(
        ("in front of", "nearer than", "closer than"),
        ("behind", "further away than"),
        ("in front", "nearer", "closer"),
        ("behind", "further away", "at the back"),
        ("in front", "behind"), "of ",
    ),
)  # fmt: skip
"""In the order of `box_measures`."""
COMPARISON_SHARES = (0.28, 0.28, 0.28, 0.16)
"""How often each is asked about."""


Maker = Callable[[PhotoScene, np.random.Generator], PhotoQuestion | None]


# -- one region ------------------------------------------------------------------------------------


def place(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion:
    """Ask where in the photo a region is."""
    row = scene.pick_box(rng)
    return PhotoQuestion((row,), pick(PLACE, rng), f"{place_of(scene.boxes[row])}.")


def check(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion:
    """Ask whether a region is a named thing; half of the answers are yes."""
    row = scene.pick_box(rng)
    truth = int(scene.labels[row])
    asked = truth if rng.random() < 0.5 else other_label(truth, scene, rng)
    subject = pick(("this", "this", "<region1>", "it", "that"), rng)
    name = with_article(everyday_name(scene.names[asked], rng))
    question = pick(
        (f"is {subject} {name}?",) * 4
        + (f"could {subject} be {name}?", f"does {subject} show {name}?", f"{name}?",
           f"do you see {name} here?", f"is there {name} in {subject}?",
           f"would you say {subject} is {name}?"),
        rng,
    )  # fmt: skip
    thing = with_article(scene.names[truth])
    return PhotoQuestion((row,), question, f"{'yes' if asked == truth else 'no'}, {thing}.")


def other_label(truth: int, scene: PhotoScene, rng: np.random.Generator) -> int:
    """Pick another class: one from the same photo, or of the same group, or any."""
    others = sorted({int(label) for label in scene.labels} - {truth})
    group = alike(scene.names[truth])
    confused = [row for row, name in enumerate(scene.names) if name in group and row != truth]
    draw = rng.random()
    if others and draw < 0.4:
        return others[int(rng.integers(len(others)))]
    if confused and draw < 0.7:
        return confused[int(rng.integers(len(confused)))]
    return (truth + int(rng.integers(1, len(scene.names)))) % len(scene.names)


# -- several regions -------------------------------------------------------------------------------


def box_measures(box: Floats) -> tuple[float, float, float, float]:
    """Return how far right and down a box is, its size, and its nearness, by its lower edge."""
    x, y = (box[:2] + box[2:]) / 2
    area = float((box[2] - box[0]) * (box[3] - box[1]))
    return float(x), float(y), float(np.log(max(area, 1e-6))) / 6, float(box[3])


def pick_boxes(scene: PhotoScene, count: int, rng: np.random.Generator) -> tuple[int, ...] | None:
    """Pick different boxes; None where there are too few."""
    if len(scene.labels) < count:
        return None
    return tuple(int(row) for row in rng.choice(len(scene.labels), count, replace=False))


def pick_pair(
    scene: PhotoScene, rng: np.random.Generator
) -> tuple[tuple[int, ...], Comparison, float] | None:
    """Pick two boxes, how they are compared, and by how much the first has more of it."""
    rows = pick_boxes(scene, 2, rng)
    if rows is None:
        return None
    kind = int(rng.choice(len(COMPARISONS), p=COMPARISON_SHARES))
    margin = box_measures(scene.boxes[rows[0]])[kind] - box_measures(scene.boxes[rows[1]])[kind]
    return None if abs(margin) < CLOSE else (rows, COMPARISONS[kind], margin)


def relation(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion | None:
    """Ask whether one region is left of, above, bigger than or in front of another."""
    pair = pick_pair(scene, rng)
    if pair is None:
        return None
    rows, kind, margin = pair
    more = bool(rng.random() < 0.5)
    words = pick(kind.more if more else kind.less, rng)
    order = pick(("<region1> {} <region2>",) * 5 + ("the first one {} the second",), rng)
    if rng.random() < 0.15:
        order, margin = "<region2> {} <region1>", -margin
    answer = "yes." if (margin > 0) == more else "no."
    return PhotoQuestion(rows, f"is {order.format(words)}?", answer)


def side(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion | None:
    """Ask on which of two opposite sides of another region one is, or which of them is bigger."""
    pair = pick_pair(scene, rng)
    if pair is None:
        return None
    rows, kind, margin = pair
    sides = list(kind.opposites)
    answer = sides[0] if margin > 0 else sides[1]
    if rng.random() < 0.5:
        sides.reverse()
    one, other = ("<region1>", "<region2>") if rng.random() < 0.8 else ("the first", "the second")
    return PhotoQuestion(rows, f"is {one} {' or '.join(sides)} {kind.joined}{other}?", f"{answer}.")


def which(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion | None:
    """Ask which of two or three regions is bigger, further left, higher, nearer."""
    rows = pick_boxes(scene, 2 if rng.random() < 0.7 else 3, rng)
    if rows is None:
        return None
    kind = int(rng.choice(len(COMPARISONS), p=COMPARISON_SHARES))
    more = bool(rng.random() < 0.5)
    sign = 1 if more else -1
    values = [sign * box_measures(scene.boxes[row])[kind] for row in rows]
    first, second = sorted(values, reverse=True)[:2]
    if first - second < CLOSE:
        return None
    words = pick(COMPARISONS[kind].most if more else COMPARISONS[kind].least, rng)
    references = [f"<region{number}>" for number in range(1, len(rows) + 1)]
    opening = pick(("which is", "which one is", "which region is", "which of these is"), rng)
    tail = f", {' or '.join(references)}?" if rng.random() < 0.5 else "?"
    answer = f"region {values.index(first) + 1}."
    return PhotoQuestion(rows, f"{opening} {words}{tail}", answer)


def same(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion | None:
    """Ask whether two regions are the same kind of thing; where it can be, half of them are."""
    first = scene.pick_box(rng)
    others = np.flatnonzero(np.arange(len(scene.labels)) != first)
    wanted = scene.labels[others] == scene.labels[first]
    if rng.random() < 0.5:
        wanted = ~wanted
    chosen = others[wanted]
    if not len(chosen):
        return None
    second = int(chosen[int(rng.integers(len(chosen)))])
    if scene.labels[first] == scene.labels[second]:
        answer = f"yes, {several(scene.name(first))}"
    else:
        one, other = (with_article(scene.name(row)) for row in (first, second))
        answer = f"no, {one} and {other}"
    return PhotoQuestion((first, second), pick(SAME, rng), f"{answer}.")


# -- the whole photo -------------------------------------------------------------------------------


def absent_label(scene: PhotoScene, present: Sequence[int], rng: np.random.Generator) -> int:
    """Pick a class that the photo does not show, 2 in 5 times one that is like one it does."""
    shown = {alike(scene.names[label]) for label in present}
    absent = sorted(set(range(len(scene.names))) - set(present))
    likely = [label for label in absent if alike(scene.names[label]) in shown]
    chosen = likely if likely and rng.random() < 0.4 else absent
    return chosen[int(rng.integers(len(chosen)))]


def presence(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion:
    """Ask whether the photo shows a thing; half of the answers are yes."""
    present = sorted({int(label) for label in scene.labels})
    if rng.random() < 0.5 and len(present) < len(scene.names):
        label = absent_label(scene, present, rng)
    else:
        label = present[int(rng.integers(len(present)))]
    name = everyday_name(scene.names[label], rng)
    one, many = with_article(name), several(name)
    question = pick(
        (f"is there {one} in the picture?", f"is there {one} in the picture?", f"is there {one}?",
         f"are there any {many}?", f"do you see {one}?", f"can you see {one} in the picture?",
         f"does the picture show {one}?", f"are there {many} in the picture?", f"any {many}?",
         f"is {one} in the picture?"),
        rng,
    )  # fmt: skip
    return PhotoQuestion((), question, "yes." if label in present else "no.")


def count(scene: PhotoScene, rng: np.random.Generator) -> PhotoQuestion:
    """Ask how many of a thing there are; one time in ten of one that is not there."""
    label = int(scene.labels[scene.pick_box(rng)])
    present = sorted({int(each) for each in scene.labels})
    if rng.random() < 0.1 and len(present) < len(scene.names):
        label = absent_label(scene, present, rng)
    many = several(everyday_name(scene.names[label], rng))
    question = pick(
        (f"how many {many} are there?", f"how many {many} are in the picture?",
         f"how many {many} do you see?", f"count the {many}.", f"how many {many}?",
         f"what is the number of {many}?", f"how many {many} can you see in the picture?"),
        rng,
    )  # fmt: skip
    number = int((scene.labels == label).sum())
    word = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else "more than ten"
    return PhotoQuestion((), question, f"{word if number else 'none'}.")
