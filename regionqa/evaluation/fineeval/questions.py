"""FineEval: PVIT's 130 questions about 50 photos, with the answers of four systems.

    data = read_fineeval(Path("DATA/fineeval"))

There are no reference answers: people rank the answers on a page (page.py), and ranking.py counts
the rankings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from regionqa.boxes.fields import excerpt
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.data.jsonl import JsonFile, JsonRecord
from regionqa.errors import DataError, ItemError
from regionqa.files import is_folder
from regionqa.images.reading import open_image
from regionqa.language.references import number_regions
from regionqa.regions import WrittenBox, clip_all
from regionqa.requests import Request

FILE = "fineeval.jsonl"
GIVE = (
    'write {"image": "0000.jpg", "instruction": "...", "instruction_no_region": "...", '
    '"recorded": {"pvit": "..."}}'
)


@dataclass(frozen=True)
class FineEvalItem:
    """One question and its recorded answers."""

    number: int
    """Line in the file, from 1."""
    image: str
    """File name."""
    question: str
    """`<region1>` names the first of `boxes`, and so on."""
    boxes: tuple[WrittenBox, ...]
    """In thousandths of the image."""
    in_words: str
    """The question with words in place of regions, for systems that take no regions."""
    recorded: dict[str, str]
    """Recorded answers by system."""


@dataclass(frozen=True)
class FineEval:
    """The questions of a file, and the folder of their images."""

    source: Path
    images: Path
    items: tuple[FineEvalItem, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems that have a recorded answer to every question."""
        everywhere = set.intersection(*(set(item.recorded) for item in self.items))
        return tuple(name for name in self.items[0].recorded if name in everywhere)


def read_fineeval(path: Path, images: Path | None = None, limit: int | None = None) -> FineEval:
    """Read the questions of a file, or of the `fineeval.jsonl` in a folder.

    Args:
        path: The file or folder.
        images: The folder of the images; None: `images` beside the file if it exists, else the
            file's own folder.
        limit: Number of questions to return, the first ones; None: all.

    Raises:
        DataError: The file is missing or malformed; the message names the line.
    """
    file = path / FILE if is_folder(path) else path
    items = [_item(record) for record in JsonFile.read(file, GIVE).valid_records(GIVE)]
    if not items:
        raise DataError(f"{file}: has no questions; {GIVE}")
    beside = file.parent / "images"
    folder = images or (beside if beside.is_dir() else file.parent)
    return FineEval(file, folder, tuple(items[:limit]))


def _item(record: JsonRecord) -> FineEvalItem:
    where, fields = record.where, record.document
    if not isinstance(fields, dict):
        raise DataError(f"{where}: is {excerpt(fields)}, not an object; {GIVE}")
    texts = {}
    for key in ("image", "instruction", "instruction_no_region"):
        value = fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {key!r} is {excerpt(value)}, not a string; {GIVE}")
        texts[key] = value.strip()
    recorded = fields.get("recorded", {})
    if not isinstance(recorded, dict) or not all(isinstance(v, str) for v in recorded.values()):
        raise DataError(f"{where}: 'recorded' is not an object of answers by system; {GIVE}")
    [question], boxes = number_regions([texts["instruction"]])
    return FineEvalItem(
        record.number,
        texts["image"],
        question,
        tuple(boxes),
        texts["instruction_no_region"],
        recorded,
    )


def fineeval_requests(data: FineEval, region_input: RegionInput) -> list[Request]:
    """Return a request per question; each is asked alone, though some follow on the one before.

    Args:
        data: The questions.
        region_input: How the model takes regions; one that takes none is asked in words, as LLaVA
            was.
    """
    open_once = lru_cache(maxsize=1)(open_image)
    requests = []
    for item in data.items:
        name = str(data.images / item.image)
        question, boxes = item.question, item.boxes
        if region_input is RegionInput.none:
            question, boxes = item.in_words, ()
        try:
            image = open_once(name)
            size = (image.width, image.height)
            regions, _ = clip_all(tuple(box.resolve(*size) for box in boxes), *size)
            requests.append(Request(item.image, question, regions, image))
        except ItemError as error:
            requests.append(Request(item.image, question, error=error))
    return requests


def answers_by_system(
    data: FineEval, answers: Sequence[tuple[str, Sequence[str | None]]]
) -> list[dict[str, str]]:
    """Return the answers to rank by system, for every item; missing answers are left out.

    Args:
        data: The questions with their recorded answers.
        answers: Name and answers (by item) of each model asked now; None: it failed.

    Raises:
        DataError: Two systems have one name.
    """
    names = [*data.systems, *(name for name, _ in answers)]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{name}: two systems have this name; rename the model in its card")
    return [
        {name: item.recorded[name] for name in data.systems}
        | {name: text for name, each in answers if (text := each[row]) is not None}
        for row, item in enumerate(data.items)
    ]
