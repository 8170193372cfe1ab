"""What is known about an image, from its training records: objects with boxes, and facts.

A labelled box is an object. What a record says beside names (a caption, a relation, an answer) is a
fact, in which `<region3>` names the third object of the image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from regionqa.data.records import Record, Turn, one_line
from regionqa.images.reading import open_image
from regionqa.language.references import REFERENCE, renumber
from regionqa.regions import Box, Region
from regionqa.requests import NAMING_QUESTION

MOST_OBJECTS, MOST_FACTS = 60, 60
"""Objects and facts of an image that a prompt holds; further ones are left out and counted."""
UNNAMED = "object"
"""Name of a box without a label."""
UNIT = "left, top, right, bottom in thousandths of the image's width and height"


@dataclass(frozen=True)
class AnnotatedImage:
    """An image with what is known about it."""

    path: Path
    name: str
    """Its path relative to the annotations' folder, which is the same wherever that lies."""
    width: int
    height: int
    """In pixels, as displayed."""
    objects: tuple[Region, ...]
    """The first is `<region1>`; each box and label once."""
    facts: tuple[str, ...]
    left_out: int = 0
    """Number of objects and facts beyond the limits."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The objects' names."""
        return tuple(one_line(each.label or UNNAMED) for each in self.objects)

    def share(self, number: int) -> float:
        """Area of an object, from 1, as a share of the image's."""
        box = self.objects[number - 1].box
        return box.width * box.height / (self.width * self.height)

    def box_text(self, number: int) -> str:
        """The box of an object, from 1, in the unit of prompts."""
        box = self.objects[number - 1].box
        sides = (self.width, self.height) * 2
        numbers = [round(1000 * value / side) for value, side in zip(box.xyxy, sides, strict=True)]
        return f"[{', '.join(map(str, numbers))}]"

    @cached_property
    def text(self) -> str:
        """The annotations as a prompt has them."""
        return annotation_text(
            (self.width, self.height),
            [(name, self.box_text(number)) for number, name in enumerate(self.names, 1)],
            self.facts,
        )


def annotation_text(
    size: tuple[int, int], objects: Sequence[tuple[str, str]], facts: Sequence[str]
) -> str:
    """Render annotations: the image's size, objects (name and box) and facts."""
    lines = [f"The image is {size[0]} x {size[1]} pixels."]
    if objects:
        lines.append(f"Objects, each with its box as [{UNIT}]:")
        lines += (f"<region{n}> {name} {box}" for n, (name, box) in enumerate(objects, 1))
    if facts:
        lines.append("Known facts:")
        lines += (f"- {fact}" for fact in facts)
    return "\n".join(lines)


def annotated_images(images: Iterable[Sequence[Record]], source: Path) -> Iterator[AnnotatedImage]:
    """Collect what the records say about each image.

    An image is opened for its size.

    Args:
        images: The records of each image.
        source: The file or folder that they are from.

    Raises:
        ImageError: An image has vanished since the records were read.
    """
    folder = (source if source.is_dir() else source.parent).absolute()
    for found in images:
        path = found[0].image
        image = open_image(path)
        objects = _objects(found)
        kept = objects[:MOST_OBJECTS]
        facts = list(dict.fromkeys(fact for record in found for fact in _facts(record, objects)))
        known = [fact for fact in facts if all(n <= len(kept) for n in references(fact))]
        absolute = path.absolute()
        name = absolute.relative_to(folder) if absolute.is_relative_to(folder) else path
        yield AnnotatedImage(
            path,
            name.as_posix(),
            image.width,
            image.height,
            tuple(kept),
            tuple(known[:MOST_FACTS]),
            len(objects) - len(kept) + len(facts) - len(known[:MOST_FACTS]),
        )


def references(text: str) -> list[int]:
    """Return the numbers of the regions that a text names, each once, in order of appearance."""
    return list(dict.fromkeys(int(digits[:9]) for digits in REFERENCE.findall(text)))


def _objects(records: Sequence[Record]) -> list[Region]:
    """The regions of all records, each once; one without a label only where no other has its box.

    A box of which a record asks what it is has the answer as its name.
    """
    found: dict[tuple[Box, str | None], Region] = {}
    labelled: set[Box] = set()
    for record in records:
        for region in record.regions:
            named = _named(record, region)
            found.setdefault((named.box, named.label), named)
            if named.label:
                labelled.add(named.box)
    return [each for each in found.values() if each.label or each.box not in labelled]


def _named(record: Record, region: Region) -> Region:
    if region.label or len(record.regions) != 1:
        return region
    turn = record.turns[0]
    if not _names(turn):
        return region
    words = turn.answer.strip().rstrip(".").split()
    name = " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)
    return Region(region.box, name or None)


def _names(turn: Turn) -> bool:
    """Whether a turn asks for a name, and has a short one as its answer."""
    asked = turn.question.replace("<region1>", "this").strip().lower()
    return asked == NAMING_QUESTION and len(turn.answer.split()) <= 4


def _facts(record: Record, objects: Sequence[Region]) -> Iterator[str]:
    """What the turns of a record say, with references to the objects of the image."""
    places = {(each.box, each.label): number for number, each in enumerate(objects, 1)}
    boxes = {each.box: number for number, each in reversed(list(enumerate(objects, 1)))}
    numbers = []
    for region in record.regions:
        named = _named(record, region)
        numbers.append(places.get((named.box, named.label)) or boxes[named.box])
    for turn in record.turns:
        if _names(turn) and len(record.regions) == 1:
            continue
        question, answer = (
            _renumbered(one_line(text), numbers) for text in (turn.question, turn.answer)
        )
        about = ""
        if numbers and not REFERENCE.search(turn.question):
            about = f"About {', '.join(f'<region{n}>' for n in dict.fromkeys(numbers))}: "
        yield f"{about}{question} {answer}"


def _renumbered(text: str, numbers: Sequence[int]) -> str:
    """Replace references to a record's regions by those to the image's objects."""
    return REFERENCE.sub(lambda found: f"<region{numbers[int(found[1]) - 1]}>", text)


def as_conversation(
    turns: Sequence[tuple[str, str]], objects: Sequence[Region]
) -> tuple[tuple[Region, ...], tuple[Turn, ...]]:
    """Return the regions that turns name, and the turns with references to those.

    Args:
        turns: Questions and answers with references to the image's objects.
        objects: These objects.
    """
    kept = references(" ".join(text for turn in turns for text in turn))
    regions = tuple(objects[number - 1] for number in kept)
    return regions, tuple(Turn(renumber(q, kept), renumber(a, kept)) for q, a in turns)
