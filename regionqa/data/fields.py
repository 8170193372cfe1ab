"""Fields of JSON records: schemas, and what is wrong with a record in plain words.

A schema is a msgspec struct whose fields all have a default. A field is required if its type does
not admit None. `Meta.description` completes the advice "write ...".
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from regionqa.boxes.fields import excerpt
from regionqa.errors import BoxError, ItemError
from regionqa.masks import Mask
from regionqa.regions import WrittenBox, four_numbers

Fields = TypeVar("Fields", bound=msgspec.Struct)

ImageName = Annotated[str, Meta(min_length=1, description='a name, like "a.jpg"')]
OptionalText = Annotated[str | None, Meta(description="text")]
TextList = Annotated[list[str] | None, Meta(description='a list of texts, like ["a", "b"]')]
RegionList = Annotated[list[Any] | None, Meta(description="a list, like [[10, 20, 90, 80]]")]
FourNumbers = Annotated[list[Any], Meta(description="four numbers, like [10, 20, 90, 80]")]

BOX_WORDS = (
    "box boxes bbox bboxes bbox2d bboxes2d bndbox boundingbox boundingboxes rect rects rectangle "
    "rectangles roi rois region xyxy xywh coords coordinates"
)
ALIASES = {
    "regions": BOX_WORDS,
    "box": f"{BOX_WORDS} regions",
    "label": "labels name class classname category categoryname",
    "image": "imagepath imagefile imagename images img path file filename filepath url",
    "question": "questions prompt text query instruction",
    "choices": "options candidates answers",
    "answer": "output response target groundtruth",
    "conversations": "conversation messages turns dialogue",
    "from": "role speaker",
    "value": "content text",
    "id": "ids uid uuid key imageid questionid requestid",
    "meta": "metadata extra extras info data",
}
"""Keys of other tools, in lower case without marks, for each key of ours."""


class RequestFields(msgspec.Struct):
    """A request on a line of stdin; `id` and `meta` come back with its answer."""

    image: ImageName = ""
    regions: RegionList = None
    question: OptionalText = None
    choices: TextList = None
    id: Annotated[str | int | float | None, Meta(description='text or a number, like "a-1"')] = None
    meta: Any = None


ANSWER_KEYS = (
    *("width", "height", "answer", "model", "revision", "device", "dtype", "ms", "error"),
    "confidence",
)
"""Further keys of a line of answers, which may be asked again; they are not used."""


class RegionFields(msgspec.Struct):
    """A region with a label, in requests and evaluation."""

    box: FourNumbers = []
    label: OptionalText = None
    mask: Any = None


class LearnedRegionFields(msgspec.Struct):
    """A region with a label in training data, where labels are often class numbers."""

    box: FourNumbers = []
    label: Annotated[str | int | None, Meta(description="text")] = None


@cache
def fields_of(schema: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return the fields of a schema; msgspec reads all annotations anew in each call."""
    return msgspec.structs.fields(schema)


