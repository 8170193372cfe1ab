"""JSON files of records: JSON lines, a JSON array, or a single document, each with its place.

The only reader of such files: training data, evaluation questions and captions go through
`JsonFile`, and a line of stdin through `parse_line`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from json import JSONDecodeError
from pathlib import Path

from regionqa.boxes.fields import parse_json
from regionqa.errors import DataError

LINES_SUFFIXES = (".jsonl", ".ndjson")
"""Suffixes of files that are JSON lines even if not a single line can be read."""


class JsonLayout(StrEnum):
    """How the records of a file are laid out."""

    lines = "lines"
    array = "array"
    document = "document"
    """A single document over several lines."""


@dataclass(frozen=True, slots=True)
class JsonRecord:
    """A record as it stands in its file."""

    where: str
    """Its place, like `mine.jsonl:12` or `mine.json: record 3`."""
    number: int
    """Its line, or its number in the array, from 1."""
    document: object
    """The parsed JSON; None if there is an error."""
    error: str | None = None
    """Why the line is not JSON."""


@dataclass(frozen=True)
class JsonFile:
    """A file that was read as a whole; its lines are parsed one at a time."""

    path: Path
    layout: JsonLayout
    is_document: bool
    """Whether the file as a whole is one JSON document, which several lines are not."""
    document: object
    """The parsed JSON; None if the file is not one document."""
    text: str
    sha256: str
    """Digest of the file's bytes."""

    @classmethod
    def read(
        cls, path: Path, advice: str, *, strict: bool = True, content: bytes | None = None
    ) -> "JsonFile":
        """Read a file of any layout.

        Args:
            path: The file.
            advice: What to give instead, for messages.
            strict: Whether bytes that are not UTF-8 are an error. Otherwise they become
                surrogates, so that they spoil only the record they stand in.
            content: The file's bytes, if they were read already.

        Raises:
            DataError: If the file cannot be read, is empty, or holds no JSON.
        """
        content = _content(path) if content is None else content
        try:
            text = content.decode("utf-8-sig", "strict" if strict else "surrogateescape")
        except UnicodeDecodeError:
            raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
        if not text.strip():
            raise DataError(f"{path}: is empty; {advice}")
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            document = parse_json(text)
        except ValueError as error:
            if not _may_be_lines(text, path):
                raise DataError(f"{path}: is not valid JSON: {error}; {advice}") from None
            return cls(path, JsonLayout.lines, False, None, text, sha256)
        layout = JsonLayout.document if "\n" in text.strip() else JsonLayout.lines
        if isinstance(document, list):
            layout = JsonLayout.array
        return cls(path, layout, True, document, text, sha256)

    def records(self, name: str | None = None) -> Iterator[JsonRecord]:
        """Iterate over the records in file order, skipping blank lines.

        name: how `where` calls the file; its path by default.
        """
        name = name or str(self.path)
        if self.layout is JsonLayout.lines:
            # not splitlines, which also splits at characters that JSON allows inside a string
            for number, line in enumerate(self.text.split("\n"), start=1):
                if line.strip():
                    yield parse_line(line, f"{name}:{number}", number)
            return
        documents = self.document if isinstance(self.document, list) else [self.document]
        for number, document in enumerate(documents, start=1):
            yield JsonRecord(f"{name}: record {number}", number, document)

    def valid_records(self, advice: str) -> Iterator[JsonRecord]:
        """Iterate as `records` does; DataError for the first line that is not JSON."""
        for record in self.records():
            if record.error is not None:
                raise DataError(f"{record.where}: is not JSON: {record.error}; {advice}")
            yield record


def parse_line(line: str, where: str, number: int = 1) -> JsonRecord:
    """Parse a line of JSON; an error is kept in the record."""
    try:
        return JsonRecord(where, number, parse_json(line))
    except JSONDecodeError as error:
        return JsonRecord(where, number, None, f"{error.msg} at character {error.colno}")
    except ValueError as error:
        return JsonRecord(where, number, None, str(error))


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


def _may_be_lines(text: str, path: Path) -> bool:
    """Return whether a file that is not one JSON document may be JSON lines, some invalid."""
    if path.suffix.lower() in LINES_SUFFIXES:
        return True
    return text.lstrip().startswith("{") and any(
        isinstance(parse_line(line, "").document, dict) for line in text.splitlines()
    )
