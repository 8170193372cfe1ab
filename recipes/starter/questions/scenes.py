"""What a view of a photo shows, and one question about it: the nouns of the starter's questions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recipes.starter.questions.phrases import as_typed
from recipes.starter.vision.photos import Photo

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QuestionSample:
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
    colours: tuple[str | None, ...] = ()
    """The boxes' colours where they are known; empty: nobody looked."""

    def name(self, row: int) -> str:
        """The class of a box."""
        return self.names[int(self.labels[row])]

    def count(self, label: int) -> int:
        """Boxes of a class."""
        return int((self.labels == label).sum())


def whole_scene(photo: Photo, names: Sequence[str], smallest: float = 0.0) -> Scene:
    """All of a photo; boxes with a shorter side of fewer than `smallest` pixels count, but are not
    asked about where there are others."""
    sides = (photo.boxes[:, 2:] - photo.boxes[:, :2]).min(axis=1)  # (N,)
    return Scene(
        boxes=photo.boxes / photo.scale,
        labels=photo.labels,
        captions=photo.captions,
        names=names,
        complete=True,
        box_weights=(sides >= smallest).astype(np.float32) + np.float32(1e-6),
    )


def pick_box(scene: Scene, rng: np.random.Generator) -> int:
    """A box, by weight."""
    return int(rng.choice(len(scene.labels), p=scene.box_weights / scene.box_weights.sum()))


Maker = Callable[[Scene, np.random.Generator], QuestionSample | None]


def draw_question(
    mixture: Sequence[tuple[Maker, float]], scene: Scene, rng: np.random.Generator
) -> QuestionSample:
    """One question, as typed, about a view that shows at least one box."""
    makers, shares = zip(*mixture, strict=True)
    chances = np.array(shares) / sum(shares)
    while True:
        maker: Maker = makers[int(rng.choice(len(makers), p=chances))]
        sample = maker(scene, rng)
        if sample is not None:
            return QuestionSample(sample.regions, as_typed(sample.question, rng), sample.answer)
