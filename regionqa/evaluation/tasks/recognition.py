"""Recognition: each labelled box is asked what it is, and the reply is matched to a class.

    recognise(engine, read_boxes(Path("instances.json")), Path("images")).accuracy()

`RecognitionTask` does the same for `regionqa eval`, with every option and metric.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from regionqa.backends.base import ModelInfo
from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.remarks import LeftOut, summarise_remarks
from regionqa.boxes.sizes import SizeCheck
from regionqa.engine import Engine
from regionqa.evaluation.metrics.calibration import (
    UncertaintyRule,
    abstention_metrics,
    calibration_metrics,
    calibration_tables,
)
from regionqa.evaluation.metrics.classes import (
    Classifier,
    ClassNames,
    common_synonyms,
    encoder_classifier,
    is_unsure,
    read_synonyms,
)
from regionqa.evaluation.metrics.statistics import (
    Bools,
    Metric,
    mean_over_groups,
    weighted_mean,
)
from regionqa.evaluation.results import TableRows, TaskScores
from regionqa.evaluation.runner import EvalTask
from regionqa.evaluation.tasks.labelled_boxes import (
    MIN_SIDE,
    box_requests,
    class_list,
    require_boxes,
)
from regionqa.pipeline.outputs import request_boxes
from regionqa.requests import NAMING_QUESTION, Answer, Request

SIZE_EDGES = (0, 16, 32, 48, 64, 96, 128, 192, 256, 512)
"""Lower ends of the size groups: pixels of the shorter side."""
COCO_AREAS = (
    ("small", "small (area below 32 x 32 px)", 0, 32**2),
    ("medium", "medium (32 x 32 to 96 x 96 px)", 32**2, 96**2),
    ("large", "large (96 x 96 px and more)", 96**2, float("inf")),
)
"""COCO's three sizes: key, name, and half-open range of the box's area in square pixels."""
MAX_CONFUSIONS = 15
"""Confusions that are listed."""
NO_CLASS, NOT_SURE = "(no class)", "(not sure)"
AllNamed = Callable[[str], Sequence[str]]
"""Returns all classes that a reply names."""


class RecognitionTask(EvalTask):
    """The labelled boxes of a file."""

    def __init__(
        self,
        boxes: Path,
        images: Path | None = None,
        *,
        min_side: float = MIN_SIDE,
        question: str = NAMING_QUESTION,
        classes: Path | None = None,
        encoder: str | None = None,
        limit: int | None = None,
        scale_boxes: bool = False,
    ) -> None:
        """Read the boxes and prepare a request for each.

        Args:
            boxes: A file or folder of boxes with labels, in any format that `read_boxes` reads.
            images: The folder of the images; None: the boxes' folder.
            min_side: Minimum of a box's shorter side, in pixels.
            question: What each box is asked.
            classes: A TOML file of further class names and synonyms.
            encoder: The sentence encoder that matches replies to classes; None: words do.
            limit: Number of boxes to ask about, the first ones; None: all.
            scale_boxes: Whether boxes are scaled from the sizes that the file states.

        Raises:
            DataError: A file cannot be read, or no box is large enough.
        """
        boxfile = read_boxes(boxes)
        folder = images or (boxes if boxes.is_dir() else boxes.parent)
        left_out, sizes = list[LeftOut](), SizeCheck(boxfile.source, scale_boxes)
        requests = box_requests(boxfile, folder, min_side, question, left_out, sizes)
        self._requests = tuple(islice(requests, limit))
        lines = (f"{boxes}: {line}" for line in summarise_remarks(left_out))
        self.remarks = (*boxfile.remarks, *lines, *sizes.summary)
        require_boxes(self._requests, boxfile, min_side)
        own = read_synonyms(classes) if classes else {}
        names = list(dict.fromkeys([*class_list(boxfile), *own]))
        self.classify: Classifier
        self.all_named: AllNamed | None = None
        if encoder is None:
            by_words = ClassNames(names, common_synonyms(), own)
            self.classify, self.all_named = by_words.classify, by_words.all_named
        else:
            self.classify = encoder_classifier(names, encoder)
        self.settings = {
            "boxes": str(boxes),
            "min_side": min_side,
            "question": question,
            "classes": len(names),
            "by": "sentence-encoder" if encoder else "words",
            "encoder": encoder,
            "limit": limit,
        } | ({"scale_boxes": True} if scale_boxes else {})

    def requests(self, model: ModelInfo) -> Sequence[Request]:
        """Return a request per box."""
        return self._requests

    def score(self, answers: Mapping[int, Answer], uncertainty: UncertaintyRule) -> TaskScores:
        """Score the boxes that were answered."""
        given = list(answers.values())
        return score_recognition(predictions(given, self.classify, uncertainty, self.all_named))


# -- predictions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxPrediction:
    """A labelled box, and the class that the model's reply names."""

    image: str
    box: str
    """The box as text; with the image it identifies the item."""
    label: str
    """The true class."""
    reply: str
    predicted: str | None
    """The class that the reply names; None: none."""
    unsure: bool
    """Whether the answer counts as "not sure"."""
    confidence: float | None
    """Confidence of the answer, if the model gives one."""
    side: float
    """The shorter side, in pixels."""
    area: float
    """In square pixels."""
    named: tuple[str, ...] | None = None
    """All classes that the reply names; None: replies are not matched by words."""

    @property
    def correct(self) -> bool:
        """Whether the predicted class is the label."""
        return self.predicted == self.label


