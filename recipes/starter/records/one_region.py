"""Questions about one region: what it is, where, how large, of what colour, what it is doing."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from recipes.starter.records import words
from recipes.starter.records.scenes import DrawnQuestion, Maker, Scene, area_of, place_of
from recipes.starter.records.words import Rng, SceneError, ask, pick
from regionqa.bundles.card import ConfidenceCard
from regionqa.data.english import with_article

UNSURE = ConfidenceCard.unsure
AREAS = ((0.02, "very small"), (0.08, "small"), (0.3, "medium-sized"), (2.0, "large"))
"""Words for the share of the image that a box covers, at most."""
ACTIVITIES = words.TABLES["activities"]
FEW = (3, 4)
"""Things of a class among which a caption about one, or about several, counts for each."""
LONGEST = 5
"""Words of an activity."""


def open_question(kind: str, answer: Callable[[Scene, int, Rng], str]) -> Maker:
    """Make the maker of a kind of questions about a box, from what is answered of its row."""

    def maker(scene: Scene, rng: Rng) -> DrawnQuestion:
        (row,) = scene.rows(1, rng)
        text = ask(kind, rng, **scene.slots(int(scene.labels[row]), rng))
        reply = answer(scene, row, rng).rstrip(".")
        return DrawnQuestion(text, f"{reply}.", scene.fractions[[row]])

    return maker


def choice_of_word(
    kind: str, options: Iterable[str], word: Callable[[Scene, int], str | None], doubt: float = 0
) -> Maker:
    """Make the maker of a kind whose answer is one word of several; four are to choose from.

    doubt: how often it is asked where there is no answer, to be refused.
    """

    def maker(scene: Scene, rng: Rng) -> DrawnQuestion:
        (row,) = scene.rows(1, rng)
        right = word(scene, row)
        if right is None:
            return DrawnQuestion(ask(kind, rng), unsure(doubt, rng), scene.fractions[[row]])
        others = rng.permutation([each for each in options if each != right])[:3]
        choices = tuple(f"{each}." for each in rng.permutation([right, *others]))
        return DrawnQuestion(ask(kind, rng), f"{right}.", scene.fractions[[row]], choices)

    return maker


def unsure(share: float, rng: Rng) -> str:
    """Refuse a share of the questions that have no answer, and do not ask the others."""
    if rng.random() < share:
        return UNSURE
    raise SceneError


def known_colour(scene: Scene, row: int) -> str | None:
    """The colour of a box, if it is known."""
    return scene.colours[row] if scene.colours else None


def described(scene: Scene, row: int, rng: Rng) -> str:
    """`a large black cat on the left`."""
    area, name = area_of(scene.fractions[row]), scene.name(row)
    colour = known_colour(scene, row) if name != "person" else None  # it would be of the clothes
    size = "large" if area > 0.3 else "small" if area < 0.015 else None
    noun = " ".join(filter(None, (size, colour, name)))
    return f"{with_article(noun)} {place_of(scene.fractions[row])}"


def fine_name(scene: Scene, row: int, rng: Rng) -> str:
    """`a tabby cat`."""
    fine = scene.fine_names[row] if scene.fine_names else None
    return with_article(fine) if fine else unsure(0.2, rng)


def nearest(scene: Scene, row: int, rng: Rng) -> str:
    """The nearest other thing, if it is near."""
    boxes = scene.fractions
    apart = np.maximum(boxes[:, :2] - boxes[row, 2:], boxes[row, :2] - boxes[:, 2:])  # (N, 2)
    gaps = apart.clip(0).sum(axis=1)  # between edges
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = gaps + 0.2 * np.abs(middles - middles[row]).sum(axis=1)
    distance[row] = np.inf
    other = int(distance.argmin())
    if other == row or gaps[other] > 0.25:
        raise SceneError
    return scene.thing(other)


def done(scene: Scene, row: int, rng: Rng) -> str:
    """`riding a wave`, by a caption; a thing that is not alive does nothing."""
    name = scene.name(row)
    if name == "person" or words.GROUP_OF.get(name) == "animal":
        count = scene.count(int(scene.labels[row]))
        return pick(list(activities(name, count, scene.captions)), rng)
    if rng.random() < 0.3:
        return f"nothing, it is {with_article(name)}"
    raise SceneError


naming = open_question("naming", lambda scene, row, _: scene.thing(row))
describing = open_question("describing", described)
fine_naming = open_question("fine", fine_name)
position = open_question("position", lambda scene, row, _: place_of(scene.fractions[row]))
sizing = open_question(
    "size", lambda scene, row, _: next(w for a, w in AREAS if area_of(scene.fractions[row]) <= a)
)
counting_alike = open_question(
    "counting alike",
    lambda scene, row, _: words.number_word(max(1, scene.count(int(scene.labels[row])))),
)
neighbouring = open_question("neighbouring", nearest)
activity = open_question("activity", done)
colouring = choice_of_word("colour", words.COLOURS, known_colour)
shaping = choice_of_word(
    "shape", words.TABLES["shapes"], lambda scene, row: words.SHAPE_OF.get(scene.name(row)), 0.1
)
material = choice_of_word(
    *("material", words.TABLES["materials"]),
    lambda scene, row: words.MATERIAL_OF.get(scene.name(row)),
    0.1,
)


def colour_checking(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether a region has a colour; half of the answers are yes."""
    (row,) = scene.rows(1, rng)
    right = known_colour(scene, row)
    if right is None:
        raise SceneError
    others = {other for other in scene.colours if other} - {right}
    asked = right if rng.random() < 0.5 else pick(sorted(others) or words.COLOURS, rng)
    answer = "yes." if asked == right else f"no, {right}."
    return DrawnQuestion(ask("colour check", rng, colour=asked), answer, scene.fractions[[row]])


