"""Recognition: every labelled box is asked what it is, and the reply is taken for a class.

    recognise(engine, read_boxes(Path("instances.json")), Path("images")).accuracy()

Knows annotated boxes and replies; it does not know how either was made.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from regionqa.boxes.files import BoxFile
from regionqa.engine import Engine
from regionqa.errors import DataError, ItemError
from regionqa.evaluation.metrics.calibration import (
    UncertaintyRule,
    abstention_metrics,
    calibration_metrics,
    calibration_tables,
)
from regionqa.evaluation.metrics.classes import ClassNames, common_synonyms, is_unsure
from regionqa.evaluation.metrics.statistics import Bools, Figure, mean_of, mean_over_groups
from regionqa.evaluation.results import JudgedAnswers
from regionqa.images.reading import open_image
from regionqa.pipeline.outputs import request_boxes
from regionqa.regions import clip_all
from regionqa.requests import NAMING_QUESTION, Answer, Request

SMALLEST = 32.0
"""Pixels of a box's shorter side, below which it is not asked about if nothing is said."""
EDGES = (0, 16, 32, 48, 64, 96, 128, 192, 256, 512)
"""Where the sizes begin that accuracy is told by, in pixels of the shorter side."""
WORST = 15
"""Confusions that are listed."""
NO_CLASS, NOT_SURE = "(no class)", "(not sure)"
NOTHING_HELD_BACK = UncertaintyRule()


@dataclass(frozen=True)
class NamedBox:
    """One box, and what it was taken for."""

    image: str
    boxes: str
    """The box as text: with the image's name it says which one it is."""
    label: str
    """Its class."""
    reply: str
    said: str | None
    """The class that the reply names; None: none."""
    unsure: bool
    """Whether the model is not sure, says so or would have been held back."""
    confidence: float | None
    """Probability of the answer, where the model gives one."""
    side: float
    """The shorter side, in pixels."""

    @property
    def right(self) -> bool:
        """Whether the reply names its class."""
        return self.said == self.label


@dataclass(frozen=True)
class Recognition:
    """What every box was taken for."""

    boxes: tuple[NamedBox, ...]

    @cached_property
    def outcomes(self) -> Mapping[str, tuple[bool, ...]]:
        """Whether each box was named rightly, by the box's class."""
        found: dict[str, list[bool]] = {}
        for box in self.boxes:
            found.setdefault(box.label, []).append(box.right)
        return {name: tuple(each) for name, each in found.items()}

    def accuracy(self, *, without: str | None = None) -> float:
        """Share of boxes named rightly, in percent; `without`: a class that does not count."""
        return share([box.right for box in self.boxes if box.label != without])

    def count(self, *, without: str | None = None) -> int:
        """Boxes that were asked about."""
        return sum(box.label != without for box in self.boxes)

    @property
    def class_mean(self) -> float:
        """Mean over classes of the share named rightly, in percent."""
        return sum(map(share, self.outcomes.values())) / max(1, len(self.outcomes))

    def most_frequent(self, *, without: str | None = None) -> tuple[str, float]:
        """The class most boxes are of, and what always answering it reaches, in percent."""
        counts = Counter(box.label for box in self.boxes if box.label != without)
        name, count = counts.most_common(1)[0]
        return name, 100 * count / counts.total()


Mapper = Callable[[Sequence[Answer]], list[str | None]]
"""What takes replies for classes, None where it takes one for none."""


def recognise(
    engine: Engine, boxfile: BoxFile, folder: Path, smallest: float = SMALLEST
) -> Recognition:
    """Ask what every labelled box is whose shorter side is at least `smallest` pixels.

    folder: where the images lie that the file names. Replies are taken for classes by names and
    common synonyms. Raises DataError where no box is large enough, ImageError for an image that
    is missing.
    """
    answers = []
    for answer in engine.answer(requests(boxfile, folder, smallest), unsure_below=0, temperature=0):
        if answer.error:
            raise answer.error
        answers.append(answer)
    expect_some(answers, boxfile, smallest)
    return recognition_result(answers, by_words(ClassNames(class_list(boxfile), common_synonyms())))


def requests(
    boxfile: BoxFile, folder: Path, smallest: float = SMALLEST, question: str = NAMING_QUESTION
) -> Iterator[Request]:
    """One request per labelled box that is large enough; what cannot be asked carries its error.

    What COCO marks as a crowd shows no single thing, and is left out, as in training.
    """
    for name in boxfile.images:
        try:
            boxes = boxfile.boxes_for(name) or ()
            if not any(written.label for written in boxes):
                continue
            image = open_image(folder / name)
        except ItemError as error:
            yield Request(name, question, error=error)
            continue
        size = (image.width, image.height)
        for written in boxes:
            if not written.label or written.is_crowd:
                continue
            try:
                region = written.resolve(*size)
                if min(region.box.width, region.box.height) >= smallest:
                    yield Request(name, question, clip_all((region,), *size)[0], image)
            except ItemError as error:
                yield Request(name, question, source=image, error=error)


