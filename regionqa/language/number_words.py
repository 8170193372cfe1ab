"""Numbers in answers, in digits or in English words."""

import re

NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "no": 0, "none": 0, "nobody": 0, "nothing": 0, "a": 1, "an": 1, "single": 1, "pair": 2,
    "couple": 2,
}  # fmt: skip
COUNTED = frozenset(NUMBERS) - {"a", "an", "single", "pair", "couple", "no", "nobody", "nothing"}
"""Number words that are a number in any context."""
NUMBER = re.compile(
    rf"(?:(?:about|(?:more|fewer|less) than) )?(?:[0-9]{{1,6}}|{'|'.join(sorted(COUNTED))})"
)
"""An answer that is a number and nothing else, in lower case."""


def is_number(answer: str) -> bool:
    """Return whether an answer is a number and nothing else: `three.`, `12`, `more than ten`."""
    return NUMBER.fullmatch(answer.strip().rstrip(".").casefold()) is not None
