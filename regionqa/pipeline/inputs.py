"""Everything between the command line's arguments and a stream of requests.

Two steps, both lazy: `find_images` makes items of files, folders, globs and stdin, and
`make_requests` opens their images, finds their boxes and words their questions. What is wrong
with one item becomes its request's error, and the stream goes on. No model is known or run here.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from regionqa.boxes.files import BoxFile
from regionqa.data.fields import RequestFields, check_text, parse_regions, read_fields
from regionqa.data.jsonl import parse_line
from regionqa.errors import ItemError, UsageError
from regionqa.images.reading import InputImage, open_image
from regionqa.regions import Region, WrittenBox, clip_all
from regionqa.requests import Request

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""What a file must end in to be found in a folder or by a glob; a file that is named need not."""
STDIN = "-"


@dataclass(frozen=True)
class InputItem:
    """One image to ask about, before it is opened."""

    image: str
    """The image's name as the user gave it; `-` for a line of stdin that has none."""
    boxes: tuple[WrittenBox, ...] | None = None
    """The item's own, in place of the command's; empty: the whole image; None: the command's."""
    question: str | None = None
    """The item's own, in place of the command's."""
    error: ItemError | None = None
    """Why it cannot be asked."""


@dataclass(frozen=True)
class AskSettings:
    """What the command asks of items that do not say it themselves."""

    question: str | None = None
    """Asked of a whole image, and of regions that have no question of their own."""
    region_question: str | None = None
    """Asked of a region where `each`; None: `question`."""
    boxes: tuple[WrittenBox, ...] = ()
    """Boxes on every image; none: the whole image."""
    boxfile: BoxFile | None = None
    """A file of boxes for every image; one that it does not mention is an error."""
    each: bool = False
    """Whether every region is asked about alone, rather than all of an image's together. Then a
    image that the file of boxes mentions without any is not asked about at all."""


# -- arguments to items ----------------------------------------------------------------------------


def find_images(arguments: Sequence[str], stdin: TextIO) -> Iterator[InputItem]:
    """Items for arguments, in their order: files, folders, globs, and `-` for lines of stdin.

    Folders are walked in sorted order, without hidden files and without links to folders. A glob
    is one that the shell left alone; a file of just that name goes before. A line of stdin is a
    path, taken as it is, or a JSON object `{"image", "regions", "question"}` of which the last two
    may be missing; keys beyond these are ignored, so that written answers can be asked again.
    Lines are read one at a time, when their turn comes.

    Raises UsageError, before the first item, for no arguments, a second `-`, and a folder or glob
    without images.
    """
    if not arguments:
        raise UsageError("no images: name files, folders, or - to read them from stdin")
    if arguments.count(STDIN) > 1:
        raise UsageError("-: stdin can be read only once; give a single -")
    for argument in arguments:
        if argument != STDIN:
            _expect_images(argument)
    return (
        item
        for argument in arguments
        for item in (_read_lines(stdin) if argument == STDIN else _expand(argument))
    )


def is_one_image(arguments: Sequence[str]) -> bool:
    """Whether the arguments name a single image, and nothing that could become several."""
    return len(arguments) == 1 and arguments[0] != STDIN and not _is_several(arguments[0])


def _expect_images(argument: str) -> None:
    if _is_several(argument) and next(_expand(argument), None) is None:
        kind = "folder holds" if _is_folder(argument) else "pattern matches"
        raise UsageError(f"{argument}: this {kind} no images ({', '.join(sorted(SUFFIXES))})")


def _expand(argument: str) -> Iterator[InputItem]:
    if _is_folder(argument):
        return _walk(argument)
    if _is_glob(argument):
        return _match(argument)
    return iter([InputItem(argument)])


def _is_several(argument: str) -> bool:
    return _is_folder(argument) or _is_glob(argument)


def _is_folder(argument: str) -> bool:
    return _exists(argument) and Path(argument).is_dir()


def _is_glob(argument: str) -> bool:
    return any(mark in argument for mark in "*?[") and not _exists(argument)


def _exists(argument: str) -> bool:
    try:
        return Path(argument).exists()
    except OSError:  # such as a name too long, which `open_image` reports
        return False


def _walk(folder: str) -> Iterator[InputItem]:
    """Images in a folder and below it; folders that cannot be listed come last, as errors."""
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and _looks_like_image(name):
                yield InputItem(str(Path(parent, name)))
    for error in unreadable:
        reason = f"{error.filename}: this folder cannot be read: {error.strerror}"
        yield InputItem(str(error.filename), error=ItemError(reason))


