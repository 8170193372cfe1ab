"""FineEval: PVIT's 130 questions about 50 photos, with the answers that four systems gave.

    items = read_fineeval(Path("DATA/fineeval"))

Nothing says which answer is right: people rank them (page.py), and ranking.py counts. It reads the
file and makes requests; it does not know about pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from regionqa.boxes.fields import excerpt, parse_json
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.data.conversations import number_regions
from regionqa.errors import DataError, ItemError
from regionqa.images.reading import open_image
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
    """Its place in the file, from 1."""
    image: str
    """The image's name."""
    question: str
    """`<region1>` names the first of `boxes`, and so on."""
    boxes: tuple[WrittenBox, ...]
    """In per mille of the image."""
    in_words: str
    """The same question with words in place of regions, for systems that take none."""
    recorded: dict[str, str]
    """Answers by system."""


@dataclass(frozen=True)
class FineEval:
    """The file and the folder of its images."""

    source: Path
    images: Path
    items: tuple[FineEvalItem, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """The systems whose answers are recorded for every question."""
        everywhere = set.intersection(*(set(item.recorded) for item in self.items))
        return tuple(name for name in self.items[0].recorded if name in everywhere)


def read_fineeval(path: Path, images: Path | None = None, limit: int | None = None) -> FineEval:
    """All questions of a file, or of the `fineeval.jsonl` in a folder.

    images: the images' folder; `images` beside the file if not given, or else the file's own.
    Raises DataError, naming the line, where the file is missing or malformed.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file; name FineEval's folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}; name FineEval's folder") from None
    items = [
        _item(line, number, f"{file}:{number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not items:
        raise DataError(f"{file}: holds no questions; {GIVE}")
    beside = file.parent / "images"
    folder = images or (beside if beside.is_dir() else file.parent)
    return FineEval(file, folder, tuple(items[:limit]))


def _item(line: str, number: int, where: str) -> FineEvalItem:
    try:
        fields = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON: {error}; {GIVE}") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: is {excerpt(fields)}, not an object; {GIVE}")
    texts = {}
    for key in ("image", "instruction", "instruction_no_region"):
        value = fields.get(key)
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: {key!r} is {excerpt(value)}, not text; {GIVE}")
        texts[key] = value.strip()
    recorded = fields.get("recorded", {})
    if not isinstance(recorded, dict) or not all(isinstance(v, str) for v in recorded.values()):
        raise DataError(f"{where}: 'recorded' is no answer by system; {GIVE}")
    [question], boxes = number_regions([texts["instruction"]])
    return FineEvalItem(
        number, texts["image"], question, tuple(boxes), texts["instruction_no_region"], recorded
    )


def fineeval_requests(data: FineEval, region_input: RegionInput) -> list[Request]:
    """A request per question, each on its own, though some follow on from the one before.

    region_input: what the model is told of regions; one that is told nothing is asked in words, as
    LLaVA was.
    """
    open_once = lru_cache(maxsize=1)(open_image)
    asked = []
    for item in data.items:
        name = str(data.images / item.image)
        question, boxes = item.question, item.boxes
        if region_input is RegionInput.none:
            question, boxes = item.in_words, ()
        try:
            image = open_once(name)
            size = (image.width, image.height)
            regions, _ = clip_all(tuple(box.resolve(*size) for box in boxes), *size)
            asked.append(Request(item.image, question, regions, image))
        except ItemError as error:
            asked.append(Request(item.image, question, error=error))
    return asked


def with_answers(
    data: FineEval, answers: Sequence[tuple[str, Sequence[str | None]]]
) -> list[dict[str, str]]:
    """What is to be ranked, by system, for every item; systems that gave none are left out.

    answers: name and answers (by item) of every model that was asked now.
    Raises DataError where a model has the name of a recorded system, or of another model.
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
