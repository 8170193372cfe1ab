"""Files of training data: recognised by what they hold, read whole, every problem kept.

    data = read_training_data(Path("mine.jsonl"))

This is the door; records are read in conversations.py and cocorecords.py. A bad record becomes a
`Problem` and reading goes on; a file of which nothing can be read is a DataError.
"""

import hashlib
from collections.abc import Iterable, Iterator
from json import JSONDecodeError
from pathlib import Path

from regionqa.boxes.coco import is_coco
from regionqa.boxes.entries import LeftOut
from regionqa.boxes.fields import parse_json
from regionqa.data.coco import coco_records
from regionqa.data.conversations import read_record
from regionqa.data.images import ImageFinder
from regionqa.data.records import DataFormat, Problem, Record, TrainingData
from regionqa.errors import BoxFileError, DataError

GIVE = (
    "give JSON lines of image, regions and conversations, a JSON array of LLaVA or PVIT, "
    "or COCO instances; see docs/guide/data.md"
)
LINES_SUFFIXES = (".jsonl", ".ndjson")
"""Settle what a file was meant as, where no line of it can be read."""

Found = Iterable[Record | Problem | LeftOut]


def read_training_data(path: Path, images: Path | None = None) -> TrainingData:
    """Every record of a file, and every problem of those that cannot be used.

    images: the folder that the names of images start from; the file's own where not given, and
    for COCO the folder `images` in that too. Of an image only the header is read.
    Raises DataError where the file cannot be read or is of no kind that is known.
    """
    content = _content(path)
    text = content.decode("utf-8-sig", "surrogateescape")  # stray bytes spoil one record only
    folders = [path.parent, path.parent / "images"] if images is None else [images]
    if not text.strip():
        raise DataError(f"{path}: is empty; {GIVE}")
    format, found = _recognised(text, path, folders)
    try:
        parts = list(found)
    except BoxFileError as error:
        raise DataError(str(error)) from None
    return TrainingData(
        source=path,
        format=format,
        records=tuple(part for part in parts if isinstance(part, Record)),
        problems=tuple(part for part in parts if isinstance(part, Problem)),
        sha256=hashlib.sha256(content).hexdigest(),
        left_out=tuple(part for part in parts if isinstance(part, LeftOut)),
    )


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read: {reason}; name a file") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8")
    return content


def _recognised(text: str, path: Path, folders: list[Path]) -> tuple[DataFormat, Found]:
    """The format and what the file holds."""
    images = ImageFinder(folders[:1])
    try:
        document = parse_json(text)
    except ValueError as error:
        if not _may_be_lines(text, path):
            raise DataError(f"{path}: is not JSON that can be read: {error}; {GIVE}") from None
        return DataFormat.lines, _lines(text, path, images)
    if isinstance(document, list):
        return DataFormat.array, _array(document, path, images)
    keys = document.keys() if isinstance(document, dict) else set()
    if is_coco(document):
        return DataFormat.coco, coco_records(document, path, ImageFinder(folders))
    if not keys & {"image", "conversations"} and path.suffix.lower() not in LINES_SUFFIXES:
        raise DataError(f"{path}: is no training data that is known; {GIVE}")
    if "\n" in text.strip():  # one record, laid out over several lines
        return DataFormat.array, _array([document], path, images)
    return DataFormat.lines, _lines(text, path, images)


def _may_be_lines(text: str, path: Path) -> bool:
    """Whether a file that is not one JSON document may be JSON lines, some of them broken."""
    if path.suffix.lower() in LINES_SUFFIXES:
        return True
    return text.lstrip().startswith("{") and any(map(_is_object, text.splitlines()))


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _lines(text: str, path: Path, images: ImageFinder) -> Iterator[Record | Problem]:
    # not splitlines, which also ends lines at characters that JSON allows inside of a text
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            document = parse_json(line)
        except ValueError as error:
            yield Problem(where, f"is not JSON: {_in_line(error)}; write one record in one line")
        else:
            yield from read_record(document, where, images, strict=True)


def _in_line(error: ValueError) -> str:
    """What is wrong in a line, whose own number the decoder does not know."""
    if isinstance(error, JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return str(error)


def _array(documents: list[object], path: Path, images: ImageFinder) -> Iterator[Record | Problem]:
    for number, document in enumerate(documents, start=1):
        # LLaVA's own files carry other keys as well
        yield from read_record(document, f"{path.name}: record {number}", images, strict=False)
