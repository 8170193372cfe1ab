"""Parts: the unit that is answered, written and resumed as a whole.

A part is named by the digest of what it asks and of all settings that an answer depends on, so that
a finished one is recognised by its name alone, whatever was added to the input since.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Self

KEY_LENGTH = 24
"""Hexadecimal digits of a part's name."""


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request before it is parsed."""

    where: str
    """Its place, for messages, like `line 12 of requests.jsonl`."""
    text: str
    """The name of an image, or a JSON object as on stdin of `caption`."""
    base: str = ""
    """Folder or URL that the name of its image is relative to; empty: the working folder."""
    error: str | None = None
    """Why there can be no request."""
    image: str = ""
    """Name of its image, where requests are sorted by it."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a table, or the samples of an archive, that hold their images."""

    file: str
    """Path or URL of the file."""
    version: str
    """Changes with the file's content."""
    start: int = 0
    stop: int | None = None
    """Row after the last; None: all."""
    weight: float = 1.0
    """Share of the work, in requests or bytes."""


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Requests that are answered and written together: lines, or rows of a file."""

    key: str
    """Digest of the requests and of the settings of their answers."""
    weight: float
    """Share of the work that progress is measured by."""
    lines: tuple[tuple[str, str, str | None], ...] = ()
    """Place, text and error of each request; empty: those of `file`."""
    base: str = ""
    """Folder or URL that names of images are relative to."""
    file: str = ""
    start: int = 0
    stop: int | None = None

    @property
    def count(self) -> int | None:
        """Number of requests; None where the file must be read to know it."""
        if not self.file:
            return len(self.lines)
        return None if self.stop is None else self.stop - self.start

    def as_json(self) -> str:
        """Return the part as ASCII text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `as_json` returned."""
        fields = json.loads(text)
        fields["lines"] = tuple((where, line, error) for where, line, error in fields["lines"])
        return cls(**fields)


def make_parts(
    entries: Iterable[RequestLine | StoredRows], settings: str, size: int
) -> Iterator[BatchPart]:
    """Divide requests into parts of about `size` requests.

    Where a part of lines ends depends on the lines around it and not on their number, so that lines
    which are added or removed change the parts beside them only. Equal parts get different keys.

    Args:
        entries: Requests in order; rows of a file are parts already.
        settings: Digest of all that an answer depends on besides its request.
        size: Requests in a part, on average; at most twice as many.
    """
    seen: Counter[str] = Counter()

    def keyed(part: BatchPart, content: str) -> BatchPart:
        number = seen[content]
        seen[content] += 1
        digest = hashlib.sha256(f"{settings}\n{content}\n{number}".encode()).hexdigest()
        return replace(part, key=digest[:KEY_LENGTH])

    for entry in _grouped(entries, size):
        if isinstance(entry, StoredRows):
            span = f"{entry.start}:{entry.stop}"
            yield keyed(
                BatchPart("", entry.weight, (), "", entry.file, entry.start, entry.stop),
                f"{entry.file} {entry.version} {span}",
            )
        else:
            lines = tuple((line.where, line.text, line.error) for line in entry)
            content = hashlib.sha256()
            for _, text, error in lines:
                content.update(json.dumps([text, error]).encode())
            yield keyed(BatchPart("", len(lines), lines, entry[0].base), content.hexdigest())


def _grouped(
    entries: Iterable[RequestLine | StoredRows], size: int
) -> Iterator[list[RequestLine] | StoredRows]:
    lines: list[RequestLine] = []
    for entry in entries:
        if lines and (isinstance(entry, StoredRows) or entry.base != lines[0].base):
            yield lines
            lines = []
        if isinstance(entry, StoredRows):
            yield entry
            continue
        lines.append(entry)
        if len(lines) >= 2 * size or (2 * len(lines) >= size and _ends_part(entry.text, size)):
            yield lines
            lines = []
    if lines:
        yield lines


def _ends_part(text: str, size: int) -> bool:
    """Whether a line is one of those, two in `size`, after which a part may end."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) % max(1, size // 2) == 0
