"""Command-line arguments to items: images, and lines of stdin, before anything is opened."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from regionqa.data.fields import (
    ANSWER_KEYS,
    RequestFields,
    check_json,
    parse_regions,
    read_fields,
    unknown_keys,
)
from regionqa.data.jsonl import parse_line
from regionqa.errors import ItemError, UsageError
from regionqa.images.files import URL
from regionqa.images.kinds import READ, START, SUFFIXES, is_read, kind_of, looks_like_image
from regionqa.regions import WrittenBox

STDIN = "-"
LISTED = 3
"""Number of files that a warning names."""
ONE_A_LINE = "pass one path or JSON request a line"
NULS = "names that end in NUL, as from find -print0; add --null (-0)"
NO_TEXT = re.compile(rb"[\x01-\x08\x0e-\x1f\x80-\xff]")
UTF8 = "iconv -f UTF-16 -t UTF-8"
Warn = Callable[[str], None]


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
    choices: tuple[str, ...] = ()
    """Allowed answers; empty: the command's."""
    id: str | int | float | None = None
    """The user's own name of it, which comes back with the answer."""
    meta: Any = None
    """Further JSON of the user's, which comes back with the answer."""
    size: tuple[int, int] | None = None
    """Width and height of the image that the boxes are for, if its line states them."""


# -- files, folders and globs ----------------------------------------------------------------------


def find_images(
    arguments: Sequence[str], stdin: TextIO, warn: Warn, *, null: bool = False
) -> Iterator[InputItem]:
    """Expand arguments to items, in their order.

    Folders are walked in sorted order, without hidden files and links to folders. A glob is
    expanded if there is no file of that name. A line of stdin is a path, or a JSON object
    `{"image", "regions", "question", "choices", "id", "meta"}` of which all but the first may be
    missing. JSON lines of answers can serve as input; their further keys are not used, and any
    other key is the item's error. Lines are read one at a time, on demand.

    Args:
        arguments: Files, folders, globs, and at most one `-` for lines of stdin.
        stdin: Stream to read lines from.
        warn: Called with a line about the files of a folder or glob that look like images and are
            left out.
        null: Whether a NUL, and not a line feed, ends what stdin holds.

    Raises:
        UsageError: There are no arguments, `-` is repeated, or a folder or glob has no images, all
            of which is raised before the first item; or stdin begins with something else than
            names or requests.
    """
    if not arguments:
        raise UsageError("no images: name files, folders, or - to read them from stdin")
    if arguments.count(STDIN) > 1:
        raise UsageError("-: stdin can be read only once; give a single -")
    if null and STDIN not in arguments:
        raise UsageError("--null: says how names on stdin end; add - to read them")
    for argument in arguments:
        if argument != STDIN:
            _expect_images(argument)
    return (
        item
        for argument in arguments
        for item in (_read_stdin(stdin, null) if argument == STDIN else _expand(argument, warn))
    )


def is_one_image(arguments: Sequence[str]) -> bool:
    """Return whether the arguments are a single image, not a folder, glob or stdin."""
    return len(arguments) == 1 and arguments[0] != STDIN and not _is_several(arguments[0])


def _expect_images(argument: str) -> None:
    left_out: list[str] = []
    if _is_several(argument) and next(_expand(argument, left_out.append), None) is None:
        kind = "folder holds" if _is_folder(argument) else "pattern matches"
        suffixes = ", ".join(sorted(SUFFIXES))
        others = "".join(f"; {line.removeprefix(f'{argument}: ')}" for line in left_out)
        raise UsageError(f"{argument}: this {kind} no images ({suffixes}){others}")


def _expand(argument: str, warn: Warn) -> Iterator[InputItem]:
    if _is_folder(argument):
        found = _walk(argument)
    elif _is_glob(argument):
        found = _match(argument)
    else:
        yield InputItem(argument)
        return
    left_out = []
    for item in found:
        if isinstance(item, InputItem):
            yield item
        else:
            left_out.append(item)
    if left_out:
        files = f"{len(left_out):,} files look like images but are"
        if len(left_out) == 1:
            files = "1 file looks like an image but is"
        warn(f"{argument}: {files} of a kind that is not read, and left out: {listed(left_out)}")


