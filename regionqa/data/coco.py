"""COCO annotations as training records: a naming question per box, answered by its class."""

from collections.abc import Iterator
from pathlib import Path

from regionqa.boxes.entries import LeftOut
from regionqa.boxes.formats.coco import CocoAnnotation, CocoDocument
from regionqa.data.conversations import text_problems
from regionqa.data.english import with_article
from regionqa.data.images import ImageFinder, place_region
from regionqa.data.records import Problem, Record, Turn
from regionqa.errors import BoxError, BoxFileError, ImageError
from regionqa.requests import NAMING_QUESTION


def coco_records(
    document: object, path: Path, images: ImageFinder
) -> Iterator[Record | Problem | LeftOut]:
    """Read a record, or a problem, from every annotation; crowds are left out.

    Raises:
        BoxFileError: If the images or categories themselves are malformed.
    """
    coco = CocoDocument.of(document, path)
    turns = {
        label: Turn(NAMING_QUESTION, f"{with_article(label)}.")
        for label in filter(None, coco.categories.values())
    }
    for annotation in coco.annotations():
        place = f"annotations[{annotation.index}]"
        if annotation.id is not None:
            place = f"annotation {annotation.id}"
        where = f"{path.name}: {place}"
        if annotation.is_crowd:
            yield LeftOut(where, "crowd")
        else:
            yield from _read(annotation, where, images, turns)


def _read(
    annotation: CocoAnnotation, where: str, images: ImageFinder, turns: dict[str, Turn]
) -> Iterator[Record | Problem]:
    try:
        written = annotation.box
        image = images.find(annotation.image.name)
        region, cut = place_region(written, image)
    except (BoxError, BoxFileError, ImageError) as error:
        # a problem begins with its place, which some of these messages name as well
        place = annotation.where
        yield Problem(where, str(error).removeprefix(f"{place}: ").replace(f" in {place}:", ":", 1))
        return
    if written.label is None:
        yield Problem(where, "has no category, so there is no answer to learn; give it one")
        return
    turn = turns[written.label]
    wrong = [*text_problems((turn.question, turn.answer), given=1)]
    if wrong:
        yield from (Problem(where, text) for text in wrong)
    else:
        yield Record(image.path, (region,), (turn,), where, int(cut))
