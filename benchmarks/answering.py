"""Measure the CPU time of answers on one thread after loading, and answers per second of a folder.

    python benchmarks/answering.py [MODEL] [--image FILE]
    python benchmarks/answering.py [MODEL] --folder DATA/coco_small

The first binds the process to one CPU before anything is imported, so that no library starts a
second thread. The image is opened again for every question, so that its encoding is not reused. The
default image is scikit-image's cat. Prints a line per question: the question, the answer, its
tokens, and the median CPU time of twenty rounds in milliseconds; then the same of "what is this?"
about 32 regions at once, and its ratio to one region.

The second uses all CPUs, and asks "what is this?" about eight boxes of each of forty dev photos,
which are read from disk. Prints the best of three rounds in answers per second of wall time.

--json FILE writes the figures.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regionqa.engine import Engine
    from regionqa.requests import Request

ROUNDS, WARM_UP = 20, 3
QUESTIONS = ("what is this?", "what colour is it?", "describe <region1>.")
BOX = (0.1, 0.1, 0.9, 0.9)
REGIONS = 32
COLUMNS = 8
"""Regions stand in rows of this many."""
PHOTOS, BOXES, PHOTO_ROUNDS = 40, 8, 3


def cat() -> str:
    """Return the path of scikit-image's photo of a cat."""
    found = find_spec("skimage")
    if not found or not found.origin:
        sys.exit("name an image, or install scikit-image for its photo of a cat")
    return str(Path(found.origin).parent / "data" / "chelsea.png")


def cpu_milliseconds(work: Callable[[], object]) -> float:
    """Return the median CPU time of all threads, after three rounds of warming up."""
    times = []
    for _ in range(WARM_UP + ROUNDS):
        started = time.process_time()
        work()
        times.append(1000 * (time.process_time() - started))
    return statistics.median(times[WARM_UP:])


def one_thread(model: str, image: str) -> dict[str, float]:
    """Measure and print every question and many regions; return CPU times in milliseconds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    import regionqa

    torch.set_num_threads(1)
    engine = regionqa.load(model, device="cpu")
    figures = {}
    for question in QUESTIONS:
        answer = engine.ask(image, question, [BOX], box_units="fraction", unsure_below=0)

        def ask(question: str = question) -> object:
            return engine.ask(image, question, [BOX], box_units="fraction")

        figures[question] = cpu_milliseconds(ask)
        print(f"{question}\t{answer.text}\t{answer.tokens} tokens\t{figures[question]:.0f} ms")

    def ask_all() -> object:
        return list(engine.answer(grid_requests(image)))

    many = figures[f"{REGIONS} regions"] = cpu_milliseconds(ask_all)
    ratio = figures["ratio"] = many / figures[QUESTIONS[0]]
    print(f"{QUESTIONS[0]}\t{REGIONS} regions\t{many:.0f} ms\t{ratio:.1f} times one region")
    return figures


def grid_requests(image: str) -> "Iterator[Request]":
    """Yield a request per cell of a grid over a newly opened image."""
    from regionqa.images.reading import open_image
    from regionqa.regions import Box, Region
    from regionqa.requests import Request

    opened = open_image(image)
    across, down = opened.width / COLUMNS, opened.height / (REGIONS // COLUMNS)
    for number in range(REGIONS):
        row, column = divmod(number, COLUMNS)
        corner = (column * across, row * down)
        cell = Box(*corner, corner[0] + across, corner[1] + down)
        yield Request(opened.name, QUESTIONS[0], (Region(cell),), opened)


def whole_folder(model: str, folder: Path) -> dict[str, float]:
    """Measure and print how many answers per second a folder gets."""
    import regionqa

    engine = regionqa.load(model, device="cpu")
    rates = []
    for _ in range(PHOTO_ROUNDS):
        started = time.perf_counter()
        answers = count_answers(engine, folder)
        rates.append(answers / (time.perf_counter() - started))
    print(f"{answers} answers about {PHOTOS} photos\t{max(rates):.0f} answers/s")
    return {"answers per second": max(rates)}


def count_answers(engine: "Engine", folder: Path) -> int:
    """Ask about the first boxes of the first photos that have enough of them."""
    from labelled_photos import read_labelled_photos

    from regionqa.images.reading import open_image
    from regionqa.regions import Box, Region
    from regionqa.requests import Request

    found = read_labelled_photos(folder / "instances_dev.json").photos
    photos = [photo for photo in found if len(photo.boxes) >= BOXES][:PHOTOS]

    def requests() -> Iterator[Request]:
        for photo in photos:
            image = open_image(folder / "images" / photo.name)
            for box in photo.boxes[:BOXES].tolist():
                region = Region(Box(*box).clipped(image.width, image.height))
                yield Request(photo.name, QUESTIONS[0], (region,), image)

    answers = list(engine.answer(requests()))
    for answer in answers:
        if answer.error:
            raise answer.error
    return len(answers)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python benchmarks/answering.py")
    parser.add_argument("model", nargs="?", default="starter")
    parser.add_argument("--image", help="default: scikit-image's cat")
    parser.add_argument("--folder", type=Path, help="folder coco_small; uses all CPUs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.folder:
        figures = whole_folder(options.model, options.folder)
    else:
        figures = one_thread(options.model, options.image or cat())
    if options.json:
        options.json.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
