"""English nouns: articles, plurals and counts."""

WITHOUT_ARTICLE = frozenset({"scissors", "skis", "broccoli", "food"})

IRREGULAR_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen", "knife": "knives",
    "calf": "calves", "leaf": "leaves", "loaf": "loaves", "wolf": "wolves", "shelf": "shelves",
    "scarf": "scarves", "half": "halves", "wife": "wives", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "aircraft": "aircraft", "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip


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
