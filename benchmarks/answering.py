"""How long one answer about one region of one photo takes, in CPU time on one thread after loading.

    python benchmarks/answering.py [MODEL] [IMAGE]

The process is bound to one CPU before anything is imported, so that no library starts a second
thread. Every question is asked of a newly opened photo: nothing is remembered from one to the next.
Without an image, scikit-image's cat is asked about. Medians of twenty.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROUNDS = 20
QUESTIONS = ("what is this?", "what colour is it?", "describe <region1>.")
BOX = (0.1, 0.1, 0.9, 0.9)


def cat() -> str:
    """scikit-image's photo of a cat."""
    found = find_spec("skimage")
    if not found or not found.origin:
        sys.exit("name an image, or install scikit-image for its photo of a cat")
    return str(Path(found.origin).parent / "data" / "chelsea.png")


def cpu_milliseconds(work: Callable[[], object]) -> float:
    """The median over rounds of the CPU time of all threads, after three that do not count."""
    taken = []
    for _ in range(ROUNDS + 3):
        started = time.process_time()
        work()
        taken.append(1000 * (time.process_time() - started))
    return statistics.median(taken[3:])


def main(model: str, image: str) -> None:
    """Measure and print."""
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