def listed(names: Sequence[str]) -> str:
    """List names for a message, the first few of many."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more:,} more" if more > 0 else "")


def _is_several(argument: str) -> bool:
    return _is_folder(argument) or _is_glob(argument)


def _is_folder(argument: str) -> bool:
    return _exists(argument) and Path(argument).is_dir()


def _is_glob(argument: str) -> bool:
    has_mark = any(mark in argument for mark in "*?[")
    return has_mark and not _exists(argument) and not URL.match(argument)


def _exists(argument: str) -> bool:
    try:
        return Path(argument).exists()
    except (OSError, ValueError):  # such as a name that is too long; `open_image` reports it
        return False


def _walk(folder: str) -> Iterator[InputItem | str]:
    """Images in a folder and its subfolders, and the paths of those that are left out.

    Unreadable folders come last, as errors.
    """
    unreadable: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if is_read(name):
                yield InputItem(str(path))
            elif looks_like_image(name) or ("." not in name and _begins_as_image(path)):
                yield str(path.relative_to(folder))
    for error in unreadable:
        reason = f"{error.filename}: this folder cannot be read: {error.strerror}"
        yield InputItem(str(error.filename), error=ItemError(reason))


def _begins_as_image(path: Path) -> bool:
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            return False
        with path.open("rb") as file:
            return kind_of(file.read(START)) in READ
    except OSError:
        return False


def _match(pattern: str) -> Iterator[InputItem | str]:
    """Images that a pattern matches, and the paths of those that are left out."""
    # Path.glob takes no absolute pattern, and matches hidden files
    for path in sorted(set(glob.glob(pattern, recursive=True))):  # noqa: PTH207
        if _is_folder(path):
            continue
        if is_read(path):
            yield InputItem(path)
        elif looks_like_image(Path(path).name):
            yield path


# -- stdin -----------------------------------------------------------------------------------------


def _read_stdin(stdin: TextIO, null: bool) -> Iterator[InputItem]:
    if isinstance(stdin, TextIOWrapper):
        stdin.reconfigure(errors="surrogateescape")  # file names need not be valid UTF-8
        if isinstance(stdin.buffer, BufferedReader):
            start = stdin.buffer.peek(START)[:START]
            if (kind := kind_of(start)) and NO_TEXT.search(start):
                raise UsageError(f"stdin: {_instead(kind)}")
    unit = "item" if null else "line"
    # not `for line in stdin`, which may read ahead
    lines = _null_terminated(stdin) if null else iter(stdin.readline, "")
    for number, line in enumerate(lines, start=1):
        text = line if null else line.rstrip("\r\n")
        text = text.removeprefix("\ufeff")  # PowerShell pipes begin with a byte-order mark
        what = _not_names(text, first=number == 1)
        if what and number == 1:
            raise UsageError(f"stdin: {what}")
        if what:
            error = f"{unit} {number} of stdin: {what}; nothing after it is read"
            yield InputItem(STDIN, error=ItemError(error))
            return
        if text.strip():
            yield item_of_line(text, f"{unit} {number} of stdin")


def _null_terminated(stdin: TextIO) -> Iterator[str]:
    """What stands between the NULs of a stream, as soon as it has come."""
    buffer = getattr(stdin, "buffer", None)
    rest = b""
    while chunk := buffer.read1(1 << 16) if buffer else os.fsencode(stdin.read()):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from map(os.fsdecode, whole)
    if rest:
        yield os.fsdecode(rest)


def _not_names(text: str, *, first: bool) -> str | None:
    """Say what a line of stdin is that is neither a name nor a request; None if it is one.

    first: whether it is the first line, where text of other kinds begins.
    """
    content = _bytes_of(text)
    kind = kind_of(content)
    if kind and (not text.isprintable() or (first and not _exists(text))):
        return _instead(kind)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"UTF-16 text; convert it to UTF-8 first: {UTF8}"
    if "\0" in text and not text.startswith("{"):
        if not text[1::2].strip("\0"):
            return f"UTF-16 text; convert it to UTF-8 first: {UTF8}"
        if not re.search(r"[\x01-\x08\x0e-\x1f]", text):
            return NULS
        return f"binary data, where names of images are expected; {ONE_A_LINE}"
    if not first or _exists(text):
        return None
    if re.match(r"\s*\[\s*([\[{\"]|$)", text):
        return "a JSON array; write each request in a line of its own: jq -c '.[]'"
    if text.strip() == "{":
        return "JSON over several lines; write each request in a line of its own: jq -c ."
    if re.match(r"\s*<[?!a-z]", text, re.IGNORECASE):
        return f"HTML or XML, where names of images are expected; {ONE_A_LINE}"
    return None


def _instead(kind: str) -> str:
    way = "to ask about an image from a pipe, name /dev/stdin" if kind in READ else ONE_A_LINE
    return f"{kind}, where names of images are expected; {way}"


def _bytes_of(text: str) -> bytes:
    """The bytes that a line was read from; only those of text without lone surrogates are sure."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def allowed_answers(choices: Sequence[str] | None) -> tuple[str, ...]:
    """Return the choices of a request; ItemError unless they are texts of which two differ."""
    if choices is None:
        return ()
    allowed = tuple(dict.fromkeys(text.strip() for text in choices))
    if len(allowed) < 2 or "" in allowed:
        raise ItemError('\'choices\' are at least two texts, like ["yes", "no"]')
    return allowed


def item_of_line(text: str, where: str) -> InputItem:
    """Read the name of an image, or a JSON object; what is wrong becomes the item's error."""
    if not text.lstrip().startswith("{"):
        return InputItem(text)
    record = parse_line(text, where)
    if not isinstance(record.document, dict):
        error = f"{where}: is not a JSON request: {record.error}"
        return InputItem(STDIN, error=ItemError(error))
    return item_of(record.document, where)


def item_of(document: Mapping[str, object], where: str) -> InputItem:
    """Read a request from a JSON object; what is wrong with it becomes the item's error.

    Args:
        document: The object.
        where: Its place, for messages.
    """
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
        width, height = document.get("width"), document.get("height")
        size = None
        if type(width) is int and type(height) is int and fields.regions:
            size = (width, height)
        choices = allowed_answers(fields.choices)
        boxes = parse_regions(fields.regions)
        return replace(item, boxes=boxes, choices=choices, size=size)
    except ItemError as error:
        return replace(item, error=ItemError(f"{where}: {error}"))
    except RecursionError as error:  # from rendering a deeply nested value in a message
        return replace(item, error=ItemError(f"{where}: is not a JSON request: {error}"))
