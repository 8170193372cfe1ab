"""Questions with known answers, from JSON lines: training records, or requests with answers.

    {"image": "a.jpg", "regions": [[1, 2, 30, 40]], "question": "how many?", "answer": "two"}
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}

A record may state its `kind` and `choices`. A question whose image cannot be opened carries the
error, as requests do; a malformed file raises DataError.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.fields import excerpt
from regionqa.boxes.images import ImageFolders
from regionqa.data.conversations import ROLES
from regionqa.data.fields import (
    ANSWER_KEYS,
    ImageName,
    OptionalText,
    RegionList,
    TextList,
    parse_regions,
    read_fields,
    unknown_keys,
)
from regionqa.data.jsonl import JsonFile, JsonLayout
from regionqa.errors import DataError, ItemError
from regionqa.images.reading import InputImage, open_image
from regionqa.language.references import REFERENCE, inline_regions, question_text
from regionqa.regions import WrittenBox, clip_all
from regionqa.requests import Request

ADVICE = (
    'write {"image": "a.jpg", "regions": [[x0, y0, x1, y1]], "question": "...", "answer": "..."}, '
    "or training records (docs/guide/data.md)"
)


class QuestionFields(msgspec.Struct):
    """What all questions of a record share; the last two are allowed and not used."""

    image: ImageName = ""
    regions: RegionList = None
    question: Any = None
    answer: Any = None
    answers: Any = None
    conversations: Any = None
    kind: Any = None
    choices: Any = None
    id: Any = None
    meta: Any = None


class AnswerFields(msgspec.Struct):
    """What belongs to a question; a turn of a conversation may state its own."""

    kind: OptionalText = None
    choices: TextList = None
    answers: TextList = None


@dataclass(frozen=True)
class QuestionRecord:
    """A question with its correct answers."""

    request: Request
    answers: tuple[str, ...]
    """At least one; each is correct."""
    choices: tuple[str, ...] = ()
    """Answers to choose from, a correct one among them; empty for an open question."""
    kind: str | None = None
    """The kind of question, as its file names it."""


@dataclass(frozen=True)
class QuestionTurn:
    """A question of a record, before its image is opened."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    kind: str | None


def read_questions(path: Path, images: Path | None = None) -> list[QuestionRecord]:
    """Read all questions of a file, in file order; consecutive ones share their image.

    Args:
        path: The file.
        images: Folder that image names are relative to; by default the file's own.

    Raises:
        DataError: If the file is missing, empty or malformed; the message names the line.
    """
    folder = path.parent if images is None else images
    open_once = lru_cache(maxsize=1)(open_image)
    folders = ImageFolders(path, [folder])
    found: list[QuestionRecord] = []
    file = JsonFile.read(path, ADVICE)
    strict = file.layout is JsonLayout.lines
    for record in file.valid_records(ADVICE):
        try:
            image, boxes, turns = _read(record.document, strict=strict)
        except ItemError as error:
            raise DataError(f"{record.where}: {error}; {ADVICE}") from None
        source: InputImage | ItemError
        try:
            source = open_once(folders.find(BoxEntry(image)))
        except ItemError as error:
            source = error
        for turn in turns:
            alone, named = only_named(turn, boxes if len(turns) > 1 else ())
            request = _request(image, alone.question, named or boxes, source)
            found.append(QuestionRecord(request, alone.answers, alone.choices, alone.kind))
    if not found:
        raise DataError(f"{path}: holds no questions; {ADVICE}")
    return found


def _read(
    document: object, *, strict: bool
) -> tuple[str, tuple[WrittenBox, ...], list[QuestionTurn]]:
    """Return the image, the boxes and the questions of a record; `strict` as in `unknown_keys`."""
    if not isinstance(document, dict):
        raise ItemError(f"is {excerpt(document)}, not an object")
    for unknown in unknown_keys(document, QuestionFields, strict=strict, unused=ANSWER_KEYS):
        raise ItemError(unknown)
    fields, problems = read_fields(document, QuestionFields)
    if problems:
        raise ItemError(problems[0])
    turns, inline = _numbered(list(_turns(document)), with_boxes=bool(fields.regions))
    return fields.image, inline or parse_regions(fields.regions) or (), turns


