"""Text, JSON fields and numbers of box files, with errors that name the place."""

import codecs
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard, TypeVar

from regionqa.errors import BoxError, BoxFileError
from regionqa.regions import four_numbers

Numbers = tuple[float, float, float, float]
Point = tuple[float, float]
T = TypeVar("T")
_PART = 1 << 20
_KINDS: dict[type, str] = {list: "a list", dict: "an object", str: "text"}


def plain_number(value: float) -> float | int:
    """Convert a whole number to int, so that it is written without `.0`."""
    return int(value) if float(value).is_integer() else float(value)


def json_text(document: object) -> str:
    """Render a JSON document as a line of text."""
    return json.dumps(document, ensure_ascii=False) + "\n"


def load_text(path: Path) -> str:
    """Read a text file, as `decode` does."""
    return decode(path.read_bytes(), path)


def decode(content: bytes, path: Path) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark; line ends become line feeds.

    Raises:
        BoxFileError: If the bytes are neither.
    """
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise BoxFileError(
            f"{path}: is not {name} text (byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text[:2]:
        raise BoxFileError(
            f"{path}: is UTF-16 without a byte order mark, or not text; save it as UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def check_utf8(content: bytes, path: Path) -> None:
    """BoxFileError if the bytes are not UTF-8; needs little memory for a large file."""
    if content.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(content), _PART):
        part = content[at : at + _PART]
        try:
            decoder.decode(part, final=at + _PART >= len(content))
        except UnicodeDecodeError:
            decode(content, path)  # raises with the place


def parse_json(text: str) -> object:
    """Parse JSON; ValueError also for a key given twice and for nesting that is too deep."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):  # the later one would silently replace the boxes of the earlier
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice; merge the two")
    return record


def member(record: object, key: str, kind: type[T], where: str) -> T:
    """Return `record[key]` of a JSON object; BoxFileError if it is missing or not a `kind`."""
    if not isinstance(record, dict) or key not in record:
        raise BoxFileError(f"{where}: has no {key!r}; add it, or export the file again")
    value = record[key]
    if not isinstance(value, kind):
        raise BoxFileError(f"{where}: {key!r} is {excerpt(value)}; write {_KINDS[kind]}")
    return value


def optional_text(record: object, key: str, where: str) -> str:
    """Return the text, or whole number as text, under a key; empty if there is none."""
    value = record.get(key) if isinstance(record, dict) else None
    if value is None:
        return ""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise BoxFileError(f"{where}: {key!r} is {excerpt(value)}; write text")
    return str(value).strip()


def excerpt(value: object) -> str:
    """Render a value for an error message, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def four(values: object, where: str) -> Numbers:
    """Check that the values are a box's four finite numbers; BoxError, with the place, if not."""
    return four_numbers(values, f"in {where}")


def numbers_of(texts: Iterable[str], where: str) -> list[float]:
    """Parse finite numbers; BoxError, with the place, for the first text that is not one."""
    numbers = []
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BoxError(f"box in {where}: {excerpt(text)} is not a finite number; write one")
        numbers.append(number)
    return numbers


def size_of(width: object, height: object) -> tuple[int, int] | None:
    """Return width and height in pixels as a file states them, as numbers or text.

    None unless both are whole numbers above zero: some tools write 0 for a size that they do not
    know.
    """
    lengths = []
    for value in (width, height):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None
        if not (0 < number < 1e9 and number.is_integer()):
            return None
        lengths.append(int(number))
    return (lengths[0], lengths[1])


def points_of(values: Iterable[object], where: str) -> list[Point]:
    """Check pairs of finite numbers from JSON; BoxError, with the place, for anything else."""
    points = []
    for pair in values:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_finite, pair)):
            raise BoxError(f"box in {where}: the point {excerpt(pair)} is not two finite numbers")
        points.append((float(pair[0]), float(pair[1])))
    return points


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value from JSON is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN, and exact for a huge whole number