def other_classes(scene: Scene, row: int, count: int, rng: Rng) -> list[int]:
    """Draw classes that a box does not show."""
    taken = np.arange(len(scene.names)) == scene.labels[row]
    return scene.others(taken, count, rng)


def checking(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether a region is a named thing; half of the answers are yes."""
    (row,) = scene.rows(1, rng)
    right = rng.random() < 0.5
    asked = int(scene.labels[row]) if right else other_classes(scene, row, 1, rng)[0]
    text = ask("checking", rng, **scene.slots(asked, rng))
    answer = f"{'yes' if right else 'no'}, {scene.thing(row)}."
    return DrawnQuestion(text, answer, scene.fractions[[row]])


def grouping(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Whether a region is of a wider kind: an animal, food."""
    (row,) = scene.rows(1, rng)
    own = words.GROUP_OF.get(scene.name(row))
    asked = own if own and rng.random() < 0.5 else pick(sorted(words.TABLES["groups"]), rng)
    text = ask("checking", rng, thing=with_article(asked))
    answer = f"{'yes' if asked == own else 'no'}, {scene.thing(row)}."
    return DrawnQuestion(text, answer, scene.fractions[[row]])


def choosing(scene: Scene, rng: Rng) -> DrawnQuestion:
    """Which of two or four things a region is."""
    (row,) = scene.rows(1, rng)
    labels = [int(scene.labels[row]), *other_classes(scene, row, pick((1, 3), rng), rng)]
    labels = [labels[place] for place in rng.permutation(len(labels))]
    options = words.listed([scene.slots(label, rng)["thing"] for label in labels], "or")
    choices = tuple(f"{with_article(scene.names[label])}." for label in labels)
    text = ask("choosing", rng, options=options)
    return DrawnQuestion(text, f"{scene.thing(row)}.", scene.fractions[[row]], choices)


def activities(name: str, count: int, captions: Iterable[str]) -> Iterator[str]:
    """Read off captions what they say that one of `count` things of a class is doing.

    A caption does not say which of the boxes it means, so it is used only where there are few.
    """
    one: tuple[str, ...] = (name,)
    several: tuple[str, ...] = (words.many_of(name),)
    if name == "person":
        one, several = ACTIVITIES["one"], ACTIVITIES["several"]
    subjects = (*one * (count <= FEW[0]), *several * (count <= FEW[1]))
    verb = r"(?: that| who)?(?: is| are)? ([a-z]{2,}ing)\b((?: [a-z]+)*)"
    for caption in captions if subjects else ():
        found = re.search(rf"\b(?:{'|'.join(subjects)}){verb}", caption.lower())
        if found and found[1] not in ACTIVITIES["not_done"]:
            yield shortened([found[1], *found[2].split()])


def shortened(activity: Sequence[str]) -> str:
    """End an activity before what is said beside it; a place is named whole or not at all."""
    ends, places = ACTIVITIES["ends"], ACTIVITIES["places"]
    end = next((at for at, word in enumerate(activity) if word in ends), len(activity))
    kept = list(activity[: min(end, LONGEST)])
    starts = [at for at, word in enumerate(kept) if word in places]
    if end > LONGEST and starts:
        kept = kept[: starts[-1]]
    while len(kept) > 1 and kept[-1] in (*ACTIVITIES["loose"], *places):
        kept.pop()
    return " ".join(kept)