def class_list(boxfile: BoxFile) -> list[str]:
    """All classes that the file knows, sorted: COCO's categories, else the labels of its boxes."""
    if boxfile.classes is not None:
        return sorted(set(boxfile.classes))
    found = set()
    for name in boxfile.images:
        try:
            found |= {box.label for box in boxfile.boxes_for(name) or () if box.label}
        except ItemError:
            continue  # its request says so
    return sorted(found)


def expect_some(answers: Sequence[object], boxfile: BoxFile, smallest: float) -> None:
    """DataError where nothing was asked."""
    if not answers:
        raise DataError(
            f"{boxfile.source}: no labelled box of {smallest:g} pixels or more; "
            "lower --min-side, or give boxes with labels"
        )


def by_words(names: ClassNames) -> Mapper:
    """Replies taken for classes by the words in them."""
    return lambda answers: [names.named(answer.text) for answer in answers]


def recognition_result(
    answers: Sequence[Answer], mapper: Mapper, sureness: UncertaintyRule = NOTHING_HELD_BACK
) -> Recognition:
    """What the boxes of answered requests were taken for; a reply of not being sure names none."""
    unsure = list(map(sureness.unsure, answers))
    boxes = []
    for answer, said, doubts in zip(answers, mapper(answers), unsure, strict=True):
        (region,) = answer.request.regions
        boxes.append(
            NamedBox(
                image=answer.request.image,
                boxes=request_boxes(answer.request.regions),
                label=region.label or "",
                reply=answer.text,
                said=None if is_unsure(answer.text) else said,
                unsure=doubts,
                confidence=answer.confidence,
                side=min(region.box.width, region.box.height),
            )
        )
    return Recognition(tuple(boxes))


def judge_recognition(found: Recognition) -> JudgedAnswers:
    """All figures of a recognition that named at least one box."""
    boxes = found.boxes
    right = np.array([box.right for box in boxes], bool)
    labels = [box.label for box in boxes]
    unsure = np.array([box.unsure for box in boxes], bool)
    confidence = [box.confidence for box in boxes]
    frequent, _ = found.most_frequent()
    rest = np.array([label != frequent for label in labels], bool)
    figures = [
        Figure("accuracy", "all boxes", mean_of(right), len(boxes)),
        Figure(
            "class_mean", "mean over classes", mean_over_groups(right, labels), len(set(labels))
        ),
    ]
    if rest.any():
        figures.insert(
            1,
            Figure(
                "without_most_frequent", f"without {frequent}", mean_of(right, rest),
                int(rest.sum()),
            ),
        )  # fmt: skip
    figures += abstention_metrics(right, unsure)
    figures += calibration_metrics(right, confidence)
    return JudgedAnswers(
        task="recognition",
        items=tuple(f"{box.image} {box.boxes} {box.label}" for box in boxes),
        images=tuple(box.image for box in boxes),
        figures=tuple(figures),
        groups={"class": _by_class(labels, right), "size": _by_size(boxes, right)},
        listings={
            "always answering the same": always_the_same(found, frequent),
            "confusions": confusions(boxes),
            **calibration_tables(right, confidence),
        },
        right=right,
    )


def _by_class(labels: Sequence[str], right: Bools) -> tuple[Figure, ...]:
    counts = Counter(labels)
    column = np.array(labels, dtype=object)
    return tuple(
        Figure(name, name, mean_of(right, column == name), count)
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _by_size(boxes: Sequence[NamedBox], right: Bools) -> tuple[Figure, ...]:
    sides = np.array([box.side for box in boxes])
    figures = []
    for low, high in zip(EDGES, (*EDGES[1:], float("inf")), strict=True):
        inside = (sides >= low) & (sides < high)
        if inside.any():
            name = f"{low} px and more" if high == float("inf") else f"{low} to {high:g} px"
            figures.append(Figure(f"{low}", name, mean_of(right, inside), int(inside.sum())))
    return tuple(figures)


def always_the_same(found: Recognition, frequent: str) -> list[dict[str, object]]:
    """What naming one class for every box would reach, of all boxes and without the commonest."""
    rows: list[dict[str, object]] = []
    for scope, without in (("all boxes", None), (f"without {frequent}", frequent)):
        if found.count(without=without):
            name, percent = found.most_frequent(without=without)
            rows.append({"boxes": scope, "answer": name, "percent": round(percent, 1)})
    return rows


def confusions(boxes: Iterable[NamedBox], worst: int = WORST) -> list[dict[str, object]]:
    """The pairs of class and reply that cost most, with their count and share of the class."""
    known = list(boxes)
    of_class = Counter(box.label for box in known)
    pairs = Counter(
        (box.label, box.said or (NOT_SURE if is_unsure(box.reply) else NO_CLASS))
        for box in known
        if not box.right
    )
    rows = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:worst]
    return [
        {"class": label, "taken for": said, "count": count,
         "share": round(100 * count / of_class[label], 1)}
        for (label, said), count in rows
    ]  # fmt: skip


def share(outcomes: Sequence[bool]) -> float:
    """Percent that are true; 0 of none."""
    return 100 * sum(outcomes) / max(1, len(outcomes))
