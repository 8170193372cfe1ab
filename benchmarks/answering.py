"""Measure the CPU time of an answer about one region, on one thread, after loading.

    python benchmarks/answering.py [MODEL] [IMAGE]

The process is bound to one CPU before anything is imported, so that no library starts a second
thread. The image is opened again for every question, so that its encoding is not reused. The
default image is scikit-image's cat.

Prints a line per question: the question, the answer, its tokens, and the median CPU time of twenty
rounds in milliseconds.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROUNDS, WARM_UP = 20, 3
QUESTIONS = ("what is this?", "what colour is it?", "describe <region1>.")
BOX = (0.1, 0.1, 0.9, 0.9)


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


def main(model: str, image: str) -> None:
    """Measure and print every question."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    import regionqa

    torch.set_num_threads(1)
    engine = regionqa.load(model, device="cpu")
    for question in QUESTIONS:
        answer = engine.ask(image, question, [BOX], box_units="fraction", unsure_below=0)

        def ask(question: str = question) -> object:
            return engine.ask(image, question, [BOX], box_units="fraction")

        print(f"{question}\t{answer.text}\t{answer.tokens} tokens\t{cpu_milliseconds(ask):.0f} ms")


if __name__ == "__main__":
    main(*(sys.argv[1:3] or ["starter"]), *([cat()] if len(sys.argv) < 3 else []))
