"""Words of the questions about labelled photos: classes, plurals, synonyms, places."""

from collections.abc import Mapping, Sequence

import numpy as np
from labelled_photos import Floats

from regionqa.data.english import plural

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
GROUPS = (
    ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    ("chair", "couch", "bed", "dining table", "bench", "toilet"),
    ("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
     "cake"),
    ("fork", "knife", "spoon", "bowl", "cup", "wine glass", "bottle"),
    ("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove",
     "skateboard", "surfboard", "tennis racket"),
    ("tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster",
     "refrigerator", "hair drier"),
)  # fmt: skip
"""Classes that are easily confused."""
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "person": ("human", "somebody", "man or a woman"), "couch": ("sofa",), "tv": ("television",),
    "cell phone": ("phone", "mobile phone"), "airplane": ("plane",), "bicycle": ("bike",),
    "motorcycle": ("motorbike",), "dining table": ("table",), "potted plant": ("plant",),
    "sports ball": ("ball",), "refrigerator": ("fridge",), "donut": ("doughnut",),
    "teddy bear": ("stuffed animal",), "cup": ("mug",), "mouse": ("computer mouse",),
    "hair drier": ("hair dryer",), "handbag": ("bag", "purse"),
}  # fmt: skip
"""What people also call a thing when they ask."""
PLURALS = {
    "skis": "skis", "scissors": "scissors", "broccoli": "broccoli", "somebody": "somebodys",
    "man or a woman": "man or a womans", "computer mouse": "computer mouses",
}  # fmt: skip
"""Plurals in the questions that differ from `plural`."""


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """Pick one of the options."""
    return options[int(rng.integers(len(options)))]


def everyday_name(name: str, rng: np.random.Generator) -> str:
    """Return the class, or what people also call it."""
    others = SYNONYMS.get(name, ())
    return pick(others, rng) if others and rng.random() < 0.3 else name


def several(name: str) -> str:
    """Return the plural of a class as the questions have it."""
    return PLURALS.get(name) or plural(name)


def place_of(box: Floats) -> str:
    """Return in which ninth of the photo the middle of a box lies."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    column = ("left", "middle", "right")[min(2, max(0, int(x * 3)))]
    row = ("top", "middle", "bottom")[min(2, max(0, int(y * 3)))]
    if row == column:
        return "in the middle"
    if row == "middle":
        return f"on the {column}"
    return f"at the {row}" if column == "middle" else f"at the {row} {column}"


def alike(name: str) -> tuple[str, ...]:
    """Return the group of a class; empty if it has none."""
    return next((group for group in GROUPS if name in group), ())
