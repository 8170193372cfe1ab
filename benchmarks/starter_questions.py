"""Write questions about photos with labelled boxes, for `regionqa eval vqa`.

    python benchmarks/starter_questions.py DATA/coco_small dev questions.jsonl
    regionqa eval vqa questions.jsonl --images DATA/coco_small/images

Kinds: relations (left, above, bigger, in front), on which of two sides, which of several, presence
(half of the answers are yes), counts of one to five, places, sameness, checks of a name. They are
sampled with the question makers of the starter's recipe (recipes/starter/questions/) and a fixed
random seed. The split should not be one of training: `dev`, or `held-out`, the photos of train that
the recipe holds out. For dev there are questions about colours too: 100 boxes that a person
labelled with every acceptable colour (colour_labels.jsonl).

Prints a line per kind: its number of questions.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recipes.starter.questions.one_region import checking, position
from recipes.starter.questions.phrases import NUMBER_WORDS
from recipes.starter.questions.scenes import Maker, whole_scene
from recipes.starter.questions.several_regions import comparing, matching, relating, siding
from recipes.starter.questions.whole_image import counting, presence
from recipes.starter.vision.photos import PhotoSet, read_photos, split

MIN_SIDE = 16
"""Minimum of a box's shorter side, in pixels."""
KINDS: tuple[tuple[str, Maker, int], ...] = (
    ("relation", relating, 4), ("side", siding, 2), ("which", comparing, 2),
    ("presence", presence, 4), ("count", counting, 3), ("place", position, 2),
    ("same", matching, 2), ("check", checking, 2),
)  # fmt: skip
"""Kind, question maker, and how often it is tried for each photo."""
HELD_OUT = "held-out"
COLOURS = Path(__file__).with_name("colour_labels.jsonl")
COUNTED = frozenset(f"{word}." for word in NUMBER_WORDS[1:6])


def colour_questions() -> Iterator[dict[str, object]]:
    """Yield questions about the boxes of dev that a person labelled with colours."""
    for line in COLOURS.read_text(encoding="utf-8").splitlines():
        label = json.loads(line)
        answers = [f"{colour}." for colour in label.pop("colours")]
        yield label | {"question": "what colour is this?", "answers": answers, "kind": "colour"}


def photos_of(folder: Path, name: str) -> PhotoSet:
    """Return the photos of a split; `held-out` is a part of train."""
    if name != HELD_OUT:
        return read_photos(folder, name)
    return split(read_photos(folder, "train"))[1]


def main(folder: Path, name: str, out: Path) -> None:
    """Write the questions, and print how many there are of each kind."""
    rng = np.random.default_rng(0)
    photos = photos_of(folder, name)
    lines, counts = [], dict.fromkeys((kind for kind, _, _ in KINDS), 0)
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        scene = whole_scene(photo, photos.names, MIN_SIDE)
        asked = set()
        for kind, maker, times in KINDS:
            for _ in range(times):
                sample = maker(scene, rng)
                if sample is None or (kind == "count" and sample.answer not in COUNTED):
                    continue
                boxes = photo.boxes[list(sample.regions)]  # (R, 4)
                sides = boxes[:, 2:] - boxes[:, :2]
                if (len(boxes) and sides.min() < MIN_SIDE) or sample in asked:
                    continue
                asked.add(sample)
                counts[kind] += 1
                record = {
                    "image": photo.path.name,
                    "regions": [[round(value, 2) for value in box] for box in boxes.tolist()],
                    "question": sample.question,
                    "answer": sample.answer,
                    "kind": kind,
                }
                lines.append(json.dumps(record) + "\n")
    if name == "dev":
        colours = [json.dumps(record) + "\n" for record in colour_questions()]
        lines, counts["colour"] = lines + colours, len(colours)
    out.write_text("".join(lines), encoding="utf-8")
    for kind, count in counts.items():
        print(f"{kind}\t{count}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
