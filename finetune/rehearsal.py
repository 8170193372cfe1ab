"""What the base model says today, kept as records to be mixed into training.

A model that is shown two new things and nothing else soon sees them everywhere. So before it
trains, the base is asked about boxes anywhere in the pictures, and its own answers are replayed
(pseudo-rehearsal, Robins 1995), each word with the probability that the base gives it (learning
without forgetting, arXiv 1606.09282). No older data is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from regionqa.bundles import Bundle
from regionqa.engine import Engine
from regionqa.errors import UsageError
from regionqa.finetune.convert import write_training_data
from regionqa.finetune.datafiles import read_training_data
from regionqa.finetune.processes import Processes
from regionqa.finetune.records import DataFormat, Record, TrainingData, Turn
from regionqa.finetune.rundata import RunData, Say, sample_maker
from regionqa.finetune.stages import FinetuneSettings
from regionqa.images import open_picture
from regionqa.inputs import SUFFIXES
from regionqa.prompts import REFERENCE
from regionqa.regions import Box, Region
from regionqa.requests import NAMING_QUESTION, Request

MOST = 1500
"""Questions that a base is asked, however many pictures there are."""
SMALLEST = 0.1
"""Shortest side of a box, as a share of the picture's."""


def with_rehearsal(
    settings: FinetuneSettings,
    base: Bundle,
    data: RunData,
    path: Path,
    processes: Processes,
    say: Say,
) -> RunData:
    """The data with the base's own answers to replay, where nothing else is and it has any."""
    if data.replay or not settings.rehearse or base.card.untrained:
        return data
    if processes.is_first and not path.exists():
        pictures = {record.image for record in (*data.align, *data.instruct)}
        if settings.rehearse_on:
            pictures = set(pictures_in(Path(settings.rehearse_on)))
        say(
            f"rehearsal: asking {base.card.name} about boxes anywhere in {len(pictures):,} pictures"
        )
        records = rehearse(base, data.instruct, sorted(pictures), settings.rehearse, settings.seed)
        write_training_data(path, TrainingData(path, DataFormat.lines, records, (), ""))
    processes.wait()
    if not path.stat().st_size:
        say("rehearsal: it gave no answers that could be replayed")
        return data
    replay, _ = sample_maker(base).fitting(read_training_data(path).records)
    say(f"rehearsal: {len(replay):,} of its answers are replayed, so that it does not forget")
    return replace(data, replay=tuple(replay), rehearsed=True)


def rehearse(
    base: Bundle, records: Sequence[Record], pictures: Sequence[Path], each: int, seed: int
) -> tuple[Record, ...]:
    """The base's answers about `each` random boxes of every picture, as records.

    records: what will be trained on; the base is asked their questions about one region too, for
    there new answers would drive out old ones first.
    """
    rng = np.random.default_rng([seed, len(pictures)])
    questions = tuple(dict.fromkeys((NAMING_QUESTION, *about_one_region(records))))
    if len(pictures) * each > MOST:
        pictures = [pictures[int(i)] for i in rng.permutation(len(pictures))[: MOST // each]]
    engine = Engine.load(base, device="cpu")
    return tuple(
        Record(
            Path(answer.request.image),
            answer.request.regions,
            (Turn(answer.request.question, answer.text),),
            "rehearsal",
        )
        for answer in engine.answer(_requests(sorted(pictures), each, questions, rng))
        if not answer.error and answer.text.strip()
    )


def pictures_in(folder: Path) -> list[Path]:
    """All pictures in a folder and below; UsageError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{folder}: holds no pictures to rehearse on; name another folder")
    return found


def about_one_region(records: Sequence[Record], most: int = 8) -> list[str]:
    """The questions that records most often ask about a single region."""
    counts: dict[str, int] = {}
    for record in records:
        for turn in record.turns:
            named = set(REFERENCE.findall(turn.question))
            if len(record.regions) == 1 and named <= {"1"}:
                counts[turn.question] = counts.get(turn.question, 0) + 1
    return sorted(counts, key=lambda question: -counts[question])[:most]


def _requests(
    pictures: Sequence[Path], each: int, questions: Sequence[str], rng: np.random.Generator
) -> Iterator[Request]:
    for path in pictures:
        picture = open_picture(path)
        for _ in range(each):
            box = random_box(picture.width, picture.height, rng)
            question = questions[int(rng.integers(len(questions)))]
            yield Request(str(path), question, (Region(box),), picture)


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """A box anywhere in a picture; small sides are as likely as large ones on a log scale."""
    w, h = np.exp(rng.uniform(np.log(SMALLEST), 0, 2)) * (width, height)
    x, y = rng.uniform(0, 1, 2) * (width - w, height - h)
    return Box(float(x), float(y), float(x + w), float(y + h))
