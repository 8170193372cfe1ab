"""Measure what encoding an image once and decoding in batches gain, in questions per second.

    python benchmarks/batching.py [MODEL [DEVICE]]

Asks 32 questions about boxes of scikit-image's cat in three ways: encoding the image for every
question, encoding it once, and encoding it once with questions in batches of 16. The ways alternate
within one run, after a round of warming up.

Prints whether the answers are equal, then a line per way: the median of three rounds in questions
per second, and its ratio to the line above.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import regionqa
from regionqa.engine import Engine
from regionqa.images.reading import open_image
from regionqa.pipeline.demo import photo_folder
from regionqa.regions import Box, Region
from regionqa.requests import Request

ROUNDS = 3
WORDINGS = ("what is this?", "describe <region1>.")
COLUMNS, ROWS = 4, 4


def grid_requests() -> list[Request]:
    """Return a request for every wording and every cell of a grid over the image."""
    image = open_image(photo_folder() / "chelsea.png")
    across, down = image.width / COLUMNS, image.height / ROWS
    cells = [
        Region(Box(column * across, row * down, (column + 1) * across, (row + 1) * down))
        for column in range(COLUMNS)
        for row in range(ROWS)
    ]
    return [Request(image.name, words, (cell,), image) for cell in cells for words in WORDINGS]


def encoded_each_time(engine: Engine, requests: list[Request]) -> list[str]:
    """Ask one question at a time, opening the image again for each."""
    fresh = [replace(request, source=open_image(request.image)) for request in requests]
    return [answer.text for request in fresh for answer in engine.answer([request])]


def encoded_once(engine: Engine, requests: list[Request]) -> list[str]:
    """Ask one question at a time, all about the same opened image."""
    return [answer.text for request in requests for answer in engine.answer([request])]


def batched(engine: Engine, requests: list[Request]) -> list[str]:
    """Ask all questions at once."""
    return [answer.text for answer in engine.answer(requests)]


WAYS: dict[str, Callable[[Engine, list[Request]], list[str]]] = {
    "image encoded per question": encoded_each_time,
    "image encoded once": encoded_once,
    "encoded once, batches of 16": batched,
}


def main(model: str = "starter", device: str = "auto") -> None:
    """Time every way and print the rates."""
    engine = regionqa.load(model, device=device, batch_size=16)
    asked = grid_requests()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    answers: dict[str, list[str]] = {}
    for _ in range(ROUNDS + 1):
        for name, way in WAYS.items():
            started = time.perf_counter()
            answers[name] = way(engine, asked)
            times[name].append(time.perf_counter() - started)
    first = next(iter(answers.values()))
    same = all(given == first for given in answers.values())
    print(f"{len(asked)} questions about one image, {model} on {engine.device}; "
          f"answers {'equal' if same else 'DIFFER'}")  # fmt: skip
    rates = {name: len(asked) / statistics.median(seconds[1:]) for name, seconds in times.items()}
    above = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"{name:30} {rate:8.1f} questions/s  {rate / above:5.2f} x the line above")
        above = rate


if __name__ == "__main__":
    main(*sys.argv[1:])