def read_fields(document: Mapping[str, object], schema: type[Fields]) -> tuple[Fields, list[str]]:
    """Read the fields of a JSON object that a schema knows.

    Returns:
        The fields, with the default for each that is missing or wrong, and every problem.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    for field in fields_of(schema):
        key = field.encode_name
        value = document.get(key)
        try:
            values[field.name] = msgspec.convert(value, field.type)
        except (msgspec.ValidationError, UnicodeEncodeError):  # the latter for half a surrogate
            advice = f"write {field.type.__metadata__[0].description}"
            found = f"has no {key}" if value is None else f"{key!r} is {excerpt(value)}"
            problems.append(f"{found}; {advice}")
    return schema(**values), problems


def unknown_keys(
    document: Mapping[str, object],
    schema: type[msgspec.Struct],
    *,
    strict: bool,
    unused: Collection[str] = (),
) -> Iterator[str]:
    """Name the keys that a schema does not know; those that begin with `_` are always allowed.

    Args:
        document: The JSON object.
        schema: Its schema.
        strict: Whether every unknown key is a problem, and not only one that looks misspelt or
            holds boxes.
        unused: Keys that are allowed besides, and not proposed.
    """
    known = [field.encode_name for field in fields_of(schema)]
    for key in document:
        if key in known or key in unused or key.startswith("_"):
            continue
        meant = likely_key(key, known, strict=strict)
        if meant:
            yield f"unknown key {excerpt(key)}; did you mean {meant!r}?"
        elif strict and "meta" in known:
            yield (
                f"unknown key {excerpt(key)}; known are {', '.join(known)}; put what belongs to "
                "you into meta, or begin its key with _"
            )
        elif strict:
            yield (
                f"unknown key {excerpt(key)}; known are {', '.join(known)}, "
                "and keys that begin with _ are ignored"
            )


def likely_key(key: str, known: Collection[str], *, strict: bool = True) -> str | None:
    """Return the known key that an unknown one stands for: another tool's word, or misspelt.

    strict: as in `unknown_keys`; otherwise only words for boxes are taken for another tool's.
    """
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    for name in known if strict else [name for name in ("regions", "box") if name in known]:
        if plain in (name, *ALIASES.get(name, "").split()):
            return name
    near = get_close_matches(key.lower(), known, n=1, cutoff=0.6 if strict else 0.85)
    return near[0] if near else None


def check_json(values: Mapping[str, object]) -> None:
    """Raise ItemError for the first value that cannot be written as JSON again."""
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ItemError(f"{key!r} holds NaN or an infinity, which JSON has not") from None
        except RecursionError:
            raise ItemError(f"{key!r} is nested too deeply; write it as text") from None


def read_regions(
    items: list[Any], *, training: bool = False
) -> tuple[list[WrittenBox | None], list[str]]:
    """Read a list of regions: pixel xyxy, each as a list or under `box` beside a `label`.

    Args:
        items: The elements of the list.
        training: Whether broken text is a problem, and labels may be numbers.

    Returns:
        The boxes, None in the place of a malformed one, and every problem.
    """
    boxes: list[WrittenBox | None] = []
    problems: list[str] = []
    for number, item in enumerate(items, start=1):
        box, wrong = _read_region(item, training)
        boxes.append(box)
        problems += (f"region {number}: {text}" for text in wrong)
    return boxes, problems


def parse_regions(items: list[Any] | None) -> tuple[WrittenBox, ...] | None:
    """Read the regions of a request; ItemError for the first problem, None if not given."""
    if items is None:
        return None
    boxes, problems = read_regions(items)
    if problems:
        raise ItemError(problems[0])
    return tuple(filter(None, boxes))


def _read_region(item: object, training: bool) -> tuple[WrittenBox | None, list[str]]:
    values, label, problems = item, None, list[str]()
    if isinstance(item, dict):
        values = item.get("box")
        label, problems = _read_label(item, training)
        if not isinstance(values, list):
            return None, problems
    try:
        mask = None
        if isinstance(item, dict) and not training and item.get("mask") is not None:
            mask = Mask.parse(item["mask"], excerpt(values))
        return WrittenBox(four_numbers(values, excerpt(values)), label=label, mask=mask), problems
    except BoxError as error:
        return None, [*problems, str(error)]


def _read_label(item: Mapping[str, object], training: bool) -> tuple[str | None, list[str]]:
    """Return the label of a region, and every problem of its fields."""
    if not training:
        fields, wrong = read_fields(item, RegionFields)
        # a region of an answer has its number as id, a detected one its score
        unused = ("id", "score")
        problems = list(unknown_keys(item, RegionFields, strict=True, unused=unused))
        return fields.label, problems + wrong
    learned, problems = read_fields(item, LearnedRegionFields)
    problems += unknown_keys(item, LearnedRegionFields, strict=True)
    label = "" if learned.label is None else str(learned.label).strip()
    if fault := text_fault(label):
        problems.append(f"the label {fault}; save the file as UTF-8")
    return label or None, problems


def text_fault(text: str) -> str | None:
    """Say where a text has stray bytes or half a surrogate pair; None if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is not valid text at character {error.start + 1}"
    return None


def check_text(question: str, image: str) -> None:
    """Raise ItemError if a question is not valid text, as from an argument with stray bytes."""
    if fault := text_fault(question):
        raise ItemError(f"{image}: the question {fault}; write it in UTF-8")
