"""What a file of training data holds, before anything trains on it: figures, bars, drawings.

It is given `TrainingData` and says what it sees; whether that is enough is for a person to judge.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from regionqa.data.records import Record, TrainingData
from regionqa.errors import ImageError, OutputError
from regionqa.images.reading import open_image
from regionqa.pipeline.drawing import draw_answers, save_drawing
from regionqa.requests import Answer, Request

DRAWN_TURNS = 24
"""Turns written under one drawn image; more would make it longer than anybody reads."""


def draw_examples(
    data: TrainingData, count: int, folder: Path, warn: Callable[[str], None], seed: int = 0
) -> list[Path]:
    """Draw images with the regions and turns of all their records; the files written.

    The images are spread over the data: one from each of `count` stretches, by chance that
    `seed` fixes. `warn` is told of an image that cannot be decoded, which the header does not
    show. Raises OutputError where nothing can be written.
    """
    records: defaultdict[Path, list[Record]] = defaultdict(list)
    for record in data.records:
        records[record.image].append(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}; name another") from None
    written = []
    for number, path in enumerate(_spread(list(records), count, seed), start=1):
        drawing = folder / f"{number:03}-{path.stem}.jpg"
        try:
            pixels = open_image(path).load()
        except ImageError as error:
            warn(str(error))
            continue
        save_drawing(draw_answers(pixels, _answers(records[path]), questions=True), drawing)
        written.append(drawing)
    return written


def _spread(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """One of each of `count` equal stretches; all where there are no more than that."""
    chance = random.Random(seed)
    count = min(count, len(paths))
    edges = [len(paths) * stretch // max(1, count) for stretch in range(count + 1)]
    return [paths[chance.randrange(edges[i], edges[i + 1])] for i in range(count)]


def _answers(records: Sequence[Record]) -> list[Answer]:
    """The turns of an image as if a model had answered them, for drawing."""
    return [
        Answer(Request(str(record.image), turn.question, record.regions), turn.answer)
        for record in records
        for turn in record.turns
    ][:DRAWN_TURNS]
