"""The prompt renderer: questions, answers and regions to pieces of text and slots.

Inference and training share it, so that a model is asked in the format it was trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from regionqa.bundles.prompt_rules import PromptRules, parse_pattern
from regionqa.errors import QuestionError
from regionqa.language.references import REFERENCE, reference_problems


@dataclass(frozen=True)
class Text:
    """Plain text, in which special tokens are not recognised."""

    text: str


@dataclass(frozen=True)
class Special:
    """One special token of the tokenizer."""

    token: str


@dataclass(frozen=True)
class ImageSlot:
    """The slot of the image tokens."""

    token: str | None = None
    """Special token that the slot replaces, if the rules name one."""


@dataclass(frozen=True)
class RegionSlot:
    """The slot of one region's tokens."""

    index: int
    """Index of the region, from 0."""
    token: str | None = None
    """Special token that the slot replaces, if the rules name one."""


Piece = Text | Special | ImageSlot | RegionSlot
Fractions = tuple[float, float, float, float]
"""A box, xyxy, in fractions of the image's width and height."""


def render(
    rules: PromptRules, question: str, boxes: Sequence[Fractions], special: Sequence[str] = ()
) -> list[Piece]:
    """Render the prompt of a question about regions.

    Args:
        rules: The card's prompt rules.
        question: The question; `<region1>` refers to the first box.
        boxes: The box of each region.
        special: Special tokens; they are recognised in the rules, never in the question.

    Raises:
        QuestionError: The question is empty, or names a region that was not given.
    """
    return render_conversation(rules, [question], boxes, special)[0]


def render_conversation(
    rules: PromptRules,
    questions: Sequence[str],
    boxes: Sequence[Fractions],
    special: Sequence[str] = (),
    given: Sequence[int] | None = None,
) -> list[list[Piece]]:
    """Render a conversation without its answers.

    Args:
        rules: The card's prompt rules.
        questions: The questions in order.
        boxes: The box of each region.
        special: See `render`.
        given: Number of regions known at each question; it can name no others, and new regions that
            it does not name are introduced before it. None: all are known from the start, and those
            that no question names are introduced before the first.

    Returns:
        The pieces before every answer: the first prompt, then what each turn adds.

    Raises:
        QuestionError: As `render`, or the rules allow a single question only.
    """
    if len(questions) > 1 and rules.turn is None:
        raise QuestionError("this model knows one question at a time; ask each on its own")
    counts = given or [len(boxes)] * len(questions)
    for question, count in zip(questions, counts, strict=True):
        _check_question(question, count)
    seen: set[int] = set()
    turns = []
    for position, question in enumerate(questions):
        asked = questions[position : position + 1] if given else questions
        named = {int(digits) for text in asked for digits in REFERENCE.findall(text)}
        old = counts[position - 1] if position else 0
        unnamed = [n for n in range(old + 1, counts[position] + 1) if n not in named]
        pieces: list[Piece] = []
        for literal, name in parse_pattern(rules.turn or "" if position else rules.template):
            pieces += _trusted(literal, special)
            if name == "image":
                pieces.append(ImageSlot(rules.image_token))
            elif name == "question":
                pieces += _introduction(rules, unnamed, boxes, special)
                seen.update(unnamed)
                pieces += _question(rules, question, boxes, seen, special)
        turns.append(_merge(pieces))
    return turns


def render_dialogue(
    rules: PromptRules,
    questions: Sequence[str],
    answers: Sequence[str],
    boxes: Sequence[Fractions],
    stop: str,
    special: Sequence[str] = (),
    given: Sequence[int] | None = None,
) -> list[Piece]:
    """Render one prompt with all questions, and the answers to all but the last.

    Args:
        rules: The card's prompt rules.
        questions: The questions in order.
        answers: The answers to all but the last.
        boxes: The box of each region.
        stop: Text or special token that ends each answer.
        special: See `render`.
        given: See `render_conversation`.

    Raises:
        QuestionError: As `render_conversation`.
    """
    turns = render_conversation(rules, questions, boxes, special, given)
    pieces = list(turns[0])
    for answer, turn in zip(answers, turns[1:], strict=True):
        end: Piece = Special(stop) if stop in special else Text(stop)
        pieces += [Text(render_answer(rules, answer)), end, *turn]
    return _merge(pieces)


