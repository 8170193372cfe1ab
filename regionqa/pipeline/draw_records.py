"""Drawings of training records, for `regionqa data check --draw`."""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from regionqa.data.records import Record, TrainingData
from regionqa.errors import ImageError, OutputError
from regionqa.images.reading import open_image
from regionqa.pipeline.draw_files import refuse_drawings, save_drawing
from regionqa.pipeline.drawing import draw_answers
from regionqa.requests import Answer, Request

DRAWN_TURNS = 24
"""Maximum number of turns below an image."""


def draw_examples(
    data: TrainingData,
    count: int,
    folder: Path,
    warn: Callable[[str], None],
    seed: int = 0,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Draw images with the regions and turns of all their records.

    The images are spread over the data: a random one from each of `count` equal parts.

    Args:
        data: Training records.
        count: Number of images.
        folder: Folder of the drawings; it is created.
        warn: Called with a line for each image that cannot be decoded.
        seed: Random seed.
        overwrite: Replace existing files.

    Returns:
        The files written.

    Raises:
        UsageError: A file would be replaced, without `overwrite`, or is an image of the data.
        OutputError: The folder or a drawing cannot be written.
    """
    records: defaultdict[Path, list[Record]] = defaultdict(list)
    for record in data.records:
        records[record.image].append(record)
    chosen = _spread(list(records), count, seed)
    drawings = [folder / f"{n:03}-{path.stem}.jpg" for n, path in enumerate(chosen, start=1)]
    refuse_drawings(f"--out {folder}", drawings, records, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created: {error.strerror}; name another") from None
    written = []
    for path, drawing in zip(chosen, drawings, strict=True):
        try:
            pixels = open_image(path).load()
        except ImageError as error:
            warn(str(error))
            continue
        drawn = draw_answers(pixels, _answers(records[path]), questions=True)
        save_drawing(drawn, drawing, overwrite=overwrite)
        written.append(drawing)
    return written


def _spread(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw one path at random from each of `count` equal parts; all if there are fewer."""
    generator = random.Random(seed)
    count = min(count, len(paths))
    edges = [len(paths) * part // max(1, count) for part in range(count + 1)]
    return [paths[generator.randrange(edges[i], edges[i + 1])] for i in range(count)]


def _answers(records: Sequence[Record]) -> list[Answer]:
    """Turn the turns of an image into answers, for drawing."""
    return [
        Answer(Request(str(record.image), turn.question, record.regions), turn.answer)
        for record in records
        for turn in record.turns
    ][:DRAWN_TURNS]
