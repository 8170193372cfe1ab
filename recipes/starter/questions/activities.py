"""What someone is doing, read off captions of the picture.

A caption says it of "a man" or "two dogs", not of a box, so it is believed only where few boxes
could be meant.
"""

import re
from collections.abc import Sequence

import numpy as np

from recipes.starter.questions.phrases import coco_plural, pick

PERSON = (
    "man", "woman", "boy", "girl", "person", "child", "kid", "lady", "guy", "player", "baby",
    "surfer", "skier", "snowboarder", "skateboarder", "batter", "rider", "toddler", "teenager",
)  # fmt: skip
PEOPLE = (
    "people", "men", "women", "boys", "girls", "children", "kids", "players", "couple", "skiers",
)  # fmt: skip
MOST = {True: 3, False: 4}
"""Boxes of a class among which a caption about one, or about several, is believed of each."""
LONGEST = 5
"""Words of an answer."""
ENDS = frozenset({
    "and", "while", "with", "as", "that", "who", "which", "near", "next", "by", "from", "behind",
    "beside", "during", "for", "in", "front", "where", "because", "but", "his", "her", "their",
})  # fmt: skip
"""Words that begin what is said beside the doing."""
LEFTOVERS = frozenset({
    "a", "an", "the", "of", "up", "some", "two", "its", "top",
})  # fmt: skip
"""Words that do not end an answer, nor do those of `WHERE`."""
WHERE = frozenset({
    "on", "to", "at", "in", "into", "over", "down", "through", "across", "along", "toward",
    "towards", "about", "around", "against", "off",
})  # fmt: skip
"""Words that begin where it is done."""
NOT_ACTIVITIES = frozenset(
    {"building", "ceiling", "clothing", "something", "looking", "going", "being"}
)


def activity_of(
    name: str, count: int, captions: Sequence[str], rng: np.random.Generator
) -> str | None:
    """`riding a wave`: what one of the captions says that a `name` does; None where none does.

    count: boxes of that class in the picture.
    """
    one: tuple[str, ...] = PERSON if name == "person" else (name,)
    several: tuple[str, ...] = PEOPLE if name == "person" else (coco_plural(name),)
    if count > MOST[True]:
        one = ()
    if count > MOST[False]:
        several = ()
    subjects = (*one, *several)
    if not subjects:
        return None
    pattern = re.compile(
        rf"\b(?:{'|'.join(subjects)})\b(?: (?:is|are|that is|who is|that are|who are))? "
        r"([a-z]{2,}ing)\b((?: [a-z]+)*)"
    )
    found = []
    for caption in captions:
        match = pattern.search(caption.lower())
        if match and match[1] not in NOT_ACTIVITIES:
            found.append(trimmed([match[1], *match[2].split()]))
    return pick(sorted(found), rng) if found else None


def trimmed(words: Sequence[str]) -> str:
    """The doing without what is said beside it; a place that would be cut short is left out."""
    end = next((at for at, word in enumerate(words) if word in ENDS), len(words))
    kept = list(words[: min(end, LONGEST)])
    if end > LONGEST:
        places = [at for at, word in enumerate(kept) if word in WHERE]
        kept = kept[: places[-1]] if places else kept
    while len(kept) > 1 and kept[-1] in LEFTOVERS | WHERE:
        kept.pop()
    return " ".join(kept)
