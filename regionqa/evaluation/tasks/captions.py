"""Captions: descriptions of images or regions are compared with reference captions.

    {"image": "a.jpg", "regions": [[1, 2, 30, 40]], "captions": ["a red cup.", "the cup."]}

is a line of a file of references; COCO's captions are read too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from regionqa.backends.base import ModelInfo
from regionqa.boxes.entries import BoxEntry
from regionqa.boxes.fields import excerpt
from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.formats.coco import CocoDocument, is_coco
from regionqa.boxes.images import ImageFolders, exists
from regionqa.boxes.remarks import LeftOut, summarise_remarks
from regionqa.data.fields import (
    ImageName,
    OptionalText,
    RegionList,
    parse_regions,
    read_fields,
    unknown_keys,
)
from regionqa.data.jsonl import JsonFile, JsonLayout
from regionqa.errors import BoxError, BoxFileError, DataError, ItemError
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.metrics.captions import (
    CaptionPair,
    bleu,
    caption_words,
    cider_d,
    meteor,
    rouge_l,
)
from regionqa.evaluation.metrics.classes import ClassNames, common_synonyms
from regionqa.evaluation.metrics.objects import NamedObjects, chair_metrics, unannotated_rows
from regionqa.evaluation.metrics.statistics import Floats, Metric, Statistic, weighted_mean
from regionqa.evaluation.results import TableRows, TaskScores
from regionqa.evaluation.runner import EvalTask
from regionqa.evaluation.tasks.labelled_boxes import class_list
from regionqa.images.reading import InputImage, open_image
from regionqa.pipeline.outputs import request_boxes
from regionqa.regions import WrittenBox, clip_all
from regionqa.requests import Answer, Request

GIVE = (
    'write {"image": "a.jpg", "captions": ["..."]} in each line, with "regions" if it is about '
    "one; or give COCO's captions"
)
COCO_NAME = "{:0>12}.jpg"
"""COCO's file name for an image id."""
SCALE = 100
"""Factor by which caption metrics are reported, as in papers."""
MAX_WORST = 8
"""Captions of lowest CIDEr-D that are listed."""


class CaptionTask(EvalTask):
    """The images and regions of a file of reference captions."""

    def __init__(
        self,
        file: Path,
        images: Path | None = None,
        *,
        limit: int | None = None,
        with_meteor: bool = False,
        boxes: Path | None = None,
    ) -> None:
        """Read the references; see `read_captions` for the files and errors.

        Args:
            file: JSON lines, COCO's captions, or a JSON object of captions by image.
            images: The folder of the images; None: the file's.
            limit: Number of references to use, the first ones; None: all.
            with_meteor: Whether to compute METEOR too, which needs Java.
            boxes: Labelled boxes of the images, to find objects that captions make up (CHAIR);
                None: that is left out.
        """
        self.folder = images or file.parent
        self.references = read_captions(file, self.folder, limit)
        self.with_meteor = with_meteor
        self.settings = {"file": str(file), "meteor": with_meteor, "limit": limit} | (
            {} if boxes is None else {"boxes": str(boxes)}
        )
        self.annotations: Annotations | None = None
        if boxes is not None:
            self.annotations = Annotations(read_boxes(boxes), self.references)
            self.remarks = self.annotations.remarks

    def requests(self, model: ModelInfo) -> Sequence[Request]:
        """Return a request per reference, with the questions of the model's card."""
        return caption_requests(self.references, self.folder, model)

    def score(self, answers: Mapping[int, Answer], uncertainty: UncertaintyRule) -> TaskScores:
        """Score the captions; how certain the model is does not matter."""
        references = [self.references[number] for number in answers]
        captions = list(answers.values())
        scores = meteor(caption_pairs(references, captions)) if self.with_meteor else None
        objects = self.annotations.objects(references, captions) if self.annotations else ()
        return score_captions(references, captions, scores, objects)


# -- files and requests ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """An image, or a region of it, with reference captions."""

    image: str
    boxes: tuple[WrittenBox, ...]
    captions: tuple[str, ...]
    """At least one."""
    question: str | None = None
    """None: the question of the model's card."""
    kind: str | None = None
    """What the metrics are grouped by; None: whether it is about a region."""


