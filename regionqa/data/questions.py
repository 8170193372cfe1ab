"""Questions with known answers, read from JSON lines: training records, or requests with answers.

    {"image": "a.jpg", "regions": [[1, 2, 30, 40]], "question": "how many?", "answer": "two"}
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}

A line may say its `kind` and `choices`. Questions about an image that is missing carry an error,
as requests do; a malformed file ends the run. Nothing here knows a model or judges a reply.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from regionqa.boxes.fields import excerpt
from regionqa.data.conversations import number_regions
from regionqa.data.fields import parse_regions
from regionqa.data.jsonl import read_records
from regionqa.errors import DataError, ItemError
from regionqa.images.reading import InputImage, open_image
from regionqa.language.prompts import REFERENCE
from regionqa.regions import WrittenBox, clip_all
from regionqa.requests import Request

GIVE = (
    'write {"image": "a.jpg", "regions": [[x0, y0, x1, y1]], "question": "...", "answer": "..."}, '
    "or training records (docs/guide/data.md)"
)


@dataclass(frozen=True)
class QuestionRecord:
    """A question, and what is right to say."""

    request: Request
    answers: tuple[str, ...]
    """At least one; any of them is right."""
    choices: tuple[str, ...] = ()
    """What can be chosen from; holds an answer. None: the question is open."""
    kind: str | None = None
    """What kind of question it is, in the words of its file."""


def read_questions(path: Path, images: Path | None = None) -> list[QuestionRecord]:
    """All questions of a file, in its order; those about one image share it.

    images: the folder that images are named from; the file's own if not given.
    Raises DataError, naming the line, for a file that is missing, empty or malformed.
    """
    folder = path.parent if images is None else images
    open_once = lru_cache(maxsize=1)(open_image)
    found: list[QuestionRecord] = []
    for where, document in read_records(path, GIVE):
        if not isinstance(document, dict):
            raise DataError(f"{where}: is {excerpt(document)}, not an object; {GIVE}")
        try:
            turns, inline = _numbered(list(_turns(document)))
            image = document.get("image")
            if not isinstance(image, str) or not image:
                raise ItemError("has no image")
            boxes = tuple(inline) or parse_regions(document.get("regions")) or ()
            if inline and document.get("regions"):
                raise ItemError("gives regions both inline and in a list")
        except ItemError as error:
            raise DataError(f"{where}: {error}; {GIVE}") from None
        source: InputImage | ItemError
        try:
            source = open_once(str(folder / image))
        except ItemError as error:
            source = error
        for turn in turns:
            alone, named = only_named(turn, boxes if len(turns) > 1 else ())
            request = _request(image, alone.question, named or boxes, source)
            found.append(QuestionRecord(request, alone.answers, alone.choices, alone.kind))
    if not found:
        raise DataError(f"{path}: holds no questions; {GIVE}")
    return found


@dataclass(frozen=True)
class QuestionTurn:
    """One question of a record, before its image is known."""

    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    kind: str | None


def _turns(document: dict[str, object]) -> Iterator[QuestionTurn]:
    """The questions of one record; each turn of a conversation is one, asked on its own."""
    if "conversations" not in document:
        yield _turn(document, document.get("question"), document.get("answer"), document)
        return
    texts = document["conversations"]
    if not isinstance(texts, list) or not texts or len(texts) % 2:
        raise ItemError("its conversations are no list of questions and answers in turn")
    for asked, said in zip(texts[::2], texts[1::2], strict=True):
        if not (isinstance(asked, dict) and isinstance(said, dict)):
            raise ItemError(f"{excerpt([asked, said])} is no question and answer")
        if asked.get("from") != "human" or said.get("from") != "gpt":
            raise ItemError("its conversations are not from human and gpt in turn")
        yield _turn(asked, asked.get("value"), said.get("value"), document)


def _turn(
    fields: dict[str, object], question: object, answer: object, document: dict[str, object]
) -> QuestionTurn:
    if not isinstance(question, str) or not question.strip():
        raise ItemError("has no question")
    question = question.replace("<image>", " ").strip()
    answers = _texts(document.get("answers"), "answers") if answer is None else (answer,)
    if not answers or not all(isinstance(each, str) and each.strip() for each in answers):
        raise ItemError("has a question without an answer")
    choices = _texts(fields.get("choices", document.get("choices")), "choices")
    if choices and not set(map(_plain, answers)) & set(map(_plain, choices)):  # type: ignore[arg-type]
        raise ItemError(f"its answer {excerpt(answers[0])} is none of its choices")
    kind = fields.get("kind", document.get("kind"))
    if not isinstance(kind, str | None):
        raise ItemError(f"its kind is {excerpt(kind)}, not text")
    return QuestionTurn(question, tuple(map(str, answers)), choices, kind)


def _numbered(turns: Sequence[QuestionTurn]) -> tuple[list[QuestionTurn], list[WrittenBox]]:
    """The turns with `<regionK>` in place of regions written into their texts, and their boxes."""
    texts = [text for turn in turns for text in (turn.question, *turn.answers)]
    replaced, boxes = number_regions(texts)
    rest = iter(replaced)
    return [
        replace(turn, question=next(rest), answers=tuple(next(rest) for _ in turn.answers))
        for turn in turns
    ], boxes


def only_named(
    turn: QuestionTurn, boxes: Sequence[WrittenBox]
) -> tuple[QuestionTurn, tuple[WrittenBox, ...]]:
    """The turn with the boxes that its question names, numbered anew; no boxes where it names none.

    A turn of a conversation is asked alone, and boxes that belong to other turns would only be in
    its way; training reads such records in the same way.
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


def _texts(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ItemError(f"its {name} are {excerpt(value)}, not a list of texts")
    return tuple(value)


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
