"""Records in the style of LLaVA's `conversations`: with a list of regions, or PVIT's inline ones.

    {"image": "a.jpg", "regions": [[10, 20, 90, 80]], "conversations": [
        {"from": "human", "value": "what is <region1>?"}, {"from": "gpt", "value": "a dog."}]}

A record that has neither is about the whole image, as LLaVA's own are. Everything that is wrong
with a record is found at once. It does not know how records stand in a file.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from regionqa.boxes.fields import excerpt, member, optional_text
from regionqa.data.images import ImageFile, ImageFinder, place_region
from regionqa.data.records import Problem, Record, Turn
from regionqa.errors import BoxError, BoxFileError, ImageError
from regionqa.language.prompts import LONGEST_NUMBER, REFERENCE
from regionqa.regions import BoxUnits, Region, WrittenBox, four_numbers

KEYS = ("image", "regions", "conversations", "id", "kind", "choices")
TURN_KEYS = ("from", "value")
REGION_KEYS = ("box", "label")
ROLES = ("human", "gpt")
IMAGE = "<image>"
"""Where LLaVA puts the image; here it always stands first, so the mark says nothing."""

NEARLY = re.compile(r"<\s*/?\s*regions?[\s_-]*[0-9]*\s*>|<L-?[0-9.]*>", re.IGNORECASE)
"""What somebody took for a region; taken as words, it would teach the model nonsense."""

NamedBox = tuple[str, WrittenBox]
"""A box with the name that messages call it by."""


def read_record(
    document: object, where: str, images: ImageFinder, *, strict: bool
) -> Iterator[Record | Problem]:
    """The record that a JSON document says, or all that is wrong with it.

    strict: whether keys beyond ours are problems; else only those that look like one misspelt are.
    """
    wrong: list[str] = []
    record = None
    try:
        record = _read(document, where, images, strict, wrong)
    except RecursionError:  # a message may have to show it
        wrong.append("is nested too deeply; write plain values")
    if record is not None and not wrong:
        yield record
    yield from (Problem(where, text) for text in wrong)


def text_problems(texts: Sequence[str], given: int) -> Iterator[str]:
    """What is wrong with the texts of a conversation, questions and answers in turn.

    given: how many regions the record has.
    """
    for place_of_text, text in enumerate(texts):
        is_answer = place_of_text % 2
        name = f"the {'answer' if is_answer else 'question'} of turn {place_of_text // 2 + 1}"
        if not text:
            yield f"{name} is empty"
        if stray := _stray(text):
            yield f"{name} {stray}"
        if IMAGE in text:
            yield f"{name} holds {IMAGE}, which belongs into a question; remove it"
        for digits in REFERENCE.findall(text):
            if len(digits) > LONGEST_NUMBER or not 1 <= int(digits) <= given:
                count = "1 region was" if given == 1 else f"{given} regions were"
                yield f"{name} names <region{digits[:LONGEST_NUMBER]}>, but {count} given"
        for nearly in NEARLY.findall(REFERENCE.sub("", text))[:1]:
            yield (
                f"{name} holds {excerpt(nearly)}, which names no region; write <region1>, "
                "or <Region><L10><L20><L300><L400></Region>"
            )


def _read(
    document: object, where: str, images: ImageFinder, strict: bool, wrong: list[str]
) -> Record | None:
    """The record; of no use where something went to `wrong`."""
    if not isinstance(document, dict):
        wrong.append(f"is {excerpt(document)}, but an object with image and conversations is due")
        return None
    wrong += _unknown_keys(document, KEYS, strict)
    texts = _texts(document.get("conversations"), strict, wrong)
    listed = _listed_boxes(document.get("regions"), wrong)
    named = bool(listed) or any(map(REFERENCE.search, texts))
    texts, written = number_regions(texts)
    inline: list[NamedBox | None] = [(f"region {_as_written(box)}", box) for box in written]
    if inline and named:
        wrong.append("gives regions both inline and by number; write all of them one way")
    else:
        wrong += text_problems(texts, len(inline or listed))
    image = _image(document, images, wrong)
    if image is None:
        return None
    regions, cut = _placed(inline or listed, image, wrong)
    turns = tuple(map(Turn, texts[::2], texts[1::2]))
    return Record(image.path, regions, turns, where, cut)


def _unknown_keys(fields: dict[str, object], known: Sequence[str], strict: bool) -> Iterator[str]:
    for key in fields:
        if key in known or key.startswith("_"):
            continue
        near = get_close_matches(key.lower(), known, n=1, cutoff=0.6 if strict else 0.85)
        if near:
            yield f"unknown key {excerpt(key)}; did you mean {near[0]!r}?"
        elif strict:
            yield (
                f"unknown key {excerpt(key)}; known are {', '.join(known)}, "
                "and what begins with _ is passed over"
            )


def _texts(conversations: object, strict: bool, wrong: list[str]) -> list[str]:
    """Questions and answers in turn, without marks of the image; none where roles are wrong."""
    if not isinstance(conversations, list) or not conversations:
        found = "has no" if conversations is None else f"{excerpt(conversations)} is no list of"
        wrong.append(f'{found} conversations; write [{{"from": "human", "value": "..."}}, ...]')
        return []
    texts = []
    for index, turn in enumerate(conversations):
        name, role = f"conversations[{index}]", ROLES[index % 2]
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            wrong.append(f'{name}: is {excerpt(turn)}, but {{"from": ..., "value": "..."}} is due')
            return []
        wrong += (f"{name}: {text}" for text in _unknown_keys(turn, TURN_KEYS, strict))
        if turn.get("from") != role:
            found = excerpt(turn.get("from"))
            wrong.append(f"{name}: is from {found}, but {role} is due; human begins, gpt answers")
            return []
        text = turn["value"]
        if role == ROLES[0]:
            text = " ".join(part.strip() for part in text.split(IMAGE))
        texts.append(text.strip())
    if len(texts) % 2:
        wrong.append("the last question has no answer; add one, from gpt")
    return texts


def _listed_boxes(items: object, wrong: list[str]) -> list[NamedBox | None]:
    """The boxes under `regions`, pixel xyxy; None in the place of one that is malformed."""
    if items is None:
        return []
    if not isinstance(items, list):
        wrong.append(f"'regions' is {excerpt(items)}, but a list like [[10, 20, 90, 80]] is due")
        return []
    boxes: list[NamedBox | None] = []
    for number, item in enumerate(items, start=1):
        name = f"region {number}"
        box = None
        try:
            box = name, _listed_box(item, name, wrong)
        except BoxError as error:
            wrong.append(f"{name}: {error}")
        except BoxFileError as error:
            wrong.append(str(error))
        boxes.append(box)
    return boxes


def _listed_box(item: object, name: str, wrong: list[str]) -> WrittenBox:
    if not isinstance(item, dict):
        return WrittenBox(four_numbers(item, excerpt(item)))
    wrong += (f"{name}: {text}" for text in _unknown_keys(item, REGION_KEYS, strict=True))
    values, label = member(item, "box", object, name), optional_text(item, "label", name)
    if stray := _stray(label):
        wrong.append(f"{name}: the label {stray}")
    return WrittenBox(four_numbers(values, excerpt(values)), label=label or None)


def _image(document: dict[str, object], images: ImageFinder, wrong: list[str]) -> ImageFile | None:
    name = document.get("image")
    if not isinstance(name, str) or not name:
        found = f"'image' is {excerpt(name)}, but a name is due" if name else "has no image"
        wrong.append(f'{found}; write "image": "a.jpg"')
    elif stray := _stray(name):
        wrong.append(f"the name of the image {stray}")
    else:
        try:
            return images.find(name)
        except ImageError as error:
            wrong.append(str(error))
    return None


def _placed(
    boxes: Sequence[NamedBox | None], image: ImageFile, wrong: list[str]
) -> tuple[tuple[Region, ...], int]:
    """The regions, and how many of them were cut off at the image's edge."""
    regions, cuts = [], 0
    for name, written in filter(None, boxes):
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


def _stray(text: str) -> str | None:
    """What is wrong with a text that has stray bytes, or half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"is no valid text at character {error.start + 1}; save the file as UTF-8"
    return None


INLINE = re.compile(r"<Region>\s*" + r"<L([0-9]{1,4})>\s*" * 4 + "</Region>")
"""PVIT's region: left, top, right, bottom in per mille of the image's width and height."""


def number_regions(texts: Sequence[str]) -> tuple[list[str], list[WrittenBox]]:
    """The texts with `<regionK>` in place of regions, and the box of each K, from 1 on.

    Numbers run through all texts in order of appearance; the same four numbers are the same region.
    Boxes are as written, in per mille and unchecked: `WrittenBox.resolve` makes pixels of them, and
    raises BoxError for one without an area. What only resembles a region is left as it is.
    """
    numbers: dict[tuple[int, int, int, int], int] = {}

    def numbered(found: re.Match[str]) -> str:
        x0, y0, x1, y1 = map(int, found.groups())
        return f"<region{numbers.setdefault((x0, y0, x1, y1), len(numbers) + 1)}>"

    replaced = [INLINE.sub(numbered, text) for text in texts]
    return replaced, [WrittenBox(box, units=BoxUnits.permille) for box in numbers]