def read_captions(path: Path, images: Path, limit: int | None = None) -> list[Reference]:
    """Read the references of a file, in its order; COCO's captions of one image become one.

    Args:
        path: JSON lines, COCO's captions, or a JSON object of captions by image.
        images: The folder of the images; decides whether a numeric name is one of COCO's ids.
        limit: Number of references to return; None: all.

    Raises:
        DataError: The file is missing, empty or malformed; the message names the place.
    """
    found = []
    file = JsonFile.read(path, GIVE)
    for record in file.valid_records(GIVE):
        document = record.document
        try:
            if is_coco(document):
                found += list(_coco(document, path))
            elif isinstance(document, dict) and "image" in document:
                found.append(_reference(document, strict=file.layout is JsonLayout.lines))
            elif isinstance(document, dict):
                found += list(_table(document, images))
            else:
                raise ItemError(f"is {excerpt(document)}, not an object")
        except (ItemError, BoxFileError) as error:
            raise DataError(f"{record.where}: {error}; {GIVE}") from None
    if not found:
        raise DataError(f"{path}: has no captions; {GIVE}")
    return found[:limit]


class ReferenceFields(msgspec.Struct):
    """A record of captions in JSON lines; the last two are allowed and not used."""

    image: ImageName = ""
    regions: RegionList = None
    question: OptionalText = None
    kind: OptionalText = None
    captions: Any = None
    answers: Any = None
    id: Any = None
    meta: Any = None


def _reference(document: dict[str, object], *, strict: bool) -> Reference:
    for unknown in unknown_keys(document, ReferenceFields, strict=strict):
        raise ItemError(unknown)
    fields, problems = read_fields(document, ReferenceFields)
    if problems:
        raise ItemError(problems[0])
    boxes = parse_regions(fields.regions) or ()
    captions = _captions(fields.answers if fields.captions is None else fields.captions)
    return Reference(fields.image, boxes, captions, fields.question, fields.kind)


