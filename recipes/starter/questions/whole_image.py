"""Questions about the whole picture: what is there, how many, where, and a caption."""

from collections.abc import Sequence

import numpy as np

from recipes.starter.questions.phrases import (
    coco_plural,
    everyday_name,
    group_of,
    number_word,
    pick,
    place_of,
)
from recipes.starter.questions.scenes import QuestionSample, Scene, pick_box
from regionqa.data.english import with_article

IMAGE = (
    "describe this picture.", "describe this picture.", "describe the picture.",
    "what is in this picture?", "what is happening in this picture?",
    "what does this picture show?", "caption this picture.", "what do you see?", "what is this?",
    "give a short description of the picture.", "write a caption.", "what is going on here?",
    "what is the picture about?", "describe what you see.", "summarize the picture.",
)  # fmt: skip
KEPT = {1: 0.25, 2: 0.8}
"""Which share of things that are there once or twice are asked about, to count them evenly: of
things in COCO's photos 55 % are there once, 17 % twice, 8 % three times, 4 % four times."""


def absent_label(scene: Scene, present: Sequence[int], rng: np.random.Generator) -> int:
    """A class that the picture does not show; as often of the kind of one that it does as any."""
    shown = {group_of(scene.names[label]) for label in present}
    absent = sorted(set(range(len(scene.names))) - set(present))
    likely = [label for label in absent if group_of(scene.names[label]) in shown]
    chosen = likely if likely and rng.random() < 0.4 else absent
    return chosen[int(rng.integers(len(chosen)))]


def presence(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Whether the picture shows a thing; half of the answers are yes."""
    if not scene.complete:
        return None
    present = sorted({int(label) for label in scene.labels})
    if rng.random() < 0.5 and len(present) < len(scene.names):
        label = absent_label(scene, present, rng)
    else:
        label = present[int(rng.integers(len(present)))]
    name = everyday_name(scene.names[label], rng)
    one, many = with_article(name), coco_plural(name)
    question = pick(
        (f"is there {one} in the picture?", f"is there {one} in the picture?", f"is there {one}?",
         f"are there any {many}?", f"do you see {one}?", f"can you see {one} in the picture?",
         f"does the picture show {one}?", f"are there {many} in the picture?", f"any {many}?",
         f"is {one} in the picture?"),
        rng,
    )  # fmt: skip
    return QuestionSample((), question, "yes." if label in present else "no.")


def counting(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """How many of a thing the picture shows, of what one of its boxes shows.

    Seldom of one that it does not show.
    """
    if not scene.complete:
        return None
    return how_many(scene, int(scene.labels[pick_box(scene, rng)]), rng)


def counting_evenly(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """The same of things drawn alike, of those there once or twice less often than they are.

    Of what boxes show, half is there once or more than ten times: a model that is not sure learns
    to say nothing else. Here half of the answers are two to five.
    """
    if not scene.complete:
        return None
    present = sorted({int(label) for label in scene.labels})
    label = present[int(rng.integers(len(present)))]
    if rng.random() > KEPT.get(scene.count(label), 1.0):
        return None
    return how_many(scene, label, rng)


def how_many(scene: Scene, label: int, rng: np.random.Generator) -> QuestionSample:
    """How many of a class there are; one time in ten of another that is not there."""
    present = sorted({int(label) for label in scene.labels})
    if rng.random() < 0.1 and len(present) < len(scene.names):
        label = absent_label(scene, present, rng)
    many = coco_plural(everyday_name(scene.names[label], rng))
    question = pick(
        (f"how many {many} are there?", f"how many {many} are in the picture?",
         f"how many {many} do you see?", f"count the {many}.", f"how many {many}?",
         f"what is the number of {many}?", f"how many {many} can you see in the picture?"),
        rng,
    )  # fmt: skip
    count = scene.count(label)
    return QuestionSample((), question, f"{number_word(count) if count else 'none'}.")


def finding(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Where the picture shows a thing, where it shows one of it or none."""
    if not scene.complete:
        return None
    present = sorted({int(label) for label in scene.labels})
    single = [label for label in present if scene.count(label) == 1]
    if single and rng.random() < 0.75:
        label = single[int(rng.integers(len(single)))]
        box = scene.boxes[int(np.flatnonzero(scene.labels == label)[0])]
        answer = place_of(box)
    elif len(present) < len(scene.names):
        label = absent_label(scene, present, rng)
        answer = f"i see no {scene.names[label]}"
    else:
        return None
    name = everyday_name(scene.names[label], rng)
    question = pick((f"where is the {name}?", f"where in the picture is the {name}?",
                     f"where do you see the {name}?"), rng)  # fmt: skip
    return QuestionSample((), question, f"{answer}.")


def biggest(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """What the largest thing in the picture is, or the largest of one third of it."""
    if not scene.complete:
        return None
    sizes = np.prod(scene.boxes[:, 2:] - scene.boxes[:, :2], axis=1)  # (N,)
    if rng.random() < 0.5:
        rows, where = np.arange(len(sizes)), ""
    else:
        middles = (scene.boxes[:, 0] + scene.boxes[:, 2]) / 2
        third = int(rng.integers(3))
        rows = np.flatnonzero((middles * 3).astype(int).clip(0, 2) == third)
        where = ("on the left", "in the middle", "on the right")[third]
    if not len(rows):
        return None
    row = int(rows[int(sizes[rows].argmax())])
    question = pick(
        (f"what is {where}?", f"what is {where} of the picture?", f"what do you see {where}?")
        if where
        else ("what is the biggest thing in the picture?", "what is the largest object?",
              "what is the main thing in this picture?"),
        rng,
    )  # fmt: skip
    return QuestionSample((), question, f"{with_article(scene.name(row))}.")


def captioning(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """What the whole picture shows, in one of its captions."""
    if not (scene.complete and scene.captions):
        return None
    caption = pick(scene.captions, rng).strip().rstrip(".").lower()
    return QuestionSample((), pick(IMAGE, rng), f"{caption}.")
