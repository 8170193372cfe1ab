"""Command-line arguments to a stream of requests.

There are two lazy steps: `find_images` expands files, folders, globs and stdin to items, and
`make_requests` opens their images, looks up their boxes and sets their questions. A fault of one
item becomes the error of its request; the stream continues.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from regionqa.boxes.files import BoxFile
from regionqa.boxes.lookup import is_same_file
from regionqa.boxes.sizes import SizeCheck
from regionqa.data.english import counted
from regionqa.data.fields import (
    ANSWER_KEYS,
    RequestFields,
    check_json,
    check_text,
    parse_regions,
    read_fields,
    unknown_keys,
)
from regionqa.data.jsonl import parse_line
from regionqa.errors import ItemError, UsageError
from regionqa.images.reading import InputImage, open_image
from regionqa.regions import Region, WrittenBox, clip_all
from regionqa.requests import Request

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Suffixes of the files found in folders and by globs; a file given by name may have any."""
STDIN = "-"


@dataclass(frozen=True)
class InputItem:
    """One image to ask about, before it is opened."""

    image: str
    """Name of the image as the user gave it; `-` for a line of stdin without one."""
    boxes: tuple[WrittenBox, ...] | None = None
    """Boxes of this item; empty: the whole image; None: the command's boxes."""
    question: str | None = None
    """Question about this item; None: the command's question."""
    error: ItemError | None = None
    """Why there can be no request."""
    id: str | int | float | None = None
    """The user's own name of it, which comes back with the answer."""
    meta: Any = None
    """Further JSON of the user's, which comes back with the answer."""


@dataclass(frozen=True)
class AskSettings:
    """Questions and boxes for items that have none of their own."""

    question: str | None = None
    """Question about the whole image, or about its regions."""
    region_question: str | None = None
    """Question about a single region, if `each`; None: `question`."""
    boxes: tuple[WrittenBox, ...] = ()
    """Boxes on every image; empty: the whole image."""
    boxfile: BoxFile | None = None
    """Boxes by image; an image that it does not list is an error."""
    scale_boxes: bool = False
    """Whether boxes of `boxfile` are scaled from the sizes that it states to those of images."""
    each: bool = False
    """One request per region instead of one per image. An image that `boxfile` lists without any
    box then has no request."""


# -- arguments to items ----------------------------------------------------------------------------


