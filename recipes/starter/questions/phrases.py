"""Words for what boxes, class names and captions say: articles, places, sizes, ways to ask.

Questions come in many wordings and somewhat carelessly typed, answers in one wording per kind, so
that the probability of an answer's words is the probability of what it says.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from regionqa.data.english import plural
from regionqa.language.references import REFERENCE

Floats = npt.NDArray[np.float32]

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MANY = "more than ten"


PLURALS = {
    "skis": "skis", "scissors": "scissors", "broccoli": "broccoli", "somebody": "somebodys",
    "man or a woman": "man or a womans", "computer mouse": "computer mouses",
}  # fmt: skip
"""Plurals of the released starter's prompts that differ from `plural`."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "animal": (
        "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe",
    ),
    "piece of furniture": ("chair", "couch", "bed", "dining table", "bench", "toilet"),
    "food": (
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
        "cake",
    ),
    "tool for eating": ("fork", "knife", "spoon", "bowl", "cup", "wine glass", "bottle"),
    "piece of sports gear": (
        "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
        "skateboard", "surfboard", "tennis racket",
    ),
    "device": (
        "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster",
        "refrigerator", "hair drier",
    ),
}  # fmt: skip
"""Wider words for COCO's names; a name in none of them has none."""
ALIVE = frozenset({"person", *GROUPS["animal"]})


SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "person": ("human", "somebody", "man or a woman"), "couch": ("sofa",), "tv": ("television",),
    "cell phone": ("phone", "mobile phone"), "airplane": ("plane",), "bicycle": ("bike",),
    "motorcycle": ("motorbike",), "dining table": ("table",), "potted plant": ("plant",),
    "sports ball": ("ball",), "refrigerator": ("fridge",), "donut": ("doughnut",),
    "teddy bear": ("stuffed animal",), "cup": ("mug",), "mouse": ("computer mouse",),
    "hair drier": ("hair dryer",), "handbag": ("bag", "purse"),
}  # fmt: skip
"""What people also call a thing when they ask; answers use the class's own name."""

SWAPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("colour", ("color",)),
    ("grey", ("gray",)),
    ("picture", ("photo", "image", "picture")),
    ("what is", ("what's", "whats")),
    ("<region1>", ("region <region1>", "the region <region1>", "the box <region1>", "<region1>")),
)
"""Words that people put in place of others."""
POLITE = ("please, ", "tell me: ", "can you tell me, ", "hey, ", "so, ", "now ")


def coco_plural(name: str) -> str:
    """`dogs`, `people`."""
    return PLURALS.get(name) or plural(name)


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def number_word(count: int) -> str:
    """`two`; `more than ten` from eleven on."""
    return NUMBER_WORDS[count] if count < len(NUMBER_WORDS) else MANY


def group_of(name: str) -> str | None:
    """The wider word for a class name."""
    return next((group for group, members in GROUPS.items() if name in members), None)


def place_of(box: Floats) -> str:
    """Which ninth of the picture the middle of the box lies in."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = ("left", "middle", "right")[min(2, max(0, int(x * 3)))]
    row = ("top", "middle", "bottom")[min(2, max(0, int(y * 3)))]
    if row == column:
        return "in the middle"
    if row == "middle":
        return f"on the {column}"
    return f"at the {row}" if column == "middle" else f"at the {row} {column}"


def size_word(box: Floats) -> str:
    """A word for a box that covers much or little of the picture, else nothing."""
    share = box_area(box)
    if share > 0.3:
        return "large "
    return "small " if share < 0.015 else ""


def box_area(box: Floats) -> float:
    """The share of the picture that a box covers."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


def everyday_name(name: str, rng: np.random.Generator) -> str:
    """The name, or what people also call it."""
    others = SYNONYMS.get(name, ())
    return pick(others, rng) if others and rng.random() < 0.3 else name


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, all alike."""
    return options[int(rng.integers(len(options)))]


def as_typed(question: str, rng: np.random.Generator) -> str:
    """The question as someone in a hurry types it, half of the time: other words, marks, slips."""
    if rng.random() < 0.5:
        return question
    for word, others in SWAPS:
        if word in question and rng.random() < 0.4:
            question = question.replace(word, pick(others, rng))
    if rng.random() < 0.1:
        question = pick(POLITE, rng) + question
    if rng.random() < 0.3:
        question = question.rstrip("?.") + pick(("", "", "?", ".", "??", " ?"), rng)
    if rng.random() < 0.15:
        question = misspelt(question, rng)
    return question


def misspelt(question: str, rng: np.random.Generator) -> str:
    """One word with two letters changed places, or one left out or doubled."""
    words = question.split(" ")
    rows = [row for row, word in enumerate(words) if re.fullmatch("[a-z]{4,}[?.]?", word)]
    rows = [row for row in rows if not REFERENCE.search(words[row])]
    if not rows:
        return question
    row = rows[int(rng.integers(len(rows)))]
    word = words[row]
    at = int(rng.integers(len(word.rstrip("?.")) - 1))
    kinds = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    )
    words[row] = pick(kinds, rng)
    return " ".join(words)
