"""GQA: questions about objects of scene graphs, whose boxes become regions of the question."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from regionqa.boxes.remarks import LeftOut
from regionqa.data.boxes import Part
from regionqa.data.containers.json_files import document, element
from regionqa.data.sources.placement import DatasetUnit, PlacedBoxes, RecordRules, reference
from regionqa.errors import DataError
from regionqa.regions import BoxFormat, WrittenBox

FOLDERS = ("images",)
MAX_TURNS = 10
"""Questions of a record."""
UNANSWERED = "questions without an answer"
UNGROUNDED = "questions about no object that has a usable box"
CROWDED = "questions about more objects than a record has regions"


class SceneObject(msgspec.Struct, gc=False):
    """An object of a scene graph; the box is in pixels."""

    x: float
    y: float
    w: float
    h: float


class SceneGraph(msgspec.Struct):
    """The scene graph of an image."""

    objects: dict[str, SceneObject]
    width: int | None = None
    height: int | None = None


class ObjectMentions(msgspec.Struct):
    """Objects by the words that name them: a word's number, or `first:end`."""

    question: dict[str, str] = {}


class GqaQuestion(msgspec.Struct, rename="camel"):
    """A question and its answer."""

    question: str
    full_answer: str = ""
    answer: str = ""
    annotations: ObjectMentions = msgspec.field(default_factory=ObjectMentions)


class QuestionImage(msgspec.Struct, rename="camel"):
    """The image of a question."""

    image_id: str


@dataclass
class Dialogue:
    """Turns of a record, and the objects that they name, in order of mention."""

    objects: list[str] = field(default_factory=list)
    turns: list[tuple[str, str]] = field(default_factory=list)


class GqaReader:
    """Reads questions: all about an image in turn, each object a region after its name."""

    def __init__(self, path: Path, rules: RecordRules, *, scene_graphs: Path) -> None:
        """Create a reader.

        Args:
            path: Questions, such as `train_balanced_questions.json`.
            rules: What to make of images and boxes.
            scene_graphs: Scene graphs of the same split, such as `train_sceneGraphs.json`.
        """
        self._path = path
        self._rules = rules
        self._graphs = scene_graphs

    def units(self) -> Iterator[DatasetUnit]:
        """Iterate over the images, in the order in which questions mention them."""
        layout = "GQA's questions, an object with a question by its number"
        questions = document(self._path, dict[str, msgspec.Raw], layout)
        by_image: dict[str, list[msgspec.Raw]] = {}
        for number, content in questions.items():
            try:
                image = element(content, QuestionImage).image_id
            except DataError as error:
                raise DataError(f"{self._path}: question {number}: {error}") from None
            by_image.setdefault(image, []).append(content)
        layout = "GQA's scene graphs, an object with a graph by the number of its image"
        graphs = document(self._graphs, dict[str, msgspec.Raw], layout)
        for image, contents in by_image.items():
            where = f"{self._path.name}: image {image}"
            yield DatasetUnit(where, image, (contents, graphs.get(image)))

    def parts(self, unit: DatasetUnit) -> Iterator[Part]:
        """Read the records of an image."""
        assert isinstance(unit.content, tuple)
        contents, content = unit.content
        if content is None:
            raise DataError(
                f"{self._graphs} has no scene graph of this image; give that of the same split "
                "with --annotations"
            )
        graph = element(content, SceneGraph)
        questions = [element(each, GqaQuestion) for each in contents]
        mentioned = dict.fromkeys(
            number for each in questions for number in each.annotations.question.values()
        )
        known = [number for number in mentioned if number in graph.objects]
        boxes = [_box(graph.objects[number]) for number in known]
        stated = (graph.width, graph.height) if graph.width and graph.height else None
        placed = self._rules.place(f"{unit.key}.jpg", boxes, unit.where, stated)
        yield from placed.left_out
        usable = {known[index]: index for index in placed.usable}
        yield from self._records(questions, usable, placed, unit.where)

    def _records(
        self, questions: list[GqaQuestion], usable: dict[str, int], placed: PlacedBoxes, where: str
    ) -> Iterator[Part]:
        limit = self._rules.max_regions
        dialogue = Dialogue()
        for each in questions:
            mentions = {k: v for k, v in each.annotations.question.items() if v in usable}
            answer = (each.full_answer or each.answer).strip()
            named = dict.fromkeys(mentions.values())
            if not answer or not named or len(named) > limit:
                why = UNANSWERED if not answer else CROWDED if named else UNGROUNDED
                yield LeftOut(where, why)
                continue
            fresh = [number for number in named if number not in dialogue.objects]
            full = len(dialogue.objects) + len(fresh) > limit or len(dialogue.turns) == MAX_TURNS
            if full and dialogue.turns:
                kept = [usable[number] for number in dialogue.objects]
                yield placed.record(kept, dialogue.turns, where)
                dialogue, fresh = Dialogue(), list(named)
            dialogue.objects += fresh
            numbers = {number: place for place, number in enumerate(dialogue.objects, start=1)}
            marks = {words: reference(numbers[number]) for words, number in mentions.items()}
            dialogue.turns.append((with_regions(each.question, marks), answer))
        if dialogue.turns:
            kept = [usable[number] for number in dialogue.objects]
            yield placed.record(kept, dialogue.turns, where)


def with_regions(question: str, marks: dict[str, str]) -> str:
    """Put references after the words that name their objects.

    Args:
        question: The question.
        marks: References by a word's number from 0, or `first:end`, as GQA writes them.

    Raises:
        DataError: If there are no such words.
    """
    words = question.split()
    for place, mark in marks.items():
        first, _, end = place.partition(":")
        try:
            last = int(end) - 1 if end else int(first)
            if not 0 <= last < len(words):
                raise ValueError
        except ValueError:
            raise DataError(
                f"marks word {place!r} of {question!r}, which has {len(words)}; correct it"
            ) from None
        bare = words[last].rstrip("?.,!;:")
        words[last] = f"{bare} {mark}{words[last][len(bare) :]}"
    return " ".join(words)


def _box(item: SceneObject) -> WrittenBox:
    return WrittenBox((item.x, item.y, item.w, item.h), BoxFormat.xywh)
