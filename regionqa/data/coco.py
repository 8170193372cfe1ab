"""COCO annotations as training records: each box is asked what it is, and its class answers.

It does not know where the document came from.
"""

from collections.abc import Iterator
from pathlib import Path

from regionqa.boxes.coco import coco_box, coco_image, coco_labels, coco_names
from regionqa.boxes.fields import member
from regionqa.data.conversations import text_problems
from regionqa.data.english import with_article
from regionqa.data.images import ImageFinder, place_region
from regionqa.data.records import Problem, Record, Turn
from regionqa.errors import BoxError, BoxFileError, ImageError
from regionqa.requests import NAMING_QUESTION


def coco_records(document: object, path: Path, images: ImageFinder) -> Iterator[Record | Problem]:
    """A record or a problem of every annotation that is no crowd.

    Raises BoxFileError where the images or categories themselves are malformed.
    """
    names, labels = coco_names(document, path), coco_labels(document, path)
    turns = {
        label: Turn(NAMING_QUESTION, answer_of(label)) for label in filter(None, labels.values())
    }
    for index, annotation in enumerate(member(document, "annotations", list, str(path))):
        if is_crowd(annotation):
            continue
        number = annotation.get("id") if isinstance(annotation, dict) else None
        place_in_file = f"annotations[{index}]" if number is None else f"annotation {number}"
        where = f"{path.name}: {place_in_file}"
        try:
            written = coco_box(annotation, labels, where)
            image = images.find(names[coco_image(annotation, names, where)])
            region, cut = place_region(written, image)
        except (BoxError, BoxFileError, ImageError) as error:
            # the place stands before every problem; some errors name it too
            text = str(error).removeprefix(f"{where}: ").replace(f" in {where}:", ":", 1)
            yield Problem(where, text)
            continue
        if written.label is None:
            yield Problem(where, "has no category, so nothing is known of it; give it one")
            continue
        turn = turns[written.label]
        wrong = [*text_problems((turn.question, turn.answer), given=1)]
        if wrong:
            yield from (Problem(where, text) for text in wrong)
        else:
            yield Record(image.path, (region,), (turn,), where, int(cut))


def answer_of(label: str) -> str:
    """What is said of a box of this class."""
    return f"{with_article(label)}."


def is_crowd(annotation: object) -> bool:
    """Whether COCO marks the annotation as a crowd, which is no single thing to name."""
    return isinstance(annotation, dict) and bool(annotation.get("iscrowd"))
