"""What is asked how often, in which form, and the file of training records."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from recipes.starter.records import one_region as one
from recipes.starter.records import several_regions as several
from recipes.starter.records import whole_image as whole
from recipes.starter.records.scenes import DrawnQuestion, Maker, Scene
from recipes.starter.records.untaught import Refusals, words_of
from recipes.starter.records.words import TABLES, Rng, SceneError, as_typed, listed, many_of
from regionqa.boxes.fields import json_text
from regionqa.data.convert import as_document
from regionqa.data.records import Record, Turn
from regionqa.errors import DataError
from regionqa.files import write_whole
from regionqa.language.references import REFERENCE
from regionqa.regions import Box, Region


def answered(maker: Maker, beginning: str) -> Maker:
    """Restrict a maker to answers that begin so, by which yes and no are asked equally often."""

    def maker_of_answer(scene: Scene, rng: Rng) -> DrawnQuestion:
        drawn = maker(scene, rng)
        if not drawn.answer.startswith(beginning):
            raise SceneError
        return drawn

    return maker_of_answer


TAUGHT: Mapping[str, tuple[Maker, float]] = {
    "naming": (one.naming, 0.26), "describing": (one.describing, 0.05),
    "fine name": (one.fine_naming, 0.03), "position": (one.position, 0.03),
    "size": (one.sizing, 0.01), "colour": (one.colouring, 0.13),
    "colour check": (one.colour_checking, 0.03), "check": (one.checking, 0.16),
    "group": (one.grouping, 0.02), "choosing": (one.choosing, 0.03),
    "activity": (one.activity, 0.02), "count alike": (one.counting_alike, 0.01),
    "next to": (one.neighbouring, 0.01), "shape": (one.shaping, 0.015),
    "material": (one.material, 0.015), "several": (several.naming_several, 0.03),
    "relation": (several.relating, 0.18), "side": (several.siding, 0.04),
    "which": (several.comparing, 0.14), "location": (several.locating, 0.03),
    "order": (several.ordering, 0.05), "same: yes": (answered(several.matching, "yes"), 0.02),
    "same: no": (answered(several.matching, "no"), 0.02),
    "overlap: yes": (answered(several.overlapping, "yes"), 0.005),
    "overlap: no": (answered(several.overlapping, "no"), 0.005),
    "pointing": (several.pointing, 0.03),
    "presence: yes": (answered(whole.presence, "yes"), 0.13),
    "presence: no": (answered(whole.presence, "no"), 0.13), "finding": (whole.finding, 0.015),
    "biggest": (whole.biggest, 0.015), "caption": (whole.captioning, 0.08),
    "count: 0": (whole.counting(0, 0), 0.01), "count: 6+": (whole.counting(6, 99), 0.01),
    **{f"count: {number}": (whole.counting(number, number), 0.03) for number in range(1, 6)},
}  # fmt: skip
"""Maker of each taught kind, and how often it is asked, up to a common factor. What stands before a
colon is the kind's name in records."""
MOST_REGIONS = 6
CROWDED = 0.3
"""Share of the questions that name all of their regions and are given further ones."""
LISTED = 0.3
"""Share of the questions with choices that list them."""


def mixture(refused: float = 0.12, **changed: float) -> dict[str, float]:
    """Shares of all kinds, which sum to 1.

    Args:
        refused: Share of the questions that are refused.
        changed: Shares of taught kinds in place of those of `TAUGHT`.
    """
    shares = {kind: share for kind, (_, share) in TAUGHT.items()} | changed
    scale = (1 - refused) / sum(shares.values())
    taught = {kind: share * scale for kind, share in shares.items()}
    return taught | {"untaught": refused / 2, "corrupted": refused / 2}


def all_makers(scenes: Sequence[Scene]) -> dict[str, Maker]:
    """The makers of all kinds; strange words are those of captions that no taught question has."""
    chances = np.array([share for _, share in TAUGHT.values()])
    makers = [maker for maker, _ in TAUGHT.values()]

    def taught(scene: Scene, rng: Rng) -> DrawnQuestion:
        return makers[int(rng.choice(len(makers), p=chances / chances.sum()))](scene, rng)

    tables = (table for section, table in TABLES.items() if section != "untaught")
    names = {name for scene in scenes for name in scene.names}
    known = words_of(
        [*names, *map(many_of, names)]
        + [text for table in tables for key, texts in table.items() for text in (key, *texts)]
    )
    seen = words_of(caption for scene in scenes for caption in scene.captions)
    refusals = Refusals(taught, seen - known)
    return {kind: maker for kind, (maker, _) in TAUGHT.items()} | {
        "untaught": refusals.untaught,
        "corrupted": refusals.corrupted,
    }


