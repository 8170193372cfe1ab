"""Words for what boxes, class names and captions say: articles, places, sizes, ways to ask.

Questions come in many wordings and somewhat carelessly typed, answers in one wording per kind, so
that the probability of an answer's words is the probability of what it says. It does not know
which questions there are.
"""

WITHOUT_ARTICLE = frozenset({"scissors", "skis", "broccoli"})


UNCOUNTED_GROUPS = frozenset({"food"})


def with_article(name: str) -> str:
    """`a dog`, `an orange`, `scissors`."""
    if name in WITHOUT_ARTICLE or name in UNCOUNTED_GROUPS:
        return name
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "foot": "feet", "tooth": "teeth", "ox": "oxen", "knife": "knives",
    "calf": "calves", "leaf": "leaves", "loaf": "loaves", "wolf": "wolves", "shelf": "shelves",
    "scarf": "scarves", "half": "halves", "wife": "wives", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "aircraft": "aircraft", "potato": "potatoes", "tomato": "tomatoes",
}  # fmt: skip


def plural(name: str) -> str:
    """The plural of a name's last word by the rules of English, and its commonest exceptions."""
    *before, last = name.split(" ")
    return " ".join((*before, _plural_word(last)))


def _plural_word(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("man") and word not in ("human", "german", "roman"):  # policeman, too
        return f"{word[:-3]}men"
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
