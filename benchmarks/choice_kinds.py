"""Questions with four choices about labelled boxes, in the manner of GAR-Bench (arXiv 2510.18876).

Colour, relation, ordering, shape and material. Choices are worded like answers, because
`regionqa eval vqa` scores each as a whole answer by its likelihood. They stand in random order, and
no answer is right more often than `MOST` times per kind, so that always giving the same one is
little better than chance.

Shapes and materials follow from the class: only classes are listed of which nearly every one in
COCO's photos has that shape or is mostly of that material, and wrong choices exclude whatever a
person might also accept.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from labelled_photos import LabelledPhoto, LabelledPhotos
from question_kinds import CLOSE, box_measures

MIN_SIDE = 32
"""Minimum of a box's shorter side, in pixels."""
MOST = 20
"""Questions of a kind with the same right answer."""
CHOICES = 4
PALETTE = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "beige", "black",
    "white", "grey",
)  # fmt: skip
NEAR_COLOURS: Mapping[str, tuple[str, ...]] = {
    "white": ("beige", "grey"), "grey": ("white", "black", "beige"), "black": ("grey",),
    "beige": ("white", "brown", "grey", "yellow"), "brown": ("beige", "orange"),
    "red": ("pink", "orange"), "pink": ("red", "purple"), "orange": ("red", "yellow", "brown"),
    "yellow": ("orange", "beige"), "purple": ("pink", "blue"), "blue": ("purple",),
}  # fmt: skip
"""Colours that are no wrong choice beside a right one, because people draw the line differently."""
SHAPES: Mapping[str, tuple[str, ...]] = {
    "round.": ("sports ball", "orange", "apple", "donut", "frisbee"),
    "rectangular.": ("tv", "refrigerator", "microwave", "book", "keyboard", "cell phone", "laptop"),
    "cylindrical.": ("bottle", "cup"),
    "long and thin.": ("skis", "baseball bat", "fork", "knife", "spoon", "toothbrush"),
}
"""Classes by shape."""
MATERIALS: Mapping[str, tuple[str, ...]] = {
    "metal.": (
        "car", "bus", "truck", "train", "airplane", "motorcycle", "bicycle", "fire hydrant",
        "stop sign", "parking meter", "scissors", "refrigerator",
    ),
    "glass.": ("wine glass",),
    "cloth.": ("tie", "umbrella", "backpack", "teddy bear"),
    "plastic.": ("remote", "keyboard", "mouse", "toothbrush", "frisbee"),
    "porcelain.": ("toilet",),
    "paper.": ("book",),
    "wood.": ("bench", "baseball bat", "skateboard"),
}  # fmt: skip
"""Classes by what they are mostly made of."""
NEAR_MATERIALS = {"wood.": ("metal.", "plastic.")}
"""Materials that are no wrong choice beside a right one: some benches and bats are of metal."""
SIDES = ("to the left.", "to the right.", "above.", "below.")
ORDERS = (
    ("furthest to the left", 0, 1), ("furthest to the right", 0, -1), ("highest", 1, 1),
    ("lowest", 1, -1), ("smallest", 2, 1), ("largest", 2, -1), ("the second from the left", 0, 2),
    ("the second from the right", 0, -2),
)  # fmt: skip
"""Words, index into `box_measures`, and place in ascending (1, 2) or descending order (-1, -2)."""
TRIES = 3
"""How often a photo is asked for a relation or an ordering."""
Record = dict[str, object]


def choice_questions(photos: LabelledPhotos) -> Iterator[Record]:
    """Yield relation, ordering, shape and material questions about the photos."""
    rng = np.random.default_rng(1)
    found = [
        record
        for photo in photos.photos
        for record in photo_choices(photo, photos.names, rng)
        if record is not None
    ]
    order = rng.permutation(len(found)).tolist()
    counts: Counter[tuple[object, object]] = Counter()
    kept = set()
    for number in order:  # in random order, so that no photo's questions come first
        key = (found[number]["kind"], found[number]["answer"])
        if counts[key] < MOST:
            counts[key] += 1
            kept.add(number)
    yield from (record for number, record in enumerate(found) if number in kept)