def render_answer(rules: PromptRules, answer: str) -> str:
    """Render an answer as it continues its prompt; `<region1>` becomes "region 1"."""
    words = REFERENCE.sub(lambda reference: f"region {reference[1]}", answer.strip())
    return rules.answer.format(answer=words)


def _check_question(question: str, regions: int) -> None:
    """Raise QuestionError if a question is empty, or names a region that was not given or badly."""
    if not question.strip():
        raise QuestionError("the question is empty")
    for problem in reference_problems(question, regions):
        raise QuestionError(f"the question {problem}")


def _introduction(
    rules: PromptRules, unnamed: Sequence[int], boxes: Sequence[Fractions], special: Sequence[str]
) -> list[Piece]:
    """Introduce regions that no question names."""
    pieces: list[Piece] = []
    if not unnamed or not rules.region:
        return pieces
    for literal, name in parse_pattern(rules.introduction):
        pieces += _trusted(literal, special)
        for position, number in enumerate(unnamed if name else []):
            pieces += _trusted(rules.separator if position else "", special)
            pieces += _region(rules, number, boxes[number - 1], special)
    return pieces


def _question(
    rules: PromptRules,
    question: str,
    boxes: Sequence[Fractions],
    seen: set[int],
    special: Sequence[str],
) -> list[Piece]:
    """Replace the references of a question; add their numbers to `seen`, those named before."""
    pieces: list[Piece] = []
    for position, part in enumerate(REFERENCE.split(question.strip())):
        if position % 2 == 0:
            pieces.append(Text(part))
            continue
        number = int(part)
        box = boxes[number - 1]
        pieces += _region(rules, number, box, special, again=number in seen)
        seen.add(number)
    return pieces


def _region(
    rules: PromptRules, number: int, box: Fractions, special: Sequence[str], *, again: bool = False
) -> list[Piece]:
    pattern = rules.again if again and rules.again is not None else rules.region
    values = dict(zip(("x0", "y0", "x1", "y1"), (f"{value:.3f}" for value in box), strict=True))
    values["number"] = str(number)
    pieces: list[Piece] = []
    for literal, name in parse_pattern(pattern):
        pieces += _trusted(literal, special)
        if name == "region":
            pieces.append(RegionSlot(number - 1, rules.region_token))
        elif name is not None:
            pieces.append(Text(values[name]))
    return pieces


def _trusted(text: str, special: Sequence[str]) -> Sequence[Piece]:
    """Split text of the rules, in which special tokens are recognised."""
    return _split_special(text, tuple(special))


@lru_cache(maxsize=1024)
def _split_special(text: str, special: tuple[str, ...]) -> tuple[Piece, ...]:
    if not special:
        return (Text(text),)
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return tuple(Special(part) if part in special else Text(part) for part in parts)


def _merge(pieces: Sequence[Piece]) -> list[Piece]:
    """Join adjacent texts and drop empty ones, so that each text is tokenized as a whole."""
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Text) and merged and isinstance(merged[-1], Text):
            merged[-1] = Text(merged[-1].text + piece.text)
        elif not isinstance(piece, Text) or piece.text:
            merged.append(piece)
    return merged


def read_answer(rules: PromptRules, text: str) -> str:
    """Remove the text that the rules put around an answer; the inverse of `render_answer`.

    GPT4RoI's answers, for instance, begin with "Assistant: ".
    """
    lead, tail = _around_answer(rules)
    return text.strip().removeprefix(lead).removesuffix(tail).strip()


def may_be_lead(rules: PromptRules, text: str) -> bool:
    """Return whether a partial answer may still be only the text that precedes answers."""
    lead, _ = _around_answer(rules)
    return lead.startswith(text.strip())


def _around_answer(rules: PromptRules) -> tuple[str, str]:
    (lead, _), *rest = parse_pattern(rules.answer)
    return lead.strip(), "".join(literal for literal, _ in rest).strip()
