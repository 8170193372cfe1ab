"""Questions and answers made from boxes, class names and captions.

Everything asked here can be read off the annotations: what a region is, where it is, how regions
lie to each other, how many there are, what the picture shows. Answers are templates. It does not
know about pixels or models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NAMING = (
    "what is this?",
    "what is <region1>?",
    "what is in this region?",
    "what is in <region1>?",
    "what is it?",
    "what do you see in <region1>?",
    "what object is this?",
    "what kind of object is <region1>?",
    "name this object.",
    "name <region1>.",
    "what is shown here?",
    "which object is in the box?",
    "who or what is this?",
)
NAMING_SEVERAL = (
    "what are these?",
    "what is in these regions?",
    "name these objects.",
    "name the objects.",
    "what do you see in these regions?",
)
DESCRIBING = (
    "describe <region1>.",
    "describe this region.",
    "describe this.",
    "caption <region1>.",
)
PICTURE = (
    "describe this picture.",
    "describe the picture.",
    "what is in this picture?",
    "what is happening in this picture?",
    "what does this picture show?",
    "caption this picture.",
    "what do you see?",
    "what is this?",
)
PLACE = (
    "where is <region1>?",
    "where is this?",
    "where in the picture is <region1>?",
    "where is it?",
)
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
WITHOUT_ARTICLE = frozenset({"scissors", "skis", "broccoli"})
PLURALS = {
    "person": "people", "sheep": "sheep", "skis": "skis", "scissors": "scissors", "knife": "knives",
    "mouse": "mice", "broccoli": "broccoli", "bus": "buses", "bench": "benches",
    "couch": "couches", "sandwich": "sandwiches", "toothbrush": "toothbrushes",
    "wine glass": "wine glasses",
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One training record: rows of the picture's boxes, a question about them, its answer."""

    regions: tuple[int, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """What is known of one view of a photo: boxes (N, 4) in [0, 1], labels (N,), captions."""

    boxes: Floats
    labels: Ints
    captions: tuple[str, ...]
    names: Sequence[str]
    complete: bool
    """Whether the view shows the whole photo, so that counts and captions hold."""
    box_weights: Floats
    """How often each box is asked about, relative to the others (N,)."""


def with_article(name: str) -> str:
    """`a dog`, `an orange`, `scissors`."""
    if name in WITHOUT_ARTICLE:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    """`dogs`, `people`."""
    return PLURALS.get(name, f"{name}s")


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def place_of(box: Floats) -> str:
    """Which ninth of the picture the middle of the box lies in."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = ("left", "middle", "right")[min(2, int(x * 3))]
    row = ("top", "middle", "bottom")[min(2, int(y * 3))]
    if row == column:
        return "in the middle of the picture"
    if row == "middle":
        return f"on the {column} of the picture"
    return (
        f"at the {row} of the picture"
        if column == "middle"
        else f"at the {row} {column} of the picture"
    )


def size_word(box: Floats) -> str:
    """A word for a box that covers much or little of the picture, else nothing."""
    share = float((box[2] - box[0]) * (box[3] - box[1]))
    if share > 0.3:
        return "large "
    return "small " if share < 0.015 else ""


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, all alike."""
    return options[int(rng.integers(len(options)))]


def pick_box(scene: Scene, rng: np.random.Generator) -> int:
    """A box, by weight."""
    return int(rng.choice(len(scene.labels), p=scene.box_weights / scene.box_weights.sum()))


def naming(scene: Scene, rng: np.random.Generator) -> Sample:
    """What one region is."""
    row = pick_box(scene, rng)
    return Sample((row,), pick(NAMING, rng), f"{with_article(scene.names[scene.labels[row]])}.")


def naming_several(scene: Scene, rng: np.random.Generator) -> Sample | None:
    """What two to four regions are, in their order."""
    if len(scene.labels) < 2:
        return None
    count = int(rng.integers(2, min(4, len(scene.labels)) + 1))
    rows = tuple(int(row) for row in rng.choice(len(scene.labels), count, replace=False))
    references = listed([f"<region{number}>" for number in range(1, count + 1)])
    question = pick((*NAMING_SEVERAL, f"what are {references}?"), rng)
    names = [with_article(scene.names[scene.labels[row]]) for row in rows]
    return Sample(rows, question, f"{listed(names)}.")


def describing(scene: Scene, rng: np.random.Generator) -> Sample:
    """What a region is, how large and where."""
    row = pick_box(scene, rng)
    box, name = scene.boxes[row], scene.names[scene.labels[row]]
    words = size_word(box) + name
    return Sample((row,), pick(DESCRIBING, rng), f"{with_article(words)} {place_of(box)}.")


def placing(scene: Scene, rng: np.random.Generator) -> Sample:
    """Where a region is."""
    row = pick_box(scene, rng)
    return Sample((row,), pick(PLACE, rng), f"{place_of(scene.boxes[row])}.")


def checking(scene: Scene, rng: np.random.Generator) -> Sample:
    """Whether a region is a named thing; half of the answers are yes."""
    row = pick_box(scene, rng)
    truth = int(scene.labels[row])
    asked = truth if rng.random() < 0.5 else other_label(truth, scene, rng)
    subject = pick(("this", "<region1>", "it"), rng)
    answer = f"{'yes' if asked == truth else 'no'}, it is {with_article(scene.names[truth])}."
    return Sample((row,), f"is {subject} {with_article(scene.names[asked])}?", answer)


def other_label(truth: int, scene: Scene, rng: np.random.Generator) -> int:
    """Another class: one from the same picture where there is one, half of the time."""
    others = sorted({int(label) for label in scene.labels} - {truth})
    if others and rng.random() < 0.5:
        return others[int(rng.integers(len(others)))]
    return (truth + int(rng.integers(1, len(scene.names)))) % len(scene.names)


def presence(scene: Scene, rng: np.random.Generator) -> Sample | None:
    """Whether the picture shows a thing; half of the answers are yes."""
    if not scene.complete:
        return None
    present = sorted({int(label) for label in scene.labels})
    label = present[int(rng.integers(len(present)))]
    absent = sorted(set(range(len(scene.names))) - set(present))
    if absent and rng.random() < 0.5:
        label = absent[int(rng.integers(len(absent)))]
    name = with_article(scene.names[label])
    question = pick((f"is there {name} in the picture?", f"is there {name}?"), rng)
    return Sample((), question, "yes." if label in present else "no.")


def counting(scene: Scene, rng: np.random.Generator) -> Sample | None:
    """How many of a thing the picture shows."""
    if not scene.complete:
        return None
    label = int(scene.labels[pick_box(scene, rng)])
    count = int((scene.labels == label).sum())
    word = NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else "more than ten"
    many = plural(scene.names[label])
    question = pick((f"how many {many} are there?", f"how many {many} are in the picture?"), rng)
    return Sample((), question, f"{word}.")


def relating(scene: Scene, rng: np.random.Generator) -> Sample | None:
    """Whether one region is left of, right of, above, below or bigger than another."""
    if len(scene.labels) < 2:
        return None
    rows = tuple(int(row) for row in rng.choice(len(scene.labels), 2, replace=False))
    first, second = scene.boxes[rows[0]], scene.boxes[rows[1]]
    middle = ((first[:2] + first[2:]) - (second[:2] + second[2:])) / 2  # (2,)
    ratio = float(np.prod(first[2:] - first[:2]) / max(np.prod(second[2:] - second[:2]), 1e-9))
    relations: tuple[tuple[str, float], ...] = (
        ("left of", -float(middle[0])), ("right of", float(middle[0])),
        ("above", -float(middle[1])), ("below", float(middle[1])),
        ("bigger than", float(np.log(ratio)) / 4), ("smaller than", -float(np.log(ratio)) / 4),
    )  # fmt: skip
    words, margin = relations[int(rng.integers(len(relations)))]
    if abs(margin) < 0.05:  # too close to call
        return None
    return Sample(rows, f"is <region1> {words} <region2>?", "yes." if margin > 0 else "no.")


def captioning(scene: Scene, rng: np.random.Generator) -> Sample | None:
    """What the whole picture shows, in one of its captions."""
    if not (scene.complete and scene.captions):
        return None
    caption = pick(scene.captions, rng).strip().rstrip(".").lower()
    return Sample((), pick(PICTURE, rng), f"{caption}.")


Maker = Callable[[Scene, np.random.Generator], Sample | None]
MIXTURE: tuple[tuple[Maker, float], ...] = (
    (naming, 0.40), (naming_several, 0.08), (describing, 0.10), (placing, 0.04), (checking, 0.08),
    (presence, 0.05), (counting, 0.05), (relating, 0.06), (captioning, 0.14),
)  # fmt: skip
"""What is asked how often."""


def draw_sample(scene: Scene, rng: np.random.Generator) -> Sample:
    """One question about a view that shows at least one box."""
    makers, shares = zip(*MIXTURE, strict=True)
    while True:
        maker: Maker = makers[int(rng.choice(len(makers), p=shares))]
        sample = maker(scene, rng)
        if sample is not None:
            return sample
