"""Questions about one region: what it is, where, how large, of what colour, what it is doing.

Everything asked can be read off the annotations or, for colours, the pixels.
"""

import numpy as np

from recipes.starter.questions.activities import activity_of
from recipes.starter.questions.phrases import (
    ALIVE,
    GROUPS,
    everyday_name,
    group_of,
    number_word,
    pick,
    place_of,
    size_word,
)
from recipes.starter.questions.scenes import QuestionSample, Scene, pick_box
from regionqa.data.english import with_article
from regionqa.requests import NAMING_QUESTION

NAMING = (
    NAMING_QUESTION, NAMING_QUESTION, NAMING_QUESTION, "what is <region1>?", "what is it?",
    "what is in this region?", "what is in <region1>?", "what do you see in <region1>?",
    "what do you see here?", "what object is this?", "which object is in the box?",
    "what kind of object is <region1>?", "what kind of thing is this?", 
    "what is this thing called?",
    "name this object.", "name <region1>.", "name this.", "what is shown here?",
    "what is shown in <region1>?", "who or what is this?", "what is that?", "what is in the box?",
    "what am i looking at here?", "identify this.", "identify the object in <region1>.",
    "what is the object in <region1>?", "what does <region1> show?", "and this?",
)  # fmt: skip
DESCRIBING = (
    "describe <region1>.", "describe <region1>.", "describe this region.", "describe this.",
    "describe it.", "caption <region1>.", "caption this region.", "describe the object.",
    "give a short description of <region1>.", "write a caption for this region.",
    "tell me about <region1>.", "describe the box.",
)  # fmt: skip
PLACE = (
    "where is <region1>?", "where is this?", "where in the picture is <region1>?", "where is it?",
    "where in the picture is this?", "in which part of the picture is this?",
    "which part of the picture is <region1> in?", "where does <region1> lie?",
    "whereabouts in the picture is it?",
)  # fmt: skip
COLOUR = (
    "what colour is this?", "what colour is <region1>?", "what colour is it?",
    "which colour is this?", "what is the colour of <region1>?", "what is its colour?",
    "what colour does <region1> have?", "what colour is this thing?", "tell me the colour of this.",
)  # fmt: skip
SIZE = (
    "how big is this?", "how large is <region1>?", "is this large or small?", "how big is it?",
    "how much of the picture does <region1> cover?",
)  # fmt: skip
ACTIVITY = (
    "what is <region1> doing?", "what is it doing?", "what is this doing?", 
    "what is going on here?", "what is happening in <region1>?", "what is <region1> up to?",
)  # fmt: skip
PERSON_ACTIVITY = ("what is this person doing?", "what is he doing?", "what is she doing?",
                "what are they doing?", "what is the person in <region1> doing?")  # fmt: skip
SAME_AS_THIS = (
    "how many of these are in the picture?", "how many of these are there?",
    "how many of <region1> are in the picture?", "how many things like this are there?",
    "how many of them are there?", "how many like this do you see?",
    "how many more or less like this are in the picture?",
)  # fmt: skip
SHARES = ((0.02, "very small."), (0.08, "small."), (0.3, "medium-sized."), (2.0, "large."))
"""Words for what share of the picture a box covers, at most."""


def naming(scene: Scene, rng: np.random.Generator) -> QuestionSample:
    """What one region is."""
    row = pick_box(scene, rng)
    return QuestionSample((row,), pick(NAMING, rng), f"{with_article(scene.name(row))}.")


def describing(scene: Scene, rng: np.random.Generator) -> QuestionSample:
    """What a region is, its colour, how large and where."""
    row = pick_box(scene, rng)
    box, colour = scene.boxes[row], scene.colours[row] if scene.colours else None
    name = scene.name(row)
    tint = f"{colour} " if colour and name != "person" else ""  # whose would be their clothes'
    words = f"{size_word(box)}{tint}{name}"
    return QuestionSample((row,), pick(DESCRIBING, rng), f"{with_article(words)} {place_of(box)}.")


def position(scene: Scene, rng: np.random.Generator) -> QuestionSample:
    """Where a region is."""
    row = pick_box(scene, rng)
    return QuestionSample((row,), pick(PLACE, rng), f"{place_of(scene.boxes[row])}.")


def sizing(scene: Scene, rng: np.random.Generator) -> QuestionSample:
    """How large a region is."""
    row = pick_box(scene, rng)
    sides = scene.boxes[row][2:] - scene.boxes[row][:2]
    words = next(words for most, words in SHARES if float(sides.prod()) <= most)
    return QuestionSample((row,), pick(SIZE, rng), words)


