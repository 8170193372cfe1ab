"""English: articles, plurals and counts of nouns, and the words of texts."""

import re

WITHOUT_ARTICLE = frozenset({"scissors", "skis", "broccoli", "food"})

BYTES_PER_TOKEN = 4
"""Of English text, where no tokenizer counts."""

IRREGULAR_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen", "knife": "knives",
    "calf": "calves", "leaf": "leaves", "loaf": "loaves", "wolf": "wolves", "shelf": "shelves",
    "scarf": "scarves", "half": "halves", "wife": "wives", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "aircraft": "aircraft", "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
"""A word of a text, without digits."""
_FUNCTION_WORDS = """
a about also am an and any are as at be because been being both but by can could did do does each
for from had has have he her here his how i if in into is it it's its itself just many may might
more most my no nor not of on one only or other our own same she should so some such than that the
their them then there these they this those to too very was we were what when where which while who
whom whose why will with would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that tell nothing about what a text is about."""


def with_article(noun: str) -> str:
    """Put the indefinite article before a noun: `a dog`, `an orange`, `scissors`."""
    if noun in WITHOUT_ARTICLE:
        return noun
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def plural(noun: str) -> str:
    """Put the last word of a noun into the plural: `dogs`, `wine glasses`, `people`."""
    *before, last = noun.split(" ")
    return " ".join((*before, _plural_word(last)))


def _plural_word(word: str) -> str:
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith("man") and word not in ("human", "german", "roman"):  # policeman
        return f"{word[:-3]}men"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def counted(count: int, noun: str) -> str:
    """Put a number before a noun: `1 record`, `2,478 records`."""
    return f"{count:,} {noun if count == 1 else plural(noun)}"
