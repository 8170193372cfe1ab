"""Captions: a model describes pictures or regions, and is compared with what people wrote.

    {"image": "a.jpg", "regions": [[1, 2, 30, 40]], "captions": ["a red cup.", "the cup."]}

Reads JSON lines, COCO's captions, and a table of captions by picture, and judges what was said. It
does not know a model: what is asked, its card says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from regionqa.boxes.coco import CocoDocument, is_coco
from regionqa.boxes.fields import excerpt
from regionqa.bundles.prompt_rules import PromptRules
from regionqa.data.fields import parse_regions
from regionqa.data.jsonl import read_records
from regionqa.errors import BoxFileError, DataError, ItemError
from regionqa.evaluation.metrics.captions import CaptionPair, bleu, caption_words, cider_d, rouge_l
from regionqa.evaluation.metrics.statistics import Figure, Floats, Measure, mean_of
from regionqa.evaluation.results import JudgedAnswers
from regionqa.images.reading import InputImage, open_image
from regionqa.pipeline.outputs import request_boxes
from regionqa.regions import WrittenBox, clip_all
from regionqa.requests import Answer, Request

GIVE = (
    'write {"image": "a.jpg", "captions": ["..."]} in each line, with "regions" if it is about '
    "one; or give COCO's captions"
)
COCO_NAME = "{:0>12}.jpg"
"""What COCO calls the image of an id."""
ALIKE = 100
"""CIDEr and the others are told a hundredfold, as papers do."""


@dataclass(frozen=True)
class Reference:
    """An image, or a region of it, and what people wrote about it."""

    image: str
    boxes: tuple[WrittenBox, ...]
    captions: tuple[str, ...]
    """At least one."""
    question: str | None = None
    """What to ask; None: what the model's card says."""
    kind: str | None = None
    """What the figures are grouped by; None: whether it is about a region."""


def read_captions(path: Path, images: Path, limit: int | None = None) -> list[Reference]:
    """All references of a file, in its order; several captions of one thing are together.

    images: where the images lie; only needed to tell what COCO's ids are called there.
    Raises DataError, naming the place, for a file that is missing, empty or malformed.
    """
    found = []
    for where, document in read_records(path, GIVE):
        try:
            if is_coco(document):
                found += list(_coco(document, path))
            elif isinstance(document, dict) and "image" in document:
                found.append(_reference(document))
            elif isinstance(document, dict):
                found += list(_table(document, images))
            else:
                raise ItemError(f"is {excerpt(document)}, not an object")
        except (ItemError, BoxFileError) as error:
            raise DataError(f"{where}: {error}; {GIVE}") from None
    if not found:
        raise DataError(f"{path}: holds no captions; {GIVE}")
    return found[:limit]


def _reference(document: dict[str, object]) -> Reference:
    image, question, kind = (document.get(key) for key in ("image", "question", "kind"))
    if not isinstance(image, str) or not image:
        raise ItemError(f"its image is {excerpt(image)}, not a name")
    if not isinstance(question, str | None) or not isinstance(kind, str | None):
        raise ItemError("its question or kind is no text")
    boxes = parse_regions(document.get("regions")) or ()
    captions = _captions(document.get("captions", document.get("answers")))
    return Reference(image, boxes, captions, question, kind)


def _captions(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ItemError(f"its captions are {excerpt(value)}, not a list of texts")
    for text in texts:
        if not isinstance(text, str) or not caption_words(text):
            raise ItemError(f"its caption {excerpt(text)} holds no word")
    return tuple(texts)


def _table(document: Mapping[str, object], images: Path) -> Iterator[Reference]:
    """Captions by image: its name, or COCO's id of it."""
    for name, captions in document.items():
        known = name
        if name.isdigit() and not (images / name).exists():
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
    references: Sequence[Reference], images: Path, rules: PromptRules
) -> list[Request]:
    """A request per reference, in the card's words: about the image, or about a region."""
    open_once = lru_cache(maxsize=1)(open_image)
    asked = []
    for reference in references:
        question = reference.question or (
            rules.region_question if reference.boxes else rules.image_question
        )
        image: InputImage | None = None
        try:
            image = open_once(str(images / reference.image))
            size = (image.width, image.height)
            regions, _ = clip_all(tuple(box.resolve(*size) for box in reference.boxes), *size)
            asked.append(Request(reference.image, question, regions, image))
        except ItemError as error:
            asked.append(Request(reference.image, question, source=image, error=error))
    return asked


def as_words(references: Sequence[Reference], answers: Sequence[Answer]) -> list[CaptionPair]:
    """What was said and what people wrote, as words."""
    return [
        CaptionPair(caption_words(answer.text), tuple(map(caption_words, reference.captions)))
        for reference, answer in zip(references, answers, strict=True)
    ]


def judge_captions(
    references: Sequence[Reference], answers: Sequence[Answer], meteor: Floats | None
) -> JudgedAnswers:
    """All figures of at least one answered reference, one answer each; told a hundredfold.

    meteor: every item's score (N,) with the score of all together last, (N + 1,); None: not told.
    """
    items = as_words(references, answers)
    count = len(items)
    cider = ALIKE * cider_d(items)
    figures = [
        Figure("cider_d", "CIDEr-D", mean_of(cider), count, percent=False),
        *(Figure(f"bleu_{n}", f"BLEU-{n}", _alike(bleu(items, n)), count, percent=False)
          for n in (1, 2, 3, 4)),
        Figure("rouge_l", "ROUGE-L", _alike(rouge_l(items)), count, percent=False),
    ]  # fmt: skip
    if meteor is not None:
        figures.append(
            Figure("meteor", "METEOR", _of_all(ALIKE * float(meteor[-1])), count, percent=False)
        )
        figures.append(
            Figure("meteor_mean", "METEOR, mean of captions", mean_of(ALIKE * meteor[:-1]), count,
                   percent=False)
        )  # fmt: skip
    lengths = [len(item.said) for item in items]
    figures.append(Figure("words", "words in a caption", mean_of(lengths), count, percent=False))
    kinds = [each.kind or ("region" if each.boxes else "image") for each in references]
    return JudgedAnswers(
        task="caption",
        items=tuple(
            f"{each.request.image} {request_boxes(each.request.regions)} {reference.captions[0]}"
            for each, reference in zip(answers, references, strict=True)
        ),
        images=tuple(reference.image for reference in references),
        figures=tuple(figures),
        groups={"kind, CIDEr-D": _by_kind(cider, kinds)} if len(set(kinds)) > 1 else {},
        listings={"least like": _least(references, answers, cider)},
    )


def _alike(measure: Measure) -> Measure:
    return lambda weights: ALIKE * measure(weights)


def _of_all(value: float) -> Measure:
    """A figure known only of all items together, so without an interval."""
    return lambda weights: np.where((weights == 1).all(1), value, np.nan)


def _by_kind(scores: Floats, kinds: Sequence[str]) -> tuple[Figure, ...]:
    column = np.array(kinds, dtype=object)
    figures = []
    for name in sorted(set(kinds)):
        mask = np.array(column == name, bool)
        figures.append(Figure(name, name, mean_of(scores, mask), int(mask.sum()), percent=False))
    return tuple(figures)


def _least(
    references: Sequence[Reference], answers: Sequence[Answer], scores: Floats, most: int = 8
) -> list[dict[str, object]]:
    """The captions that are least like what people wrote."""
    return [
        {
            "image": references[row].image,
            "said": answers[row].text,
            "people": references[row].captions[0],
            "CIDEr-D": round(float(scores[row]), 1),
        }
        for row in np.argsort(scores, kind="stable")[:most].tolist()
    ]
