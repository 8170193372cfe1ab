"""JSON files of datasets, read an element at a time.

A dataset's own JSON is often one document of a gigabyte. It is mapped into memory instead of read,
and split into its elements without decoding them, so that only the element in hand is in memory
beside 50 to 100 bytes for each of the others.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from regionqa.errors import DataError

Fields = TypeVar("Fields")
_BOM = b"\xef\xbb\xbf"


def mapped(path: Path) -> bytes | memoryview:
    """Return the content of a file, which the operating system reads where it is looked at.

    Raises:
        DataError: If the file cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            try:
                content: bytes | memoryview = memoryview(
                    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                )
            except (OSError, ValueError):  # a pipe, or an empty file
                content = file.read()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not len(content):
        raise DataError(f"{path}: is empty; download it again")
    return content[3:] if bytes(content[:3]) == _BOM else content


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error of a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file; check the path")
    reason = getattr(error, "strerror", None) or error
    return DataError(f"{path}: cannot be read: {reason}; name a file")


def document(path: Path, kind: type[Fields], layout: str) -> Fields:
    """Decode a whole file.

    Args:
        path: The file.
        kind: Type of the document; `list[msgspec.Raw]` splits an array without decoding it.
        layout: The file that is expected, for messages.

    Raises:
        DataError: If the file cannot be read, is cut off, or has another layout.
    """
    try:
        return msgspec.json.decode(mapped(path), type=kind)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path}: is not {layout}: {_text(error)}; see docs/guide/data.md"
        ) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DataError(
            f"{path}: is not valid JSON: {_text(error)}; download it again, or unpack it first"
        ) from None


def element(content: msgspec.Raw | bytes, kind: type[Fields]) -> Fields:
    """Decode an element; DataError if it is not laid out as `kind`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise DataError(f"is not laid out as the dataset documents it: {_text(error)}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise DataError(f"is not valid JSON: {_text(error)}; download the file again") from None


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines of a file with their numbers, skipping blank ones.

    Raises:
        DataError: If the file cannot be read, or has no lines.
    """
    empty = True
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    empty = False
                    yield number, line.removeprefix(_BOM) if number == 1 else line
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if empty:
        raise DataError(f"{path}: is empty; download it again")


def _text(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text[0].lower() + text[1:]