def find_images(arguments: Sequence[str], stdin: TextIO) -> Iterator[InputItem]:
    """Expand arguments to items, in their order.

    Folders are walked in sorted order, without hidden files and links to folders. A glob is
    expanded if there is no file of that name. A line of stdin is a path, or a JSON object
    `{"image", "regions", "question", "id", "meta"}` of which all but the first may be missing. JSON
    lines of answers can serve as input; their further keys are not used, and any other key is the
    item's error. Lines are read one at a time, on demand.

    Args:
        arguments: Files, folders, globs, and at most one `-` for lines of stdin.
        stdin: Stream to read lines from.

    Raises:
        UsageError: There are no arguments, `-` is repeated, or a folder or glob has no images.
            Raised before the first item.
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
    """Return whether the arguments are a single image, not a folder, glob or stdin."""
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
    except OSError:  # such as a name that is too long; `open_image` reports it
        return False


def _walk(folder: str) -> Iterator[InputItem]:
    """Yield the images in a folder and its subfolders; unreadable folders come last, as errors."""
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
    # Path.glob takes no absolute pattern, and matches hidden files
    found = sorted(set(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return (InputItem(path) for path in found if _looks_like_image(path) and not _is_folder(path))


def _looks_like_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _read_lines(stdin: TextIO) -> Iterator[InputItem]:
    if isinstance(stdin, TextIOWrapper):
        stdin.reconfigure(errors="surrogateescape")  # file names need not be valid UTF-8
    # not `for line in stdin`, which may read ahead
    for number, line in enumerate(iter(stdin.readline, ""), start=1):
        text = line.rstrip("\r\n").removeprefix(
            "\ufeff"
        )  # PowerShell pipes begin with a byte-order mark
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
    document = record.document
    fields, problems = read_fields(document, RequestFields)
    item = InputItem(fields.image or STDIN, question=fields.question)
    try:
        check_json({"id": fields.id, "meta": fields.meta})
        item = replace(item, id=fields.id, meta=fields.meta)
        problems = [
            *unknown_keys(document, RequestFields, strict=True, unused=ANSWER_KEYS),
            *problems,
        ]
        if problems:
            raise ItemError(problems[0])
        return replace(item, boxes=parse_regions(fields.regions))
    except ItemError as error:
        return replace(item, error=ItemError(f"{where}: {error}"))
    except RecursionError as error:  # from rendering a deeply nested value in a message
        return replace(item, error=ItemError(f"{where}: is not a JSON request: {error}"))


# -- items to requests -----------------------------------------------------------------------------


def make_requests(
    items: Iterable[InputItem], settings: AskSettings, warn: Callable[[str], None]
) -> Iterator[Request]:
    """Make the requests of items, in their order, each before the next item is read.

    Consecutive items of the same image share one `InputImage`, so that it is encoded once. An
    item's own boxes and question take precedence over those of `settings`. Boxes are clipped to
    the image. An item at fault becomes a request with an error; with `settings.each`, a malformed
    box fails alone.

    Args:
        items: Items of `find_images`.
        settings: Questions and boxes for items without their own.
        warn: Called with a line for each box that is clipped.
    """
    open_cached = lru_cache(maxsize=1)(open_image)
    boxes_of = None
    if settings.boxfile is not None:
        boxes_of = FileBoxes(settings.boxfile, warn, scale=settings.scale_boxes)
    for item in items:
        image = None
        try:
            if item.error is not None:
                raise item.error
            image = open_cached(item.image)
            groups = _groups(item, settings, image, boxes_of)
        except ItemError as error:
            yield replace(_bare(item, settings), source=image, error=error)
        else:
            for boxes in groups:
                yield _request(item, settings, image, boxes, warn)
    if boxes_of is not None:
        boxes_of.finish(each=settings.each)


def _request(
    item: InputItem,
    settings: AskSettings,
    image: InputImage,
    boxes: tuple[WrittenBox, ...],
    warn: Callable[[str], None],
) -> Request:
    """Make one request about all these boxes, or about the whole image if there are none."""
    request = replace(_bare(item, settings, alone=settings.each and bool(boxes)), source=image)
    question = request.question
    try:
        if not question:
            raise ItemError(f'{item.image}: no question; give one, or a "question" in its line')
        check_text(question, item.image)
        regions, warnings = _place(boxes, image)
    except ItemError as error:
        return replace(request, error=error)
    for warning in warnings:
        warn(f"{item.image}: {warning}")
    return replace(request, regions=regions)


class FileBoxes:
    """The boxes of a box file for images, each entry for a single one."""

    def __init__(self, file: BoxFile, warn: Callable[[str], None], *, scale: bool = False) -> None:
        """scale: whether boxes are scaled from the sizes that the file states."""
        self._file = file
        self._warn = warn
        self._sizes = SizeCheck(file.source, scale, warn)
        self._used: dict[int, InputImage] = {}
        self._empty: list[str] = []

    def of(self, image: InputImage) -> tuple[WrittenBox, ...]:
        """Return the boxes of an image.

        Raises:
            ItemError: The file has none, or they are another image's as well, or malformed.
        """
        entry = self._file.entry_for(image.name)
        if entry is None:
            raise ItemError(self._file.why_not(image.name))
        if entry.boxes and entry.name is not None:
            other = self._used.setdefault(id(entry), image)
            if other.source != image.source and not is_same_file(other.source, image.source):
                raise ItemError(
                    f"{image.name}: {self._file.source} has the same boxes ({entry.name}) for "
                    f"this image and {other.name}, and they can be right for one of the two only; "
                    "write the image's folder into the file"
                )
        boxes = self._sizes.fit(entry, image.name, (image.width, image.height))
        if not boxes:
            self._empty.append(image.name)
        return boxes

    def finish(self, *, each: bool) -> None:
        """Warn about what was found for all images together.

        each: whether images without boxes have no request.
        """
        self._sizes.finish()
        if each and self._empty:
            self._warn(
                f"{self._file.source}: has no boxes for {counted(len(self._empty), 'image')}, so "
                f"nothing was asked about them; the first is {self._empty[0]}"
            )


def _groups(
    item: InputItem, settings: AskSettings, image: InputImage, boxes_of: FileBoxes | None
) -> list[tuple[WrittenBox, ...]]:
    """Return the boxes of each request to make; an empty group stands for the whole image."""
    boxes = settings.boxes if item.boxes is None else item.boxes
    if item.boxes is None and boxes_of is not None:
        boxes = boxes_of.of(image)
        if not boxes and settings.each:
            return []
    return [(box,) for box in boxes] if settings.each and boxes else [boxes]


def _place(
    boxes: tuple[WrittenBox, ...], image: InputImage
) -> tuple[tuple[Region, ...], list[str]]:
    """Clip boxes to the image; return regions in pixels, and a warning for each clipped box."""
    size = (image.width, image.height)
    return clip_all(tuple(box.resolve(*size) for box in boxes), *size)


def _bare(item: InputItem, settings: AskSettings, *, alone: bool = False) -> Request:
    """Make the request of an item without image and regions; without a question, it is empty.

    alone: whether it has a single region.
    """
    command = settings.region_question if alone else None
    question = item.question or command or settings.question or ""
    return Request(item.image, question, id=item.id, meta=item.meta)
