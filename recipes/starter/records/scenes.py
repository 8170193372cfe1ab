"""An image with its annotations, what is drawn from them, and one question."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from recipes.starter.photos import Photo
from recipes.starter.records.words import GROUP_OF, Rng, SceneError, everyday_name, many_of
from regionqa.data.english import with_article

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MIN_SIDE = 16
"""Pixels of a box's shorter side from which on it is asked about."""
WRONG = (0.35, 0.3, 0.35)
"""Shares of wrong classes: of the same image, of the same group, any."""
MOST_RANDOM = 40
"""Boxes of a scene with random boxes."""
ANYWHERE = 0.4
"""Share of the questions about how boxes lie that are about random boxes: those of photos are much
alike, and half of their pairs too close to call."""


@dataclass(frozen=True)
class Scene:
    """One image and its annotations.

    Attributes:
        image: Its file.
        size: Width and height in pixels, as displayed.
        names: The classes (C,).
        boxes: (N, 4) xyxy in pixels.
        labels: (N,) classes of the boxes.
        captions: Captions of the image, written by people.
        colours: (N,) of `COLOURS`; None: not known. Empty: none is.
        fine_names: (N,) a name within the class, `tabby cat`, likewise.
        weights: (N,) how often each box is asked about, relative to the others; None: all alike.
    """

    image: Path
    size: tuple[int, int]
    names: tuple[str, ...]
    boxes: Floats
    labels: Ints
    captions: tuple[str, ...] = ()
    colours: tuple[str | None, ...] = ()
    fine_names: tuple[str | None, ...] = ()
    weights: Floats | None = None

    @cached_property
    def fractions(self) -> Floats:
        """The boxes (N, 4) as fractions of the image's sides."""
        sides: Floats = np.array(self.size * 2, np.float32)
        return self.boxes / sides

    @cached_property
    def counts(self) -> Ints:
        """(C,) number of things of each class."""
        return np.bincount(self.labels, minlength=len(self.names))

    @property
    def present(self) -> Bools:
        """(C,) whether the image shows a class."""
        return self.counts > 0

    def name(self, row: int) -> str:
        """`dog`: the class of a box."""
        return self.names[int(self.labels[row])]

    def thing(self, row: int) -> str:
        """`a dog`."""
        return with_article(self.name(row))

    def count(self, label: int) -> int:
        """Return the number of things of a class."""
        return int(self.counts[label])

    def rows(self, count: int, rng: Rng) -> list[int]:
        """Draw different boxes by weight; SceneError where there are too few."""
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).min(axis=1, initial=np.inf)
        weights = (sides >= MIN_SIDE) * np.float64(1)  # (N,)
        if self.weights is not None:
            weights = weights * self.weights
        if np.count_nonzero(weights) < max(1, count):
            raise SceneError
        drawn = rng.choice(len(weights), count, replace=False, p=weights / weights.sum())
        return [int(row) for row in drawn]

    def others(self, taken: Bools, count: int, rng: Rng) -> list[int]:
        """Draw classes other than those `taken` (C,), by the shares of WRONG."""
        if np.count_nonzero(~taken) < count:
            raise SceneError
        groups = np.array([GROUP_OF.get(name, name) for name in self.names])
        akin = np.isin(groups, groups[taken])
        parts = np.stack([self.present, akin, np.ones(len(taken))]) * ~taken  # (3, C)
        totals = parts.sum(axis=1)
        chances = np.array(WRONG) / np.where(totals, totals, np.inf) @ parts  # (C,)
        drawn = rng.choice(len(taken), count, replace=False, p=chances / chances.sum())
        return [int(label) for label in drawn]

    def slots(self, label: int, rng: Rng) -> dict[str, str]:
        """What wordings call a class: `name`, `thing` and `many`."""
        name = everyday_name(self.names[label], rng)
        return {"name": name, "thing": with_article(name), "many": many_of(name)}

    def boxes_to_compare(self, count: int, rng: Rng) -> Floats:
        """Draw boxes (count, 4) of things, or anywhere with sizes even in their logarithm."""
        if count and rng.random() > ANYWHERE:
            return self.fractions[self.rows(count, rng)]
        return random_boxes(count, rng)


def annotated_scene(photo: Photo, names: tuple[str, ...]) -> Scene:
    """Describe a photo by its annotations."""
    return Scene(photo.path, photo.size, names, photo.boxes, photo.labels, photo.captions)


def with_random_boxes(scene: Scene, rng: Rng) -> Scene:
    """Replace a scene's boxes by random ones, of which only the places are known."""
    boxes = random_boxes(MOST_RANDOM, rng) * np.array(scene.size * 2, np.float32)
    labels = np.zeros(len(boxes), np.int64)
    return replace(scene, boxes=boxes, labels=labels, colours=(), fine_names=(), weights=None)


def random_boxes(count: int, rng: Rng) -> Floats:
    """Draw boxes (count, 4) as fractions, anywhere, with sizes even in their logarithm."""
    size, shape = rng.uniform(-3, -0.1, (count, 1)), rng.uniform(-0.5, 0.5, (count, 2))
    middles, sides = rng.uniform(0.05, 0.95, (count, 2)), np.exp(size + shape)
    first = (middles - sides / 2).clip(0, 0.95)
    last = np.maximum((middles + sides / 2).clip(0, 1), first + 0.05)
    return np.concatenate([first, last], axis=1).astype(np.float32)


@dataclass(frozen=True)
class DrawnQuestion:
    """A question, its answer, and the boxes (R, 4) it is about, as fractions."""

    text: str
    """`<region1>` names the first box, here and in the answer."""
    answer: str
    boxes: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    choices: tuple[str, ...] = ()
    """Answers of which one is right; empty: the question is open."""


Maker = Callable[[Scene, Rng], DrawnQuestion]
"""Makes a question; SceneError where the scene has none of its kind."""


def place_of(box: Floats) -> str:
    """Name the ninth of the image in which the middle of a box (4,) lies."""
    x, y = ((box[:2] + box[2:]) * 1.5).astype(int).clip(0, 2)
    column, row = ("left", "middle", "right")[x], ("top", "middle", "bottom")[y]
    if row == "middle":
        return "in the middle" if column == "middle" else f"on the {column}"
    return f"at the {row}" if column == "middle" else f"at the {row} {column}"


def area_of(box: Floats) -> float:
    """The share of the image that a box (4,) covers."""
    return float((box[2] - box[0]) * (box[3] - box[1]))
