"""Write questions about photos with labelled boxes, for `regionqa eval vqa`.

    python benchmarks/starter_questions.py DATA/coco_small dev questions.jsonl
    regionqa eval vqa questions.jsonl --images DATA/coco_small/images

Three groups of kinds, sampled with a fixed random seed:

- what the starter is taught: relations (left, above, bigger, in front), on which of two sides,
  which of several, presence (half of the answers are yes), counts of one to five, places, sameness,
  checks of a name; for dev also colours of 100 boxes, which a person labelled with every acceptable
  colour (colour_labels.jsonl);
- questions with four choices (choice_kinds.py): `choice: colour`, `choice: relation`, ...;
- what it is never taught (untaught_questions.txt), to which "I am not sure." is the right answer:
  `untaught: brands`, ...

The split should not be one of training: `dev`, or `held-out`, the photos of train that the recipe
holds out (needs PYTHONPATH=., as held_out_boxes.py).

Prints a line per kind: its number of questions.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import choice_kinds
import numpy as np
import question_kinds
from held_out_boxes import held_out_names
from labelled_photos import LabelledPhoto, LabelledPhotos, PhotoScene, read_labelled_photos
from question_kinds import Maker
from question_words import NUMBER_WORDS

MIN_SIDE = 16
"""Minimum of a box's shorter side, in pixels."""
UNTAUGHT_SIDE = 32
"""The same for boxes of questions that are not taught."""
KINDS: tuple[tuple[str, Maker, int], ...] = (
    ("relation", question_kinds.relation, 4), ("side", question_kinds.side, 2),
    ("which", question_kinds.which, 2), ("presence", question_kinds.presence, 4),
    ("count", question_kinds.count, 3), ("place", question_kinds.place, 2),
    ("same", question_kinds.same, 2), ("check", question_kinds.check, 2),
)  # fmt: skip
"""Kind, question maker, and how often it is tried for each photo."""
COLOUR = "colour"
TAUGHT = (*(kind for kind, _, _ in KINDS), COLOUR)
"""Kinds of questions that the starter is taught."""
UNTAUGHT = "untaught: "
"""Start of the kinds that it is not taught."""
HELD_OUT = "held-out"
NOT_SURE = "I am not sure."
COLOURS = Path(__file__).with_name("colour_labels.jsonl")
QUESTIONS = Path(__file__).with_name("untaught_questions.txt")
COUNTED = frozenset(f"{word}." for word in NUMBER_WORDS[1:6])
Record = dict[str, object]
"""A line for `regionqa eval vqa`."""


def photos_of(folder: Path, name: str) -> LabelledPhotos:
    """Return the photos of a split; `held-out` is a part of train."""
    if name != HELD_OUT:
        return read_labelled_photos(folder / f"instances_{name}.json")
    return read_labelled_photos(folder / "instances_train.json").only(held_out_names(folder))


# -- taught ----------------------------------------------------------------------------------------


def taught_questions(photos: LabelledPhotos) -> Iterator[Record]:
    """Yield the questions of `KINDS`."""
    rng = np.random.default_rng(0)
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        scene = PhotoScene.of(photo, photos.names, MIN_SIDE)
        asked = set()
        for kind, maker, times in KINDS:
            for _ in range(times):
                sample = maker(scene, rng)
                if sample is None or (kind == "count" and sample.answer not in COUNTED):
                    continue
                if any(photo.sides[list(sample.rows)] < MIN_SIDE) or sample in asked:
                    continue
                asked.add(sample)
                yield {
                    "image": photo.name,
                    "regions": photo.written(sample.rows),
                    "question": sample.question,
                    "answer": sample.answer,
                    "kind": kind,
                }


def colour_labels() -> list[dict[str, object]]:
    """Read the boxes of dev that a person labelled with colours."""
    return [json.loads(line) for line in COLOURS.read_text(encoding="utf-8").splitlines()]


def colour_questions() -> Iterator[Record]:
    """Yield questions about the colours of labelled boxes."""
    for label in colour_labels():
        colours = label.pop("colours")
        assert isinstance(colours, list)
        answers = [f"{colour}." for colour in colours]
        yield label | {"question": "what colour is this?", "answers": answers, "kind": COLOUR}


# -- not taught ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UntaughtQuestion:
    """A line of untaught_questions.txt."""

    kind: str
    about: str
    """`person`, `thing` (a box of another class), `box` (any), or `photo` (no box)."""
    text: str


def read_untaught(path: Path = QUESTIONS) -> list[UntaughtQuestion]:
    """Read the questions; lines that start with # are comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [UntaughtQuestion(kind, about, text) for kind, about, text in rows]


def untaught_questions(photos: LabelledPhotos) -> Iterator[Record]:
    """Yield every question that is not taught, about the next photo that has such a box."""
    order = np.random.default_rng(2).permutation(len(photos.photos)).tolist()
    place = 0
    for question in read_untaught():
        for _ in order:
            photo = photos.photos[order[place % len(order)]]
            place += 1
            rows = boxes_about(question.about, photo, photos.names)
            if rows is not None:
                yield {
                    "image": photo.name,
                    "regions": photo.written(rows),
                    "question": question.text,
                    "answer": NOT_SURE,
                    "kind": f"{UNTAUGHT}{question.kind}",
                }
                break
        else:
            raise SystemExit(f"no photo has a box for {question}")


def boxes_about(about: str, photo: LabelledPhoto, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the largest box of what a question is about; None if there is no large one."""
    if about == "photo":
        return ()
    person = np.array([names[label] == "person" for label in photo.labels], bool)
    fits = {"person": person, "thing": ~person, "box": np.ones(len(person), bool)}[about]
    fits &= photo.sides >= UNTAUGHT_SIDE
    if not fits.any():
        return None
    sides = photo.boxes[:, 2:] - photo.boxes[:, :2]
    return (int(np.argmax(np.where(fits, sides.prod(axis=1), 0))),)


def all_questions(folder: Path, name: str) -> Iterator[Record]:
    """Yield the questions of every kind about the photos of a split."""
    photos = photos_of(folder, name)
    yield from taught_questions(photos)
    if name == "dev":
        yield from colour_questions()
        yield from choice_kinds.colour_choices(colour_labels())
    yield from choice_kinds.choice_questions(photos)
    yield from untaught_questions(photos)


def main(folder: Path, name: str, out: Path) -> None:
    """Write the questions, and print how many there are of each kind."""
    records = list(all_questions(folder, name))
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    out.write_text("".join(lines), encoding="utf-8")
    for kind, number in Counter(str(record["kind"]) for record in records).items():
        print(f"{kind}\t{number}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
