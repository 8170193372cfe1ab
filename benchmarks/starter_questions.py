"""Questions about photos with known boxes, for `regionqa eval vqa`: what the starter should answer.

    python benchmarks/starter_questions.py DATA/coco_small dev questions.jsonl
    regionqa eval vqa questions.jsonl --images DATA/coco_small/images

Kinds: relations (left, above, bigger, in front), on which of two sides, which of several, presence
(half of the answers are yes), counts of one to five, places, sameness, checks of a name. They are
drawn by the rules of training (finetune/questions.py), always the same ones; the photos should be
none of training's: `dev`, or `held-out`, those of train that the recipe holds out. Of dev, colours
too: 100 boxes that a person looked at, with every colour that a person may say of them
(colour_labels.jsonl).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recipes.starter.questions.one_region import checking, placing
from recipes.starter.questions.phrases import NUMBER_WORDS
from recipes.starter.questions.scenes import Maker, whole_scene
from recipes.starter.questions.several_regions import comparing, matching, relating, siding
from recipes.starter.questions.whole_image import counting, presence
from recipes.starter.vision.photos import PhotoSet, read_photos, split

SMALLEST = 16
"""Shorter side, in pixels, of boxes that are asked about."""
KINDS: tuple[tuple[str, Maker, int], ...] = (
    ("relation", relating, 4), ("side", siding, 2), ("which", comparing, 2),
    ("presence", presence, 4), ("count", counting, 3), ("place", placing, 2),
    ("same", matching, 2), ("check", checking, 2),
)  # fmt: skip
"""What is asked, and how often of each photo."""
HELD_OUT = "held-out"
COLOURS = Path(__file__).with_name("colour_labels.jsonl")
COUNTED = frozenset(f"{word}." for word in NUMBER_WORDS[1:6])


def colour_questions() -> Iterator[dict[str, object]]:
    """Boxes of dev and their colours, as a person saw them."""
    for line in COLOURS.read_text(encoding="utf-8").splitlines():
        label = json.loads(line)
        answers = [f"{colour}." for colour in label.pop("colours")]
        yield label | {"question": "what colour is this?", "answers": answers, "kind": "colour"}


def photos_of(folder: Path, name: str) -> PhotoSet:
    """The photos of a split; those held out are a part of train."""
    if name != HELD_OUT:
        return read_photos(folder, name)
    return split(read_photos(folder, "train"))[1]


def main(folder: Path, name: str, out: Path) -> None:
    """Write the questions; a line of each kind says how many there are."""
    rng = np.random.default_rng(0)
    photos = photos_of(folder, name)
    lines, counts = [], dict.fromkeys((kind for kind, _, _ in KINDS), 0)
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        scene = whole_scene(photo, photos.names, SMALLEST)
        asked = set()
        for kind, maker, times in KINDS:
            for _ in range(times):
                sample = maker(scene, rng)
                if sample is None or (kind == "count" and sample.answer not in COUNTED):
                    continue
                boxes = photo.boxes[list(sample.regions)]  # (R, 4)
                sides = boxes[:, 2:] - boxes[:, :2]
                if (len(boxes) and sides.min() < SMALLEST) or sample in asked:
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
