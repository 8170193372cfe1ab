"""Measure how robust a model's answers are to small changes of the box.

    python benchmarks/steadiness.py [MODEL [COUNT [SHARE]]] [--guess]

Asks "what is this?" about the cat, cup, astronaut and motorcycle of scikit-image, which the starter
was not trained on, COUNT times each (default 100). Each time the box is shifted, and its sides are
scaled, by up to SHARE of the sides (default 0.1), with a fixed random seed. With --guess, "I am not
sure." is not an answer.

Prints a line per photo: its class, the share of right answers, and the most frequent wrong ones.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import regionqa
from regionqa.engine import Engine
from regionqa.evaluation.metrics.classes import ClassNames, common_synonyms
from regionqa.images.reading import open_image
from regionqa.pipeline.demo import QUESTIONS, SOURCES, photo_folder
from regionqa.regions import Box, Region
from regionqa.requests import NAMING_QUESTION, Request

TRUTHS = {"cat.png": "cat", "cup.png": "cup", "astronaut.png": "person"}
TRUTHS |= {"motorcycle.png": "motorcycle"}


@dataclass(frozen=True)
class Steadiness:
    """The replies about one photo."""

    label: str
    """The class of what its box shows."""
    replies: int
    wrong: Counter[str]
    """Wrong replies with their number."""

    @property
    def right(self) -> float:
        """Right replies in percent."""
        return 100 * (self.replies - self.wrong.total()) / self.replies


def jittered(box: Box, share: float, rng: np.random.Generator, width: int, height: int) -> Box:
    """Return the box with its centre and sides changed by up to `share` of the sides."""
    x0, y0, x1, y1 = box.xyxy
    sides = np.array([x1 - x0, y1 - y0])
    centre = np.array([x0 + x1, y0 + y1]) / 2 + rng.uniform(-share, share, 2) * sides
    half = sides * (1 + rng.uniform(-share, share, 2)) / 2
    low = np.maximum(centre - half, 0)
    high = np.minimum(centre + half, [width, height])
    return Box(*low.tolist(), *high.tolist())


def steadiness(
    engine: Engine, count: int = 100, share: float = 0.1, *, guess: bool = False
) -> Iterator[Steadiness]:
    """Ask about every photo."""
    names = ClassNames(sorted(set(TRUTHS.values())), common_synonyms())
    for photo, label in TRUTHS.items():
        box = next(each.boxes[0] for each in QUESTIONS if each.photo == photo and each.boxes)
        image = open_image(photo_folder() / SOURCES[photo])
        rng = np.random.default_rng(0)
        boxes = [jittered(box, share, rng, image.width, image.height) for _ in range(count)]
        requests = [Request(image.name, NAMING_QUESTION, (Region(each),), image) for each in boxes]
        answers = engine.answer(requests, unsure_below=0.0 if guess else None)
        replies = [answer.text for answer in answers]
        wrong = Counter(reply for reply in replies if names.named(reply) != label)
        yield Steadiness(label, len(replies), wrong)


def main() -> None:
    """Ask about every photo and print the results."""
    parser = argparse.ArgumentParser(prog="python benchmarks/steadiness.py")
    parser.add_argument("model", nargs="?", default="starter")
    parser.add_argument("count", nargs="?", type=int, default=100)
    parser.add_argument("share", nargs="?", type=float, default=0.1)
    parser.add_argument("--guess", action="store_true", help="answer even if the model is not sure")
    options = parser.parse_args()
    engine = regionqa.load(options.model, device="cpu")
    for found in steadiness(engine, options.count, options.share, guess=options.guess):
        most = ", ".join(f"{reply} ({times})" for reply, times in found.wrong.most_common(3))
        print(f"{found.label:<12}{found.right:5.1f} %  {most}")


if __name__ == "__main__":
    main()
