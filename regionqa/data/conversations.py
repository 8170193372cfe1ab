"""Training records in the style of LLaVA's `conversations`, with a list of regions or inline ones.

    {"image": "a.jpg", "regions": [[10, 20, 90, 80]], "conversations": [
        {"from": "human", "value": "what is <region1>?"}, {"from": "gpt", "value": "a dog."}]}

A record without regions is about the whole image, as LLaVA's own are. All problems of a record are
found at once.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from regionqa.boxes.fields import excerpt
from regionqa.data.fields import (
    ImageName,
    RegionList,
    read_fields,
    read_regions,
    text_fault,
    unknown_keys,
)
from regionqa.data.images import ImageFile, ImageFinder, place_region
from regionqa.data.records import Problem, Record, Turn, one_line
from regionqa.errors import BoxError, ImageError, QuestionError
from regionqa.language.references import IMAGE, inline_regions, question_text, reference_problems
from regionqa.regions import Region, WrittenBox

ROLES = ("human", "gpt")
NamedBox = tuple[str, WrittenBox]
"""A box with its name in messages."""
Conversation = Annotated[
    list[Any],
    Meta(min_length=1, description='[{"from": "human", "value": "..."}, ...]'),
]


class RecordFields(msgspec.Struct):
    """A training record; those after the conversations are allowed and not used in training."""

    image: ImageName = ""
    regions: RegionList = None
    conversations: Conversation = []
    id: Any = None
    meta: Any = None
    kind: Any = None
    choices: Any = None


class TurnFields(msgspec.Struct):
    """A question or an answer of a conversation."""

    role: Any = msgspec.field(default=None, name="from")
    value: str = ""


def read_record(
    document: object, where: str, images: ImageFinder, *, strict: bool
) -> Iterator[Record | Problem]:
    """Read a record from a JSON document, or all of its problems.

    Args:
        document: The parsed JSON.
        where: Its place, like `mine.jsonl:12`.
        images: Where images are looked up.
        strict: Whether every unknown key is a problem, and not only one that looks misspelt.
    """
    wrong: list[str] = []
    record = None
    try:
        record = _read(document, where, images, strict, wrong)
    except RecursionError:  # from rendering a value in a message
        wrong.append("is nested too deeply; write plain values")
    if record is not None and not wrong:
        yield record
    yield from (Problem(where, text) for text in wrong)


def text_problems(texts: Sequence[str], given: int) -> Iterator[str]:
    """Find what is wrong with the texts of a conversation, questions and answers in turn.

    given: how many regions the record has.
    """
    for place_of_text, text in enumerate(texts):
        is_answer = place_of_text % 2
        name = f"the {'answer' if is_answer else 'question'} of turn {place_of_text // 2 + 1}"
        if not text:
            yield f"{name} is empty"
        if fault := text_fault(text):
            yield f"{name} {fault}; save the file as UTF-8"
        if IMAGE in text:
            yield f"{name} holds {IMAGE}, which belongs in a question; remove it"
        yield from (f"{name} {problem}" for problem in reference_problems(text, given))


def _read(
    document: object, where: str, images: ImageFinder, strict: bool, wrong: list[str]
) -> Record | None:
    """Read a record; not to be used if something was added to `wrong`."""
    if not isinstance(document, dict):
        wrong.append(f"is {excerpt(document)}; write an object with image and conversations")
        return None
    wrong += unknown_keys(document, RecordFields, strict=strict)
    fields, problems = read_fields(document, RecordFields)
    wrong += problems
    texts = _texts(fields.conversations, strict, wrong)
    boxes, problems = read_regions(fields.regions or [], training=True)
    wrong += problems
    inline: tuple[WrittenBox, ...] = ()
    try:
        texts, inline = inline_regions(texts, with_boxes=bool(boxes))
        wrong += text_problems(texts, len(inline or boxes))
    except QuestionError as error:
        wrong.append(str(error))
    image = _image(fields.image, images, wrong)
    if image is None:
        return None
    names = [f"region {_as_written(box)}" for box in inline]
    names = names or [f"region {number}" for number, _ in enumerate(boxes, start=1)]
    placed = [(name, box) for name, box in zip(names, inline or boxes, strict=True) if box]
    regions, cut = _placed(placed, image, wrong)
    turns = tuple(map(Turn, texts[::2], texts[1::2]))
    kind = one_line(fields.kind) if isinstance(fields.kind, str) else ""
    return Record(image.path, regions, turns, where, cut, kind)


def _texts(conversation: Sequence[object], strict: bool, wrong: list[str]) -> list[str]:
    """Return questions and answers in turn, without marks of the image; none if roles are wrong."""
    texts = []
    for index, turn in enumerate(conversation):
        name, role = f"conversations[{index}]", ROLES[index % 2]
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            wrong.append(f'{name}: is {excerpt(turn)}; write {{"from": "{role}", "value": "..."}}')
            return []
        wrong += (f"{name}: {text}" for text in unknown_keys(turn, TurnFields, strict=strict))
        fields, _ = read_fields(turn, TurnFields)
        if fields.role != role:
            found = excerpt(fields.role)
            wrong.append(f"{name}: is from {found}; write {role}: human begins, gpt answers")
            return []
        text = fields.value
        if role == ROLES[0]:
            text = question_text(text)
        texts.append(text.strip())
    if len(texts) % 2:
        wrong.append("the last question has no answer; add one, from gpt")
    return texts


def _image(name: str, images: ImageFinder, wrong: list[str]) -> ImageFile | None:
    if fault := text_fault(name):
        wrong.append(f"the name of the image {fault}; save the file as UTF-8")
    elif name:
        try:
            return images.find(name)
        except ImageError as error:
            wrong.append(str(error))
    return None


def _placed(
    boxes: Sequence[NamedBox], image: ImageFile, wrong: list[str]
) -> tuple[tuple[Region, ...], int]:
    """Return the regions, and how many of them were clipped at the image's edge."""
    regions, cuts = [], 0
    for name, written in boxes:
        try:
            region, cut = place_region(written, image)
        except BoxError as error:
            wrong.append(f"{name}: {error}")
        else:
            regions.append(region)
            cuts += cut
    return tuple(regions), cuts


def _as_written(box: WrittenBox) -> str:
    return "".join(f"<L{value:g}>" for value in box.values)