@dataclass(frozen=True)
class Recognition:
    """The predictions of one model."""

    boxes: tuple[BoxPrediction, ...]

    @cached_property
    def outcomes(self) -> Mapping[str, tuple[bool, ...]]:
        """Whether each prediction is right, by class."""
        found: dict[str, list[bool]] = {}
        for box in self.boxes:
            found.setdefault(box.label, []).append(box.correct)
        return {name: tuple(each) for name, each in found.items()}

    def accuracy(self, *, without: str | None = None) -> float:
        """Return the accuracy in percent; `without`: a class that is left out."""
        return percent([box.correct for box in self.boxes if box.label != without])

    def count(self, *, without: str | None = None) -> int:
        """Return the number of boxes; `without`: a class that is left out."""
        return sum(box.label != without for box in self.boxes)

    @property
    def class_mean(self) -> float:
        """The mean over classes of the accuracy, in percent."""
        return sum(map(percent, self.outcomes.values())) / max(1, len(self.outcomes))

    def most_frequent(self, *, without: str | None = None) -> tuple[str, float]:
        """Return the most frequent class, and its share of the boxes in percent."""
        counts = Counter(box.label for box in self.boxes if box.label != without)
        name, count = counts.most_common(1)[0]
        return name, 100 * count / counts.total()


def percent(outcomes: Sequence[bool]) -> float:
    """Return the percentage that is true; 0 for an empty sequence."""
    return 100 * sum(outcomes) / max(1, len(outcomes))


def recognise(
    engine: Engine, boxfile: BoxFile, folder: Path, min_side: float = MIN_SIDE
) -> Recognition:
    """Ask an engine what each labelled box is; replies are matched by names and common synonyms.

    Args:
        engine: The model.
        boxfile: Boxes with labels.
        folder: The folder of the images.
        min_side: Minimum of a box's shorter side, in pixels.

    Raises:
        DataError: No box is large enough.
        ItemError: A box cannot be asked about, for example because its image is missing.
    """
    requests = box_requests(boxfile, folder, min_side)
    answers = []
    for answer in engine.answer(requests, unsure_below=0, temperature=0):
        if answer.error:
            raise answer.error
        answers.append(answer)
    require_boxes(answers, boxfile, min_side)
    names = ClassNames(class_list(boxfile), common_synonyms())
    return predictions(answers, names.classify, UncertaintyRule())


def predictions(
    answers: Sequence[Answer],
    classify: Classifier,
    uncertainty: UncertaintyRule,
    all_named: AllNamed | None = None,
) -> Recognition:
    """Return what each answered box was recognised as; a reply that is unsure names no class."""
    boxes = []
    classes = classify([answer.text for answer in answers])
    for answer, named in zip(answers, classes, strict=True):
        (region,) = answer.request.regions
        boxes.append(
            BoxPrediction(
                image=answer.request.image,
                box=request_boxes(answer.request.regions),
                label=region.label or "",
                reply=answer.text,
                predicted=None if is_unsure(answer.text) else named,
                unsure=uncertainty.unsure(answer),
                confidence=answer.confidence,
                side=min(region.box.width, region.box.height),
                area=region.box.width * region.box.height,
                named=None if all_named is None else tuple(all_named(answer.text)),
            )
        )
    return Recognition(tuple(boxes))


# -- scores ----------------------------------------------------------------------------------------


