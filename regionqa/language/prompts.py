"""The one prompt renderer: questions, answers and regions -> pieces of text and slots.

Asking and training both go through here, so a model meets in use exactly what it was trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from regionqa.bundles.prompt_rules import PromptRules, parse_pattern
from regionqa.errors import QuestionError

REFERENCE = re.compile(r"<region(\d+)>")
LONGEST_NUMBER = 9
"""Digits of a reference; Python refuses to read numbers of thousands of digits."""


@dataclass(frozen=True)
class Text:
    """Plain words, encoded without looking for special tokens."""

    text: str


@dataclass(frozen=True)
class Special:
    """One special token of the tokenizer."""

    token: str


@dataclass(frozen=True)
class ImageSlot:
    """Where the image tokens stand, in the place of a token the rules may name."""

    token: str | None = None


@dataclass(frozen=True)
class RegionSlot:
    """Where the tokens of region `index` (from 0) stand, in the place of a token."""

    index: int
    token: str | None = None


Piece = Text | Special | ImageSlot | RegionSlot
Fractions = tuple[float, float, float, float]


def render(
    rules: PromptRules, question: str, boxes: Sequence[Fractions], special: Sequence[str] = ()
) -> list[Piece]:
    """Pieces of the prompt for a question about regions.

    boxes: xyxy of each region as fractions of the image. special: texts that become `Special`
    where they stand in the rules (never where the user wrote them).
    Raises QuestionError where the question names a region that was not given.
    """
    return render_conversation(rules, [question], boxes, special)[0]


def render_conversation(
    rules: PromptRules,
    questions: Sequence[str],
    boxes: Sequence[Fractions],
    special: Sequence[str] = (),
    given: Sequence[int] | None = None,
) -> list[list[Piece]]:
    """Pieces before every answer of a conversation: the first prompt, then what each turn adds.

    given: how many of the boxes there are at each question, which can name no others; what is new
    and not named stands before it. None: all are there from the first question on, before which
    stand those that no question names. Other arguments and errors as of `render`; QuestionError too
    where the rules know one question at a time and several are asked.
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
    """Pieces of one prompt that holds all questions, and the answers to all but the last.

    stop: what ends each answer, a text or a special token. Other arguments and errors as of
    `render_conversation`.
    """
    turns = render_conversation(rules, questions, boxes, special, given)
    pieces = list(turns[0])
    for answer, turn in zip(answers, turns[1:], strict=True):
        end: Piece = Special(stop) if stop in special else Text(stop)
        pieces += [Text(render_answer(rules, answer)), end, *turn]
    return _merge(pieces)


def render_answer(rules: PromptRules, answer: str) -> str:
    """The answer as it stands after its prompt; regions it names become words."""
    words = REFERENCE.sub(lambda reference: f"region {reference[1]}", answer.strip())
    return rules.answer.format(answer=words)


def _check_question(question: str, regions: int) -> None:
    """QuestionError where it is empty or names a region that was not given."""
    if not question.strip():
        raise QuestionError("the question is empty")
    for digits in REFERENCE.findall(question):
        if len(digits) > LONGEST_NUMBER or not 1 <= int(digits) <= regions:
            given = "1 region was" if regions == 1 else f"{regions} regions were"
            raise QuestionError(f"the question names <region{digits}>, but {given} given")


def _introduction(
    rules: PromptRules, unnamed: Sequence[int], boxes: Sequence[Fractions], special: Sequence[str]
) -> list[Piece]:
    """The regions that no question names."""
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
    """The question with its references replaced; `seen`: numbers named so far, added to."""
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


def _trusted(text: str, special: Sequence[str]) -> list[Piece]:
    """Text of the rules themselves, in which special tokens count as such."""
    if not special:
        return [Text(text)]
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return [Special(part) if part in special else Text(part) for part in parts]


def _merge(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts joined and empty ones dropped: a tokenizer must see whole stretches."""
    merged: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Text) and merged and isinstance(merged[-1], Text):
            merged[-1] = Text(merged[-1].text + piece.text)
        elif piece != Text(""):
            merged.append(piece)
    return merged


def renumber(text: str, kept: Sequence[int]) -> str:
    """The text for a question that has only some of the regions: `kept[0]` becomes `<region1>`.

    Mentions of others become words.
    """
    places = {number: place for place, number in enumerate(kept, start=1)}

    def renamed(found: re.Match[str]) -> str:
        place = places.get(int(found[1])) if len(found[1]) <= LONGEST_NUMBER else None
        return f"<region{place}>" if place else f"region {found[1]}"

    return REFERENCE.sub(renamed, text)


def read_answer(rules: PromptRules, text: str) -> str:
    """What the model meant of what it wrote: without the words the rules put around an answer.

    The opposite of `render_answer`; a model asked as GPT4RoI is begins with "Assistant: ".
    """
    lead, tail = _around_answer(rules)
    return text.strip().removeprefix(lead).removesuffix(tail).strip()


def may_be_lead(rules: PromptRules, text: str) -> bool:
    """Whether what was written so far may yet turn out to be only words before an answer."""
    lead, _ = _around_answer(rules)
    return lead.startswith(text.strip())


def _around_answer(rules: PromptRules) -> tuple[str, str]:
    (lead, _), *rest = parse_pattern(rules.answer)
    return lead.strip(), "".join(literal for literal, _ in rest).strip()