def _match(pattern: str) -> Iterator[InputItem]:
    # pathlib's own glob takes no absolute pattern, and matches hidden files
    found = sorted(set(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return (InputItem(path) for path in found if _looks_like_image(path) and not _is_folder(path))


def _looks_like_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _read_lines(stdin: TextIO) -> Iterator[InputItem]:
    if isinstance(stdin, TextIOWrapper):
        stdin.reconfigure(errors="surrogateescape")  # a file's name need not be valid text
    # readline, because iterating over a stream may read ahead
    for number, line in enumerate(iter(stdin.readline, ""), start=1):
        text = line.rstrip("\r\n").removeprefix("\ufeff")  # Windows begins a pipe with one
        if text.lstrip().startswith("{"):
            yield _parse_line(text, f"line {number} of stdin")
        elif text.strip():
            yield InputItem(text)


def _parse_line(text: str, where: str) -> InputItem:
    """Read a request from a JSON line; what is wrong with it becomes the item's error."""
    record = parse_line(text, where)
    if not isinstance(record.document, dict):
        error = f"{where}: is not a JSON request: {record.error}"
        return InputItem(STDIN, error=ItemError(error))
    fields, problems = read_fields(record.document, RequestFields)
    image = fields.image or STDIN
    try:
        if problems:
            raise ItemError(problems[0])
        return InputItem(image, parse_regions(fields.regions), fields.question)
    except ItemError as error:
        return InputItem(image, error=ItemError(f"{where}: {error}"))
    except RecursionError as error:  # from rendering a deeply nested value in a message
        return InputItem(image, error=ItemError(f"{where}: is not a JSON request: {error}"))


# -- items to requests -----------------------------------------------------------------------------
def make_requests(
    items: Iterable[InputItem], asking: AskSettings, warn: Callable[[str], None]
) -> Iterator[Request]:
    """Requests for items, in their order, each made before the next item is read.

    Items in a row that name the same image share one `InputImage`, so that it is encoded once. An
    item's own boxes and question go before the command's. Boxes are clipped to their image, and
    `warn` is told of it. A request that cannot be asked carries its error: of an image's boxes,
    where each is asked about alone, only the malformed ones fail.
    """
    open_once = lru_cache(maxsize=1)(open_image)  # so that neighbours share what it returns
    for item in items:
        image = None
        try:
            if item.error is not None:
                raise item.error
            image = open_once(item.image)
            groups = _groups(item, asking)
        except ItemError as error:
            yield Request(item.image, _question(item, asking), source=image, error=error)
        else:
            for boxes in groups:
                yield _request(item, asking, image, boxes, warn)


def _request(
    item: InputItem,
    asking: AskSettings,
    image: InputImage,
    boxes: tuple[WrittenBox, ...],
    warn: Callable[[str], None],
) -> Request:
    """One request about these boxes together, or about the whole image where there are none."""
    question = _question(item, asking, alone=asking.each and bool(boxes))
    try:
        if not question:
            raise ItemError(f'{item.image}: no question; give one, or a "question" in its line')
        check_text(question, item.image)
        regions, warnings = _place(boxes, image)
    except ItemError as error:
        return Request(item.image, question, source=image, error=error)
    for warning in warnings:
        warn(f"{item.image}: {warning}")
    return Request(item.image, question, regions, image)


def _groups(item: InputItem, asking: AskSettings) -> list[tuple[WrittenBox, ...]]:
    """The boxes of each request to be made; an empty group asks about the whole image."""
    boxes = asking.boxes if item.boxes is None else item.boxes
    if item.boxes is None and asking.boxfile is not None:
        found = asking.boxfile.boxes_for(item.image)
        if found is None:
            raise ItemError(f"{item.image}: {asking.boxfile.source} has no boxes for this image")
        if not found and asking.each:
            return []
        boxes = found
    return [(box,) for box in boxes] if asking.each and boxes else [boxes]


def _place(
    boxes: tuple[WrittenBox, ...], image: InputImage
) -> tuple[tuple[Region, ...], list[str]]:
    """Regions inside the image, and a warning for each that reached outside."""
    size = (image.width, image.height)
    return clip_all(tuple(box.resolve(*size) for box in boxes), *size)


def _question(item: InputItem, asking: AskSettings, *, alone: bool = False) -> str:
    """What to ask, of one region `alone` or of anything else; empty where nobody has said it."""
    command = asking.region_question if alone else None
    return item.question or command or asking.question or ""