def _captions(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ItemError(f"its captions are {excerpt(value)}, not a list of strings")
    for text in texts:
        if not isinstance(text, str) or not caption_words(text):
            raise ItemError(f"its caption {excerpt(text)} has no words")
    return tuple(texts)


def _table(document: Mapping[str, object], images: Path) -> Iterator[Reference]:
    """Captions by image: a file name, or COCO's id of it."""
    for name, captions in document.items():
        known = name
        if name.isdigit() and not exists(images / name):
            known = COCO_NAME.format(name)
        yield Reference(known, (), _captions(captions))


def _coco(document: object, path: Path) -> Iterator[Reference]:
    coco = CocoDocument.of(document, path)
    captions: dict[str, list[str]] = {}
    for annotation in coco.annotations():
        captions.setdefault(annotation.image.id, []).append(annotation.caption)
    for number, texts in captions.items():
        yield Reference(coco.images[number].name, (), _captions(texts))


def caption_requests(
    references: Sequence[Reference], images: Path, model: ModelInfo
) -> list[Request]:
    """Return a request per reference; one that fails carries its error.

    The question is the reference's, or the card's for images or for regions.
    """
    open_once = lru_cache(maxsize=1)(open_image)
    folders = ImageFolders(images, [images])
    requests = []
    for reference in references:
        question = reference.question or (
            model.region_question if reference.boxes else model.image_question
        )
        image: InputImage | None = None
        try:
            image = open_once(folders.find(BoxEntry(reference.image)))
            size = (image.width, image.height)
            regions, _ = clip_all(tuple(box.resolve(*size) for box in reference.boxes), *size)
            requests.append(Request(reference.image, question, regions, image))
        except ItemError as error:
            requests.append(Request(reference.image, question, source=image, error=error))
    return requests


# -- scores ----------------------------------------------------------------------------------------


def caption_pairs(references: Sequence[Reference], answers: Sequence[Answer]) -> list[CaptionPair]:
    """Return the words of every caption with those of its references."""
    return [
        CaptionPair(caption_words(answer.text), tuple(map(caption_words, reference.captions)))
        for reference, answer in zip(references, answers, strict=True)
    ]


class Annotations:
    """The classes that are annotated in the images of references."""

    def __init__(self, boxfile: BoxFile, references: Sequence[Reference]) -> None:
        """Look up the images of references that are about no region."""
        self.names = ClassNames(class_list(boxfile), common_synonyms())
        self.labels: dict[str, frozenset[str]] = {}
        left_out = []
        for image in dict.fromkeys(each.image for each in references if not each.boxes):
            try:
                boxes = boxfile.boxes_for(image)
            except BoxError as error:
                left_out.append(LeftOut(image, f"captions of images whose boxes fail ({error})"))
                continue
            if boxes is None:
                left_out.append(LeftOut(image, "captions of images without an entry"))
            else:
                self.labels[image] = frozenset(box.label for box in boxes if box.label)
        lines = summarise_remarks(left_out)
        self.remarks = (*boxfile.remarks, *(f"{boxfile.source}: {line}" for line in lines))

    def objects(
        self, references: Sequence[Reference], answers: Sequence[Answer]
    ) -> list[NamedObjects | None]:
        """Return the objects that each caption names (N,); None for regions and unknown images."""
        return [
            None
            if each.boxes or each.image not in self.labels
            else NamedObjects.of(self.names, answer.text, each.captions, self.labels[each.image])
            for each, answer in zip(references, answers, strict=True)
        ]


def score_captions(
    references: Sequence[Reference],
    answers: Sequence[Answer],
    meteor: Floats | None,
    objects: Sequence[NamedObjects | None] = (),
) -> TaskScores:
    """Score at least one caption.

    Args:
        references: What is described (N,).
        answers: The captions (N,).
        meteor: METEOR of each caption, and last that of all together (N + 1,); None: left out.
        objects: The objects that each caption names (N,); empty: they were not looked for.
    """
    items = caption_pairs(references, answers)
    count = len(items)
    cider = SCALE * cider_d(items)
    metrics = [_metric("cider_d", "CIDEr-D", weighted_mean(cider), count)]
    for n in (1, 2, 3, 4):
        metrics.append(_metric(f"bleu_{n}", f"BLEU-{n}", _scaled(bleu(items, n)), count))
    metrics.append(_metric("rouge_l", "ROUGE-L", _scaled(rouge_l(items)), count))
    if meteor is not None:
        corpus, mean = _constant(SCALE * float(meteor[-1])), weighted_mean(SCALE * meteor[:-1])
        metrics.append(_metric("meteor", "METEOR", corpus, count))
        metrics.append(_metric("meteor_mean", "METEOR, mean of captions", mean, count))
    lengths = weighted_mean([len(item.caption) for item in items])
    metrics.append(_metric("words", "words per caption", lengths, count))
    metrics += chair_metrics(objects)
    kinds = [each.kind or ("region" if each.boxes else "image") for each in references]
    return TaskScores(
        task="caption",
        items=tuple(
            f"{each.request.image} {request_boxes(each.request.regions)} {reference.captions[0]}"
            for each, reference in zip(answers, references, strict=True)
        ),
        images=tuple(reference.image for reference in references),
        metrics=tuple(metrics),
        groups={"kind, CIDEr-D": _metrics_by_kind(cider, kinds)} if len(set(kinds)) > 1 else {},
        tables={"least like": _worst(references, answers, cider), **_unannotated(answers, objects)},
    )


def _metric(key: str, name: str, statistic: Statistic, count: int) -> Metric:
    return Metric(key, name, statistic, count, percent=False)


def _scaled(statistic: Statistic) -> Statistic:
    return lambda weights: SCALE * statistic(weights)


def _constant(value: float) -> Statistic:
    """Return a value that is known for all items together only, so it has no interval."""
    return lambda weights: np.where((weights == 1).all(1), value, np.nan)


def _metrics_by_kind(scores: Floats, kinds: Sequence[str]) -> tuple[Metric, ...]:
    column = np.array(kinds, dtype=object)
    metrics = []
    for name in sorted(set(kinds)):
        mask = np.array(column == name, bool)
        metrics.append(_metric(name, name, weighted_mean(scores, mask), int(mask.sum())))
    return tuple(metrics)


def _unannotated(
    answers: Sequence[Answer], objects: Sequence[NamedObjects | None]
) -> dict[str, TableRows]:
    if not objects:
        return {}
    images, texts = [each.request.image for each in answers], [each.text for each in answers]
    return {"not annotated": unannotated_rows(images, texts, objects)}


def _worst(references: Sequence[Reference], answers: Sequence[Answer], scores: Floats) -> TableRows:
    """Return the captions of lowest score."""
    return [
        {
            "image": references[row].image,
            "said": answers[row].text,
            "people": references[row].captions[0],
            "CIDEr-D": round(float(scores[row]), 1),
        }
        for row in np.argsort(scores, kind="stable")[:MAX_WORST].tolist()
    ]