def as_asked(drawn: DrawnQuestion, scene: Scene, rng: Rng) -> DrawnQuestion:
    """Put a question among further regions, list its choices, and type it, each sometimes."""
    boxes, texts = drawn.boxes, [drawn.text, drawn.answer, *drawn.choices]
    count = len(boxes)
    named = len(set(REFERENCE.findall(drawn.text)))
    if 0 < count < MOST_REGIONS and count == named and rng.random() < CROWDED:
        further = scene.boxes_to_compare(int(rng.integers(1, MOST_REGIONS - count + 1)), rng)
        order = rng.permutation(count + len(further))
        boxes = np.concatenate([boxes, further])[order]
        number = np.argsort(order) + 1  # of each region, in the new order
        texts = [
            REFERENCE.sub(lambda found: f"<region{number[int(found[1]) - 1]}>", text)
            for text in texts
        ]
    text, answer, *choices = texts
    answer, *choices = (REFERENCE.sub(r"region \1", each) for each in (answer, *choices))
    listing = choices and " or " not in text and rng.random() < LISTED
    text = as_typed(text, rng)
    if listing:
        options = [choice.rstrip(".") for choice in choices]
        lettered = " ".join(
            f"({each}) {option}" for each, option in zip("abcdef", options, strict=False)
        )
        text += (
            f" {lettered if ',' in answer or rng.random() < 0.4 else listed(options, 'or') + '?'}"
        )
    return DrawnQuestion(text, answer, boxes, tuple(choices))


def draw_questions(
    scenes: Sequence[Scene], shares: Mapping[str, float], seed: int, per_scene: int = 4
) -> Iterator[tuple[str, Scene, DrawnQuestion]]:
    """Draw questions without end, several about each scene at a time.

    Not every scene allows every kind, so kinds are drawn by how far they are behind their share.

    Raises:
        DataError: No scene allows a question of these kinds.
    """
    rng, makers = np.random.default_rng(seed), all_makers(scenes)
    kinds = [kind for kind, share in shares.items() if share > 0]
    wanted, made = np.array([shares[kind] for kind in kinds]), np.zeros(len(kinds))

    def next_question(scene: Scene) -> tuple[int, DrawnQuestion] | None:
        behind = np.maximum(wanted * (made.sum() + 1) - made, wanted * 0.02)
        for row in rng.choice(len(kinds), len(kinds), replace=False, p=behind / behind.sum()):
            with suppress(SceneError):
                return int(row), as_asked(makers[kinds[row]](scene, rng), scene, rng)
        return None

    while True:
        before = made.sum()
        for place in rng.permutation(len(scenes)):
            for _ in range(per_scene):
                if found := next_question(scenes[place]):
                    made[found[0]] += 1
                    yield kinds[found[0]], scenes[place], found[1]
        if made.sum() == before:
            raise DataError(f"none of {len(scenes)} scenes allows a question: {', '.join(kinds)}")


def write_records(
    scenes: Sequence[Scene],
    shares: Mapping[str, float],
    count: int,
    seed: int,
    path: Path,
    per_scene: int = 4,
) -> Counter[str]:
    """Write training records of one turn as JSON lines; the same arguments write the same bytes.

    Args:
        scenes: What is asked about.
        shares: Share of each kind; see `mixture`.
        count: Number of records.
        seed: Random seed.
        path: The file. Images in or below its folder are named relative to it.
        per_scene: Questions about an image that stand together.

    Returns:
        The number of records of each kind.
    """
    written: Counter[str] = Counter()
    questions = draw_questions(scenes, shares, seed, per_scene)
    with write_whole(path) as file:
        for kind, scene, drawn in islice(questions, count):
            sides = np.array(scene.size * 2)
            corners = (drawn.boxes * sides).astype(float).round(2).clip(0, sides)  # (R, 4)
            regions = tuple(Region(Box(*box)) for box in corners.tolist())
            turn, name = Turn(drawn.text, drawn.answer), kind.partition(":")[0]
            record = Record(scene.image, regions, (turn,), kind, kind=name)
            document = as_document(record, path.parent.absolute())
            document |= {"choices": drawn.choices} if drawn.choices else {}
            file.write(json_text(document).encode())
            written[kind] += 1
    return written
