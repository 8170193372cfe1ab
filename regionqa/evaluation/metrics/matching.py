"""Whether a reply says the same as an answer: normalised texts, yes or no, numbers, choices.

Replies come as sentences ("yes, it is a dog.", "there are three."), answers as words. It reads
words only, in English.
"""

import re
from collections.abc import Sequence

from regionqa.evaluation.metrics.classes import ClassNames, Words, words_of

NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "no": 0, "none": 0, "nobody": 0, "nothing": 0, "a": 1, "an": 1, "single": 1, "pair": 2,
    "couple": 2,
}  # fmt: skip
REGION = re.compile(r"<?\bregion([0-9]{1,9})\b>?", re.IGNORECASE)
"""A region as questions and some models write it; others say "region 1"."""
COUNTED = frozenset(NUMBERS) - {"a", "an", "single", "pair", "couple", "no", "nobody", "nothing"}
"""Number words that mean a number wherever they stand."""
ARTICLES = frozenset({"a", "an", "the"})
FILLERS = tuple(
    tuple(phrase.split())
    for phrase in (
        "it is", "it s", "this is", "that is", "that s", "they are", "these are", "there is",
        "there are", "there s", "the answer is", "i see", "i think it is", "the color is",
        "the colour is", "its color is", "its colour is", "in this region there is",
    )
)  # fmt: skip
"""What a sentence begins with that says nothing itself."""


def normalise_text(text: str) -> str:
    """The words that say something: lower case, no marks, no articles, no `it is` before them.

    Numbers up to twenty become digits, so that "three" and "3" are the same; so are "<region1>" and
    "region 1".
    """
    words = without_filler(words_of(REGION.sub(r"region \1", text)))
    kept = [word for word in words if word not in ARTICLES] or list(words)
    return " ".join(str(NUMBERS[word]) if word in COUNTED else word for word in kept)


def without_filler(words: Words) -> Words:
    """The words after what a sentence begins with, where anything is left."""
    for filler in sorted(FILLERS, key=len, reverse=True):
        if words[: len(filler)] == filler and len(words) > len(filler):
            return words[len(filler) :]
    return words


def mentions(reply: str, answer: str) -> bool:
    """Whether all of the answer's words stand in the reply, together and in order."""
    within, wanted = normalise_text(reply).split(), normalise_text(answer).split()
    span = len(wanted)
    return bool(span) and any(
        within[start : start + span] == wanted for start in range(len(within) - span + 1)
    )


def yes_or_no(text: str) -> bool | None:
    """True for yes, False for no, None for neither; what comes first counts."""
    for word in words_of(text):
        if word in ("yes", "yeah", "yep", "true", "correct"):
            return True
        if word in ("no", "nope", "not", "false", "incorrect", "isn", "aren"):
            return False
    return None


def number_in(text: str) -> int | None:
    """The number that a reply to "how many?" gives, in digits or words; the first one counts."""
    words = without_filler(words_of(text))
    for word in words:
        if re.fullmatch(r"[0-9]{1,6}", word):
            return int(word)
        if word in COUNTED:
            return NUMBERS[word]
    for word in words:
        if word in NUMBERS:
            return NUMBERS[word]
    return None


def is_count(answer: str) -> bool:
    """Whether an answer is a number and nothing else."""
    text = normalise_text(answer)
    return bool(re.fullmatch(r"[0-9]{1,6}", text)) or text in ("no", "none", "nobody")


def chosen(reply: str, choices: Sequence[str]) -> int | None:
    """Which of the choices a reply takes: the one it equals, else the first one it mentions.

    A single letter takes the choice of that place (a, b, c, ...), unless it is a choice itself.
    """
    said = normalise_text(reply)
    plain = [normalise_text(choice) for choice in choices]
    if said in plain:
        return plain.index(said)
    letter = words_of(reply)
    if len(letter) == 1 and len(letter[0]) == 1 and "a" <= letter[0] < chr(ord("a") + len(choices)):
        return ord(letter[0]) - ord("a")
    named = ClassNames(plain).named(said)
    return plain.index(named) if named is not None else None