def photo_choices(
    photo: LabelledPhoto, names: Sequence[str], rng: np.random.Generator
) -> Iterator[Record | None]:
    """Yield the questions about one photo; None where a try failed."""
    large = np.flatnonzero(photo.sides >= MIN_SIDE)
    for _ in range(TRIES):
        yield relation_choice(photo, large, rng)
        yield ordering_choice(photo, large, rng)
    for row in large.tolist():
        name = names[int(photo.labels[row])]
        for kind, table, question in (
            ("shape", SHAPES, "what shape is <region1>?"),
            ("material", MATERIALS, "what is <region1> mostly made of?"),
        ):
            answer = next((each for each, classes in table.items() if name in classes), None)
            if answer is not None:
                near = (answer, *NEAR_MATERIALS.get(answer, ()))
                wrong = [each for each in table if each not in near]
                yield choice_record(photo, (row,), kind, question, answer, wrong, rng)


def relation_choice(
    photo: LabelledPhoto, large: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    rng: np.random.Generator,
) -> Record | None:  # fmt: skip
    """Ask on which side of a second region the first one is; None if it is too close to call."""
    if len(large) < 2:
        return None
    rows = tuple(int(row) for row in rng.choice(large, 2, replace=False))
    one, other = (box_measures(photo.fractions[row]) for row in rows)
    across, down = one[0] - other[0], one[1] - other[1]
    if max(abs(across), abs(down)) < 3 * CLOSE or min(abs(across), abs(down)) > CLOSE:
        return None
    if abs(across) > abs(down):
        answer = SIDES[1] if across > 0 else SIDES[0]
    else:
        answer = SIDES[3] if down > 0 else SIDES[2]
    question = "where is <region1> relative to <region2>?"
    wrong = [each for each in SIDES if each != answer]
    return choice_record(photo, rows, "relation", question, answer, wrong, rng)


def ordering_choice(
    photo: LabelledPhoto, large: "np.ndarray[tuple[int], np.dtype[np.int64]]",
    rng: np.random.Generator,
) -> Record | None:  # fmt: skip
    """Ask which of four regions is the first or second in an order; None if it is too close."""
    if len(large) < CHOICES:
        return None
    rows = tuple(int(row) for row in rng.choice(large, CHOICES, replace=False))
    words, measure, place = ORDERS[int(rng.integers(len(ORDERS)))]
    values = np.array([box_measures(photo.fractions[row])[measure] for row in rows])
    order = np.argsort(values if place > 0 else -values)
    chosen = int(order[abs(place) - 1])
    if np.delete(np.abs(values - values[chosen]), chosen).min() < CLOSE:
        return None
    regions = [f"region {number}." for number in range(1, CHOICES + 1)]
    wrong = [each for number, each in enumerate(regions) if number != chosen]
    question = f"which region is {words}?"
    return choice_record(photo, rows, "ordering", question, regions[chosen], wrong, rng)


def choice_record(
    photo: LabelledPhoto, rows: tuple[int, ...], kind: str, question: str, answer: str,
    wrong: Sequence[str], rng: np.random.Generator,
) -> Record:  # fmt: skip
    """Return a record with the answer and three wrong choices, in random order."""
    return {
        "image": photo.name,
        "regions": photo.written(rows),
        "question": question,
        "answer": answer,
        "choices": shuffled(answer, wrong, rng),
        "kind": f"choice: {kind}",
    }


def shuffled(answer: str, wrong: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Return the answer and three of the wrong choices, in random order."""
    others = [wrong[int(row)] for row in rng.choice(len(wrong), CHOICES - 1, replace=False)]
    return [[answer, *others][int(row)] for row in rng.permutation(CHOICES)]


def colour_choices(labels: Sequence[Mapping[str, object]]) -> Iterator[Record]:
    """Yield a question for every box that a person labelled with its acceptable colours."""
    rng = np.random.default_rng(3)
    for label in labels:
        accepted = label["colours"]
        assert isinstance(accepted, list)
        near = {each for colour in accepted for each in NEAR_COLOURS.get(colour, ())}
        wrong = [f"{each}." for each in PALETTE if each not in near | set(accepted)]
        answer = f"{accepted[0]}."
        yield {
            "image": label["image"],
            "regions": label["regions"],
            "question": "what colour is <region1>?",
            "answer": answer,
            "choices": shuffled(answer, wrong, rng),
            "kind": "choice: colour",
        }
