"""Questions that the starter is to refuse: of many other kinds, and taught ones corrupted."""

import re
from collections.abc import Iterable

from recipes.starter.records.one_region import UNSURE
from recipes.starter.records.scenes import DrawnQuestion, Maker, Scene
from recipes.starter.records.words import IT, TABLES, Rng, SceneError, pick

UNTAUGHT = TABLES["untaught"]
WORD = re.compile(r"(?<![<\w])(?!the\b|you\b)[a-z']{3,}(?![\w>])")
"""A word of some meaning, but not that of `<region1>`."""
MADE_UP = 0.2
"""Share of the random words that are letters drawn at random."""


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of some texts."""
    return {word for text in texts for word in WORD.findall(text.lower())}


class Refusals:
    """Makers of questions that are answered by "I am not sure."."""

    def __init__(self, taught: Maker, strange: Iterable[str]) -> None:
        """Keep what questions are made from.

        Args:
            taught: Makes questions of all taught kinds.
            strange: Words that no taught question holds.
        """
        self.taught = taught
        self.strange = sorted(strange)

    def untaught(self, scene: Scene, rng: Rng) -> DrawnQuestion:
        """Ask what was never taught: of thoughts, brands, sums, in other languages, ..."""
        text = pick(UNTAUGHT[pick(list(UNTAUGHT), rng)], rng)
        slots = scene.slots(int(rng.integers(len(scene.names))), rng)
        numbers = {name: str(rng.integers(2, 100)) for name in ("n", "m")}
        text = text.format(it=pick(IT, rng), word=self.word(rng), **slots, **numbers)
        fewest = int("<region1>" in text)
        return DrawnQuestion(
            text, UNSURE, scene.boxes_to_compare(pick((fewest, 1, 1, 2), rng), rng)
        )

    def corrupted(self, scene: Scene, rng: Rng) -> DrawnQuestion:
        """Make a taught question strange or meaningless, by its words or their order."""
        drawn, other = self.taught(scene, rng), self.taught(scene, rng)
        first, second = (each.text.rstrip("?.").split(" ") for each in (drawn, other))
        draw, text, boxes = rng.random(), drawn.text, drawn.boxes
        if draw < 0.6:  # other words
            found = list(WORD.finditer(text))
            count = min(len(found), pick((1, 1, 2, 3), rng))
            for place in sorted(rng.choice(len(found), count, replace=False) if found else ())[
                ::-1
            ]:
                text = text[: found[place].start()] + self.word(rng) + text[found[place].end() :]
        elif draw < 0.8 and len(first) > 3:  # another order
            text = " ".join(rng.permutation(first)) + "?"
        else:  # the end of one and the beginning of another
            text = " ".join(first[len(first) // 2 :] + second[: len(second) // 2 + 1]) + "?"
            boxes = max(boxes, other.boxes, key=len)
        if text.rstrip("?.") == drawn.text.rstrip("?."):
            raise SceneError
        return DrawnQuestion(text, UNSURE, boxes)

    def word(self, rng: Rng) -> str:
        """Draw a word that no taught question holds."""
        if rng.random() < MADE_UP or not self.strange:
            letters = rng.integers(ord("a"), ord("z") + 1, int(rng.integers(3, 10)))
            return "".join(map(chr, letters))
        return pick(self.strange, rng)
