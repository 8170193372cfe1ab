"""Resume an output file: read the answers of an earlier run and prepare the file for more.

JSON lines and CSV can be resumed, because each of their records is complete on its own.
"""

import csv
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from regionqa.errors import ItemError, OutputError
from regionqa.files import write_whole
from regionqa.options import OutputFormat
from regionqa.pipeline.outputs import (
    CARRIED,
    OutputSettings,
    boxes_text,
    carried_text,
    encode,
    request_boxes,
)
from regionqa.requests import Answer, Request

Key = tuple[str, ...]
"""Identity of a record: image, boxes, question, model, revision, and the user's id and meta."""
KEY_COLUMNS = ("image", "boxes", "question", "model", "revision", *CARRIED)
JSON_START = b'{"image"'


@dataclass(frozen=True)
class WrittenRecord:
    """A record of the file."""

    key: Key
    answer: str
    error: str | None
    size: int
    """Bytes, including the line end."""

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self.error is not None


ParseLine = Callable[[bytes], WrittenRecord]
"""Reads a line; ValueError if it is damaged, another error if it is something else."""


class FinishedRequests:
    """Requests that the file has a record of."""

    failed: int
    """Number of records that are errors."""
    settings: OutputSettings
    """Those of the run, with the columns that the file has."""

    def __init__(self, records: list[WrittenRecord], settings: OutputSettings) -> None:
        """Count the records of an earlier run; `settings` are those of this run.

        Args:
            records: Those of the file.
            settings: Those of this run, with the columns of the file.
        """
        self.settings = settings
        self.failed = sum(record.failed for record in records)
        self._unused: defaultdict[Key, deque[WrittenRecord]] = defaultdict(deque)
        for record in records:
            self._unused[record.key].append(record)

    def find(self, request: Request) -> Answer | None:
        """Return the answer that the file has to a request; a record counts for one request."""
        boxes = request_boxes(request.regions)
        model = (self.settings.model, self.settings.revision)
        known = self.settings.carried or self.settings.format is not OutputFormat.csv
        own = carried_text(request.carried if known else {})
        record = self.take(record_key(request.image, boxes, request.question, *model, *own))
        if record is None:
            return None
        error = None if record.error is None else ItemError(record.error)
        return Answer(request, record.answer, error=error)

    def take(self, key: Key) -> WrittenRecord | None:
        """Return a record of this key, which counts once; None if there is none left."""
        records = self._unused.get(key)
        return records.popleft() if records else None


def answer_missing(
    requests: Iterable[Request],
    find: Callable[[Request], Answer | None],
    ask: Callable[[Iterator[Request]], Iterator[Answer]],
) -> Iterator[tuple[Answer, bool]]:
    """Yield an answer to every request, in order, and whether it is new.

    Args:
        requests: The requests.
        find: Returns the answer that is known already, if there is one.
        ask: Answers the other requests, in order.
    """
    waiting: deque[Answer | None] = deque()

    def missing() -> Iterator[Request]:
        for request in requests:
            found = find(request)
            waiting.append(found)
            if found is None:
                yield request

    def known() -> Iterator[tuple[Answer, bool]]:
        while waiting and (answer := waiting[0]) is not None:
            waiting.popleft()
            yield answer, False

    for answer in ask(missing()):
        yield from known()
        waiting.popleft()
        yield answer, True
    yield from known()


def resume(
    out: Path,
    settings: OutputSettings,
    *,
    retry_errors: bool = False,
    parse: ParseLine | None = None,
) -> FinishedRequests:
    """Prepare a file for appending, and return what it holds.

    A last line that is incomplete or damaged is cut off: a killed run leaves one. A missing file
    holds nothing.

    Args:
        out: The file.
        settings: Format and model of this run.
        retry_errors: Remove the records of errors, so that these requests are repeated; otherwise
            they count as finished.
        parse: Reads a line of JSON; None: one of an answer.

    Raises:
        OutputError: The file cannot be read, is not an output of regionqa, or is damaged before
            its last line.
    """
    try:
        if not out.exists():
            return FinishedRequests([], settings)
        if not out.is_file():
            raise OutputError(f"{out}: is not a file; name another")
        settings = _with_columns_of(out, settings)
        records, end = _read(out, settings, parse or _from_json)
        if retry_errors and any(record.failed for record in records):
            _remove_failed(out.resolve(), records, end)
            records = [record for record in records if not record.failed]
        elif end < out.stat().st_size:
            with out.open("r+b") as file:
                file.truncate(end)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{out}: cannot be resumed: {error.strerror}; name another") from error
    return FinishedRequests(records, settings)


