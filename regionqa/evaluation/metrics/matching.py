"""Matching of replies to known answers: normalised texts, yes or no, numbers, choices.

Replies are often sentences ("yes, it is a dog.", "there are three.") where answers are words.
English only.
"""

import re
import string
from collections.abc import Sequence

from regionqa.evaluation.metrics.classes import ClassNames, Words, words_of
from regionqa.language.number_words import COUNTED, NUMBERS

REGION = re.compile(r"<?\bregion([0-9]{1,9})\b>?", re.IGNORECASE)
"""A reference to a region, as questions and some models write it; others write "region 1"."""
LETTERS = string.ascii_lowercase
ARTICLES = frozenset({"a", "an", "the"})
FILLERS = tuple(
    tuple(phrase.split())
    for phrase in (
        "it is", "it s", "this is", "that is", "that s", "they are", "these are", "there is",
        "there are", "there s", "the answer is", "i see", "i think it is", "the color is",
        "the colour is", "its color is", "its colour is", "in this region there is",
    )
)  # fmt: skip
"""Openings of sentences that carry no information."""


def normalise_text(text: str) -> str:
    """Return a text in lower case without punctuation, articles and an opening such as "it is".

    Number words up to twenty become digits, so that "three" equals "3"; "<region1>" becomes "region
    1".
    """
    words = without_filler(words_of(REGION.sub(r"region \1", text)))
    kept = [word for word in words if word not in ARTICLES] or list(words)
    return " ".join(str(NUMBERS[word]) if word in COUNTED else word for word in kept)


def without_filler(words: Words) -> Words:
    """Return the words after an opening of `FILLERS`, unless nothing would remain."""
    for filler in sorted(FILLERS, key=len, reverse=True):
        if words[: len(filler)] == filler and len(words) > len(filler):
            return words[len(filler) :]
    return words


def mentions(reply: str, answer: str) -> bool:
    """Return whether the reply contains the answer's words, contiguous and in order."""
    within, wanted = normalise_text(reply).split(), normalise_text(answer).split()
    span = len(wanted)
    return bool(span) and any(
        within[start : start + span] == wanted for start in range(len(within) - span + 1)
    )


def yes_or_no(text: str) -> bool | None:
    """Return True for yes, False for no, None for neither; the first such word counts."""
    for word in words_of(text):
        if word in ("yes", "yeah", "yep", "true", "correct"):
            return True
        if word in ("no", "nope", "not", "false", "incorrect", "isn", "aren"):
            return False
    return None


def number_in(text: str) -> int | None:
    """Return the number in a reply to "how many?", in digits or words; None if there is none.

    The first number counts. Words such as "a" or "no" count only if there is no other number.
    """
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
    """Return whether an answer is a number and nothing else."""
    text = normalise_text(answer)
    return bool(re.fullmatch(r"[0-9]{1,6}", text)) or text in ("no", "none", "nobody")


def chosen_index(reply: str, choices: Sequence[str]) -> int | None:
    """Return the index of the choice that a reply gives; None if it gives none.

    The choice that it equals, else the one whose letter it is (a, b, c, ...), else the first one
    that it mentions.
    """
    text = normalise_text(reply)
    normalised = [normalise_text(choice) for choice in choices]
    if text in normalised:
        return normalised.index(text)
    words = words_of(reply)
    if len(words) == 1 and words[0] in tuple(LETTERS[: len(choices)]):
        return LETTERS.index(words[0])
    named = ClassNames(normalised).named(text)
    return normalised.index(named) if named is not None else None