def score_recognition(found: Recognition) -> TaskScores:
    """Score at least one prediction."""
    boxes = found.boxes
    correct = np.array([box.correct for box in boxes], bool)
    labels = [box.label for box in boxes]
    unsure = np.array([box.unsure for box in boxes], bool)
    confidence = [box.confidence for box in boxes]
    frequent, _ = found.most_frequent()
    rest = np.array([label != frequent for label in labels], bool)
    metrics = [Metric("accuracy", "all boxes", weighted_mean(correct), len(boxes))]
    if rest.any():
        statistic, count = weighted_mean(correct, rest), int(rest.sum())
        metrics.append(Metric("without_most_frequent", f"without {frequent}", statistic, count))
    class_mean = mean_over_groups(correct, labels)
    metrics.append(Metric("class_mean", "mean over classes", class_mean, len(set(labels))))
    if all(box.named is not None for box in boxes):
        anywhere = weighted_mean([box.label in (box.named or ()) for box in boxes])
        metrics.append(Metric("label_named", "class named anywhere", anywhere, len(boxes)))
    metrics += abstention_metrics(correct, unsure)
    metrics += calibration_metrics(correct, confidence)
    return TaskScores(
        task="recognition",
        items=tuple(f"{box.image} {box.box} {box.label}" for box in boxes),
        images=tuple(box.image for box in boxes),
        metrics=tuple(metrics),
        groups={
            "class": _metrics_by_class(labels, correct),
            "size": _metrics_by_size(boxes, correct),
            **_metrics_by_area(boxes, correct, unsure),
        },
        tables={
            "always answering the same": constant_baseline(found, frequent),
            "confusions": confusions(boxes),
            **calibration_tables(correct, confidence),
        },
        correct=correct,
    )


def _metrics_by_class(labels: Sequence[str], correct: Bools) -> tuple[Metric, ...]:
    """Accuracy by class, the most frequent one first."""
    counts = Counter(labels)
    column = np.array(labels, dtype=object)
    return tuple(
        Metric(name, name, weighted_mean(correct, column == name), count)
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _metrics_by_size(boxes: Sequence[BoxPrediction], correct: Bools) -> tuple[Metric, ...]:
    """Accuracy by size of the shorter side, in half-open ranges [low, high)."""
    sides = np.array([box.side for box in boxes])
    metrics = []
    for low, high in zip(SIZE_EDGES, (*SIZE_EDGES[1:], float("inf")), strict=True):
        inside = (sides >= low) & (sides < high)
        if inside.any():
            name = f"{low} px and more" if high == float("inf") else f"{low} to {high:g} px"
            statistic = weighted_mean(correct, inside)
            metrics.append(Metric(f"{low}", name, statistic, int(inside.sum())))
    return tuple(metrics)


def _metrics_by_area(
    boxes: Sequence[BoxPrediction], correct: Bools, unsure: Bools
) -> dict[str, tuple[Metric, ...]]:
    """Accuracy by COCO's sizes; with answers held back, the share answered and its accuracy too."""
    areas = np.array([box.area for box in boxes])
    groups: dict[str, list[Metric]] = {"area": [], "area, answered": [], "area, where sure": []}
    for key, name, low, high in COCO_AREAS:
        inside = (areas >= low) & (areas < high)
        sure = inside & ~unsure
        if not inside.any():
            continue
        count = int(inside.sum())
        groups["area"].append(Metric(key, name, weighted_mean(correct, inside), count))
        if unsure.any():
            answered = Metric(key, name, weighted_mean(~unsure, inside), count)
            groups["area, answered"].append(answered)
            right = Metric(key, name, weighted_mean(correct, sure), int(sure.sum()))
            groups["area, where sure"].append(right)
    return {name: tuple(metrics) for name, metrics in groups.items() if metrics}


def constant_baseline(found: Recognition, frequent: str) -> TableRows:
    """Return the accuracy of always answering one class: of all boxes, and without `frequent`."""
    rows: list[dict[str, object]] = []
    for scope, without in (("all boxes", None), (f"without {frequent}", frequent)):
        if found.count(without=without):
            name, share = found.most_frequent(without=without)
            rows.append({"boxes": scope, "answer": name, "percent": round(share, 1)})
    return rows


def confusions(boxes: Sequence[BoxPrediction], limit: int = MAX_CONFUSIONS) -> TableRows:
    """Return the most frequent pairs of true and predicted class, with their share of the class."""
    class_counts = Counter(box.label for box in boxes)
    pairs = Counter(
        (box.label, box.predicted or (NOT_SURE if is_unsure(box.reply) else NO_CLASS))
        for box in boxes
        if not box.correct
    )
    rows = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [
        {
            "class": label,
            "taken for": predicted,
            "count": count,
            "share": round(100 * count / class_counts[label], 1),
        }
        for (label, predicted), count in rows
    ]