def colouring(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """What colour a region has, or whether it has one."""
    row = pick_box(scene, rng)
    colour = scene.colours[row] if scene.colours else None
    if colour is None:
        return None
    if rng.random() < 0.7:
        return QuestionSample((row,), pick(COLOUR, rng), f"{colour}.")
    others = sorted({other for other in scene.colours if other} - {colour}) or ["blue", "red"]
    asked = colour if rng.random() < 0.5 else pick(others, rng)
    subject = pick(("this", "<region1>", "it"), rng)
    answer = "yes." if asked == colour else f"no, {colour}."
    return QuestionSample((row,), f"is {subject} {asked}?", answer)


def checking(scene: Scene, rng: np.random.Generator) -> QuestionSample:
    """Whether a region is a named thing; half of the answers are yes."""
    row = pick_box(scene, rng)
    truth = int(scene.labels[row])
    asked = truth if rng.random() < 0.5 else other_label(truth, scene, rng)
    subject = pick(("this", "this", "<region1>", "it", "that"), rng)
    name = with_article(everyday_name(scene.names[asked], rng))
    question = pick(
        (f"is {subject} {name}?",) * 4
        + (f"could {subject} be {name}?", f"does {subject} show {name}?", f"{name}?",
           f"do you see {name} here?", f"is there {name} in {subject}?",
           f"would you say {subject} is {name}?"),
        rng,
    )  # fmt: skip
    thing = with_article(scene.names[truth])
    return QuestionSample((row,), question, f"{'yes' if asked == truth else 'no'}, {thing}.")


def choosing(scene: Scene, rng: np.random.Generator) -> QuestionSample:
    """Which of two things a region is."""
    row = pick_box(scene, rng)
    truth = int(scene.labels[row])
    pair = [scene.names[truth], scene.names[other_label(truth, scene, rng)]]
    if rng.random() < 0.5:
        pair.reverse()
    first, second = (with_article(everyday_name(name, rng)) for name in pair)
    subject = pick(("this", "<region1>", "it"), rng)
    question = pick((f"is {subject} {first} or {second}?", f"{first} or {second}?"), rng)
    return QuestionSample((row,), question, f"{with_article(scene.names[truth])}.")


def grouping(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """Whether a region is of a wider kind: an animal, food; about half of the answers are yes."""
    row = pick_box(scene, rng)
    name = scene.name(row)
    own = group_of(name)
    asked = own if own and rng.random() < 0.5 else pick(tuple(GROUPS), rng)
    subject = pick(("this", "<region1>", "it"), rng)
    answer = f"{'yes' if asked == own else 'no'}, {with_article(name)}."
    return QuestionSample((row,), f"is {subject} {with_article(asked)}?", answer)


def other_label(truth: int, scene: Scene, rng: np.random.Generator) -> int:
    """Another class: one from the same picture, or of the same kind, or any."""
    others = sorted({int(label) for label in scene.labels} - {truth})
    kind = GROUPS.get(group_of(scene.names[truth]) or "", ())
    alike = [row for row, name in enumerate(scene.names) if name in kind and row != truth]
    draw = rng.random()
    if others and draw < 0.4:
        return others[int(rng.integers(len(others)))]
    if alike and draw < 0.7:
        return alike[int(rng.integers(len(alike)))]
    return (truth + int(rng.integers(1, len(scene.names)))) % len(scene.names)


def activity(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """What a region is doing, by the captions; a thing that is not alive does nothing."""
    row = pick_box(scene, rng)
    name = scene.name(row)
    if name not in ALIVE:
        return QuestionSample((row,), pick(ACTIVITY, rng), f"nothing, it is {with_article(name)}.")
    if not (scene.complete and scene.captions):
        return None
    answer = activity_of(name, scene.count(int(scene.labels[row])), scene.captions, rng)
    if answer is None:
        return None
    questions = (*ACTIVITY, *PERSON_ACTIVITY) if name == "person" else ACTIVITY
    return QuestionSample((row,), pick(questions, rng), f"{answer}.")


def counting_alike(scene: Scene, rng: np.random.Generator) -> QuestionSample | None:
    """How many things like a region the picture shows."""
    if not scene.complete:
        return None
    row = pick_box(scene, rng)
    answer = f"{number_word(scene.count(int(scene.labels[row])))}."
    return QuestionSample((row,), pick(SAME_AS_THIS, rng), answer)