def _turns(document: dict[str, object]) -> Iterator[QuestionTurn]:
    """Read the questions of a record; each turn of a conversation is asked on its own."""
    if "conversations" not in document:
        yield _turn(document.get("question"), document.get("answer"), document)
        return
    texts = document["conversations"]
    if not isinstance(texts, list) or not texts or len(texts) % 2:
        raise ItemError("its conversations are not a list of questions and answers in turn")
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        if not (isinstance(question, dict) and isinstance(answer, dict)):
            raise ItemError(f"{excerpt([question, answer])} is not a question and its answer")
        if (question.get("from"), answer.get("from")) != ROLES:
            raise ItemError("its conversations are not from human and gpt in turn")
        own = {key: question[key] for key in ("kind", "choices") if key in question}
        yield _turn(question.get("value"), answer.get("value"), document | own)


def _turn(question: object, answer: object, document: Mapping[str, Any]) -> QuestionTurn:
    if not isinstance(question, str) or not question.strip():
        raise ItemError("has no question")
    fields, problems = read_fields(document, AnswerFields)
    if problems:
        raise ItemError(problems[0])
    given = fields.answers or [] if answer is None else [answer]
    answers = [each for each in given if isinstance(each, str) and each.strip()]
    if not answers or len(answers) < len(given):
        raise ItemError("has a question without an answer")
    choices = tuple(fields.choices or ())
    if choices and not set(map(_plain, answers)) & set(map(_plain, choices)):
        raise ItemError(f"its answer {excerpt(answers[0])} is not among its choices")
    return QuestionTurn(question_text(question).strip(), tuple(answers), choices, fields.kind)


def _numbered(
    turns: Sequence[QuestionTurn], *, with_boxes: bool
) -> tuple[list[QuestionTurn], tuple[WrittenBox, ...]]:
    """Replace regions written into the texts by `<region1>` and so on; return their boxes too."""
    texts = [text for turn in turns for text in (turn.question, *turn.answers)]
    replaced, boxes = inline_regions(texts, with_boxes=with_boxes)
    rest = iter(replaced)
    return [
        replace(turn, question=next(rest), answers=tuple(next(rest) for _ in turn.answers))
        for turn in turns
    ], boxes


def only_named(
    turn: QuestionTurn, boxes: Sequence[WrittenBox]
) -> tuple[QuestionTurn, tuple[WrittenBox, ...]]:
    """Reduce the boxes to those that a turn's question names, and renumber its texts.

    A turn of a conversation is asked alone, so the boxes of other turns are left out; training
    does the same.

    Returns:
        The turn and its boxes; the turn as it is and no boxes if its question names none, or one
        that does not exist.
    """
    numbers = sorted({int(digits) for digits in REFERENCE.findall(turn.question)})
    kept = [number for number in numbers if 1 <= number <= len(boxes)]
    if not kept or kept != numbers:
        return turn, ()

    def renumbered(text: str) -> str:
        return REFERENCE.sub(
            lambda m: f"<region{kept.index(int(m[1])) + 1}>" if int(m[1]) in kept else m[0], text
        )

    answers = tuple(map(renumbered, turn.answers))
    alone = replace(turn, question=renumbered(turn.question), answers=answers)
    return alone, tuple(boxes[number - 1] for number in kept)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _request(
    image: str, question: str, boxes: Sequence[WrittenBox], source: InputImage | ItemError
) -> Request:
    if isinstance(source, ItemError):
        return Request(image, question, error=source)
    size = (source.width, source.height)
    try:
        regions, _ = clip_all(tuple(box.resolve(*size) for box in boxes), *size)
    except ItemError as error:
        return Request(image, question, source=source, error=error)
    return Request(image, question, regions, source)
