"""The words of words.toml, and questions as people type them.

Questions come in many wordings and somewhat carelessly typed, answers in one wording per kind, so
that the probability of an answer's words is the probability of what it says.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from regionqa.data.english import plural

Option = TypeVar("Option")
Table = Mapping[str, tuple[str, ...]]
Rng = np.random.Generator

TABLES: dict[str, Table] = {
    section: {
        key: tuple(" ".join(part.split()) for part in text.split("|"))
        for key, text in table.items()
    }
    for section, table in tomllib.loads(
        Path(__file__).with_name("words.toml").read_text(encoding="utf-8")
    ).items()
}
GROUP_OF, SHAPE_OF, MATERIAL_OF = (
    {name: word for word, names in TABLES[section].items() for name in names}
    for section in ("groups", "shapes", "materials")
)
COLOURS = TABLES["answers"]["colours"]
NUMBERS = TABLES["answers"]["numbers"]
IT = ("this", "this", "<region1>", "it", "that")
"""How a question calls its region."""


class SceneError(Exception):
    """Raised where a scene does not allow the question that is to be made."""


def pick(options: Sequence[Option], rng: Rng) -> Option:
    """Draw one of the options, all alike; SceneError where there is none."""
    if not len(options):
        raise SceneError
    return options[int(rng.integers(len(options)))]


def ask(kind: str, rng: Rng, **slots: str) -> str:
    """Word a taught question of a kind."""
    return pick(TABLES["wordings"][kind], rng).format(it=pick(IT, rng), **slots)


def everyday_name(name: str, rng: Rng) -> str:
    """The name, or sometimes what people also call it."""
    others = TABLES["synonyms"].get(name, ())
    return pick(others, rng) if others and rng.random() < 0.3 else name


def many_of(name: str) -> str:
    """`dogs`, `people`, `scissors`."""
    return name if name in ("skis", "scissors", "broccoli") else plural(name)


def listed(parts: Sequence[str], joint: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f"{', '.join(parts[:-1])} {joint} {parts[-1]}" if len(parts) > 1 else parts[0]


def number_word(count: int) -> str:
    """`none`, `two`; `more than ten` from eleven on."""
    return NUMBERS[min(count, len(NUMBERS) - 1)]


def as_typed(question: str, rng: Rng) -> str:
    """The question as it is, half of the time, or as someone in a hurry types it."""
    if rng.random() < 0.5:
        return question
    for word, others in TABLES["swaps"].items():
        if word in question and rng.random() < 0.3:
            question = question.replace(word, pick(others, rng))
    if rng.random() < 0.1:
        question = f"{pick(TABLES['typed']['begin'], rng)} {question}"
    if rng.random() < 0.3:
        question = question.rstrip("?.") + pick(TABLES["typed"]["end"], rng)
    if rng.random() < 0.15:
        question = misspelt(question, rng)
    draw = rng.random()
    if draw < 0.05:
        return re.sub(r"(?<![<\w])\w+(?![\w>])", lambda word: word[0].upper(), question)
    return question[0].upper() + question[1:] if draw < 0.25 else question


def misspelt(question: str, rng: Rng) -> str:
    """Swap two letters of one word, or leave one out or double it."""
    spans = [found.span() for found in re.finditer(r"(?<![<\w])[a-z]{4,}(?![\w>])", question)]
    if not spans:
        return question
    start, end = pick(spans, rng)
    at = int(rng.integers(start, end - 1))
    one, two = question[at], question[at + 1]
    return question[:at] + pick((two + one, two, one + one + two), rng) + question[at + 2 :]