def _with_columns_of(path: Path, settings: OutputSettings) -> OutputSettings:
    """Return the settings with `id` and `meta` as columns of CSV if the file has them."""
    with path.open("rb") as file:
        header = file.readline().decode(errors="replace")
    wide = replace(settings, carried=settings.format is OutputFormat.csv)
    # a killed run may have left a part of the line
    is_wide = wide.csv_header.startswith(header) and not settings.csv_header.startswith(header)
    return wide if is_wide else settings


def _read(
    path: Path, settings: OutputSettings, parse: ParseLine
) -> tuple[list[WrittenRecord], int]:
    """Read the complete records of a file; return them and the offset at which the last ends."""
    kind = settings.format
    is_csv = kind is OutputFormat.csv
    signature = settings.csv_header.encode() if is_csv else JSON_START
    with path.open("rb") as file:
        start = file.read(len(signature))
        if not signature.startswith(start):
            raise OutputError(f"{path}: is not {kind} written by regionqa; name another file")
        if start != signature:
            return [], 0
        if not is_csv:
            file.seek(0)
        return _read_records(file, path, settings.columns if is_csv else (), parse)


def _read_records(
    file: BinaryIO, path: Path, columns: tuple[str, ...], parse: ParseLine
) -> tuple[list[WrittenRecord], int]:
    """Read records from here on. columns: columns of CSV; empty: the lines are JSON."""
    end = file.tell()
    records: list[WrittenRecord] = []
    fault: str | None = None
    for number, line in _lines(file, bool(columns)):
        where = f"{path}: line {number}"
        if fault is not None:
            raise OutputError(f"{fault}; fix or remove the line, then run again")
        try:
            record = _from_csv(line, columns) if columns else parse(line)
        except ValueError as error:  # an error unless it is the last line
            fault = f"{where} is damaged: {error}"
            continue
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise OutputError(f"{where} is not an answer of regionqa; name another file") from None
        records.append(record)
        end += record.size
    return records, end


def _lines(file: BinaryIO, is_csv: bool) -> Iterator[tuple[int, bytes]]:
    """Yield complete records, each with the number of its first line.

    A CSV record continues after a line end inside quotes, where the number of quotes so far is
    odd; doubled quotes do not change that. In UTF-8, no other character contains either byte.
    """
    header = 1 if is_csv else 0
    parts: list[bytes] = []
    quoted = False
    for number, part in enumerate(file, start=1 + header):
        parts.append(part)
        quoted ^= is_csv and part.count(b'"') % 2 == 1
        if not quoted and part.endswith(b"\n"):
            yield number + 1 - len(parts), b"".join(parts)
            parts = []


def _from_json(line: bytes) -> WrittenRecord:
    """Parse a line; ValueError for broken JSON, other errors for JSON that is not a record."""
    fields = json.loads(line)
    boxes = boxes_text(region["box"] for region in fields["regions"])
    model = (fields["model"], fields["revision"])
    key = record_key(fields["image"], boxes, fields["question"], *model, *carried_text(fields))
    answer = fields["answer"] or ""
    text = answer if isinstance(answer, str) else json.dumps(answer)  # by a schema
    return WrittenRecord(key, text, fields["error"], len(line))


def _from_csv(line: bytes, columns: tuple[str, ...]) -> WrittenRecord:
    """Parse a record; ValueError if it is broken."""
    try:
        [row] = csv.reader([line.decode("utf-8")], strict=True)
    except csv.Error as error:
        raise ValueError(error) from error
    cells = dict(zip(columns, row, strict=True))
    key = record_key(*(cells.get(column, "") for column in KEY_COLUMNS))
    return WrittenRecord(key, cells["answer"], cells["error"] or None, len(line))


def record_key(*parts: str) -> Key:
    """Make a key of parts as a file holds them: undecodable bytes of names are escaped."""
    return tuple(encode(part).decode() for part in parts)


def _remove_failed(path: Path, records: list[WrittenRecord], end: int) -> None:
    """Replace the file by one without failed records; the old file stays intact until then."""
    with write_whole(path) as copy, path.open("rb") as file:
        copy.write(file.read(end - sum(record.size for record in records)))
        for record in records:
            line = file.read(record.size)
            if not record.failed:
                copy.write(line)
