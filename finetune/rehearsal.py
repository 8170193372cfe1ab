"""Rehearsal of the base model's own answers, against forgetting.

A model that is trained on a few new classes and nothing else soon sees them everywhere. So the base
answers questions about boxes before training, and its answers are replayed (pseudo-rehearsal,
Robins 1995) as distributions over tokens (learning without forgetting, arXiv 1606.09282). No older
data is needed.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import numpy as np

from regionqa.bundles.store import Bundle
from regionqa.data.convert import write_training_data
from regionqa.data.english import counted
from regionqa.data.files import read_training_data
from regionqa.data.records import Record, Turn
from regionqa.engine import Engine
from regionqa.errors import ImageError, UsageError
from regionqa.finetune.batches.dataset import RunData, Say, sample_builder
from regionqa.finetune.config import FinetuneSettings
from regionqa.finetune.distributed import ProcessGroup
from regionqa.images.kinds import SUFFIXES
from regionqa.images.reading import open_image
from regionqa.language.references import REFERENCE
from regionqa.regions import Box, Region
from regionqa.requests import NAMING_QUESTION, Request

Place = tuple[Path, Box]
"""An image and a box in it."""
MOST = 1500
"""Most questions that the base is asked, however many images there are."""
SMALLEST = 0.1
"""Shortest side of a box, as a share of the image's."""
SHARED, TRIES = 0.2, 50
"""Most of a taught box that a random one may share, as a share of the smaller one, and how often
another is drawn: the base's answer about it would contradict the answer that is taught."""


def with_rehearsal(
    settings: FinetuneSettings,
    base: Bundle,
    data: RunData,
    path: Path,
    processes: ProcessGroup,
    say: Say,
) -> RunData:
    """Add the base's own answers as replay, unless there is other replay or it is untrained."""
    if data.replay or not settings.rehearse or base.card.untrained:
        return data
    if processes.is_first and not path.exists():
        rng = np.random.default_rng([settings.seed, len(data.instruct)])
        places = places_to_rehearse(settings, data, rng, say)
        say(f"rehearsal: asking {base.card.name} about {len(places):,} boxes")
        records = rehearse(base, places, questions_to_rehearse(data.instruct), rng, say)
        write_training_data(path, records)
    processes.wait()
    if not path.stat().st_size:
        say("rehearsal: the base gave no answers to replay")
        return data
    replay, _ = sample_builder(base).fitting(read_training_data(path).records)
    say(f"rehearsal: {len(replay):,} of its answers are replayed against forgetting")
    return replace(data, replay=tuple(replay), rehearsed=True)


def places_to_rehearse(
    settings: FinetuneSettings, data: RunData, rng: np.random.Generator, say: Say
) -> list[Place]:
    """Choose the boxes to ask about: those of a file, or random ones in images."""
    on = Path(settings.rehearse_on) if settings.rehearse_on else None
    if on and not on.is_dir():
        return places_of(read_training_data(on).or_stop(skip_bad=True).records, rng)
    images = images_in(on) if on else sorted({r.image for r in (*data.align, *data.instruct)})
    return places_anywhere(images, settings.rehearse, rng, say, data.boxes())


def places_of(records: Sequence[Record], rng: np.random.Generator) -> list[Place]:
    """Sample up to MOST boxes of records, those with rare answers more often than their share.

    Annotated boxes show things; random boxes mostly show parts and backgrounds.
    """
    counts = Counter(record.turns[0].answer for record in records)
    weights = np.array([counts[record.turns[0].answer] ** -0.5 for record in records])
    chosen = rng.choice(
        len(records), min(MOST, len(records)), replace=False, p=weights / weights.sum()
    )
    return [(records[i].image, r.box) for i in sorted(chosen) for r in records[i].regions][:MOST]


def places_anywhere(
    images: Sequence[Path],
    each: int,
    rng: np.random.Generator,
    say: Say,
    taught: Mapping[Path, Collection[Box]] = MappingProxyType({}),
) -> list[Place]:
    """Draw `each` random boxes in every image, or in as many images as give MOST.

    Args:
        images: To draw boxes in.
        each: Number of boxes in an image.
        rng: Draws images and boxes.
        say: Called with a line for each image that cannot be opened and is left out, and where
            boxes are left out for want of room.
        taught: Boxes that random ones keep clear of, by image; see `SHARED`.
    """
    if len(images) * each > MOST:
        images = sorted(images[int(i)] for i in rng.permutation(len(images))[: MOST // each])
    places: list[Place] = []
    wanted = 0
    for path in images:
        try:
            image = open_image(path)
        except ImageError as error:
            say(f"rehearsal: left out: {error}")
            continue
        draw = partial(random_box, image.width, image.height, rng)
        drawn = (box_clear_of(taught.get(path, ()), draw) for _ in range(each))
        places += [(path, box) for box in drawn if box is not None]
        wanted += each
    if left := wanted - len(places):
        say(f"rehearsal: {counted(left, 'random box')} left out, no room beside what is taught")
    return places


def box_clear_of(taught: Collection[Box], draw: Callable[[], Box]) -> Box | None:
    """Draw boxes until one shares little with every taught box; None after TRIES."""
    boxes = (draw() for _ in range(TRIES))
    return next((box for box in boxes if all(shared(box, t) <= SHARED for t in taught)), None)


def shared(one: Box, other: Box) -> float:
    """Return the area that two boxes share, as a share of the smaller one's."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    smaller = min(one.width * one.height, other.width * other.height)
    return max(0.0, width) * max(0.0, height) / smaller


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw a box in an image, its sides log-uniform."""
    w, h = np.exp(rng.uniform(np.log(SMALLEST), 0, 2)) * (width, height)
    x, y = rng.uniform(0, 1, 2) * (width - w, height - h)
    return Box(float(x), float(y), float(x + w), float(y + h))


def images_in(folder: Path) -> list[Path]:
    """Find all images in a folder and below; UsageError where there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{folder}: holds no images to rehearse on; choose another folder")
    return found


def rehearse(
    base: Bundle,
    places: Sequence[Place],
    questions: Sequence[str],
    rng: np.random.Generator,
    say: Say,
) -> tuple[Record, ...]:
    """Ask the base about boxes; return its answers as records, without errors and empty ones.

    say: called with a line for each error.
    """
    engine = Engine.load(base, device="cpu")
    records, errors = [], dict[str, None]()
    for answer in engine.answer(_requests(places, questions, rng), unsure_below=0):
        request = answer.request
        if answer.error:
            errors[str(answer.error)] = None
        elif answer.text.strip():
            turn = Turn(request.question, answer.text)
            records.append(Record(Path(request.image), request.regions, (turn,), "rehearsal"))
    for error in errors:
        say(f"rehearsal: left out: {error}")
    return tuple(records)


def _requests(
    places: Sequence[Place], questions: Sequence[str], rng: np.random.Generator
) -> Iterator[Request]:
    for path, group in groupby(places, key=lambda place: place[0]):
        image = open_image(path)
        for _, box in group:
            question = questions[int(rng.integers(len(questions)))]
            yield Request(str(path), question, (Region(box),), image)


def questions_to_rehearse(records: Sequence[Record], most: int = 8) -> list[str]:
    """Collect "what is this?" and the most frequent questions of records about one region.

    New answers to these would replace old ones first.
    """
    counts = Counter(
        turn.question
        for record in records
        for turn in record.turns
        if len(record.regions) == 1 and set(REFERENCE.findall(turn.question)) <= {"1"}
    )
    asked = [question for question, _ in counts.most_common(most)]
    return list(dict.fromkeys([NAMING_QUESTION, *asked]))
