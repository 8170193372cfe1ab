"""What an earlier run has already written, so that it can be taken up where it stopped.

It reads the two formats of which every line stands for itself, and it alone changes a file that
is there. It does not know how answers are made, nor does it write any.
"""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from regionqa.errors import OutputError
from regionqa.options import OutputFormat
from regionqa.pipeline.outputs import (
    OutputSettings,
    boxes_text,
    encode,
    request_boxes,
)
from regionqa.requests import Request

Key = tuple[str, ...]
"""What makes two records the same: image, boxes, question, model and revision."""
JSON_START = b'{"image"'


@dataclass(frozen=True)
class WrittenRecord:
    """One record of the file."""

    key: Key
    failed: bool
    """Whether it says why there is no answer."""
    size: int
    """Bytes, with the line end."""


class FinishedRequests:
    """The requests that the file already answers."""

    failed: int
    """How many of them it answers with an error."""

    def __init__(self, records: list[WrittenRecord], settings: OutputSettings) -> None:
        """Take the records of an earlier run; settings are those of this run."""
        self.failed = sum(record.failed for record in records)
        self._left = Counter(record.key for record in records)
        self._settings = settings

    def skip(self, request: Request) -> bool:
        """Whether the file answers this request; each of its records counts for one request."""
        boxes = request_boxes(request.regions)
        settings = self._settings
        key = _key(request.image, boxes, request.question, settings.model, settings.revision)
        if not self._left[key]:
            return False
        self._left[key] -= 1
        return True


def resume(out: Path, settings: OutputSettings, *, retry_errors: bool = False) -> FinishedRequests:
    """Make the file ready to be appended to, and say what it answers already.

    A last line that is unfinished or makes no sense is cut off; then the file ends where a run
    that was killed had got to. retry_errors: records of errors are removed, so that these
    requests are asked again; otherwise they count as answered. A missing file answers nothing.

    Raises OutputError for a file that cannot be
    read, that regionqa did not write, or that is damaged before its last line.
    """
    try:
        if not out.exists():
            return FinishedRequests([], settings)
        if not out.is_file():
            raise OutputError(f"{out}: is not a file, so there is nothing to resume; name another")
        records, end = _read(out, settings)
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


def _read(path: Path, settings: OutputSettings) -> tuple[list[WrittenRecord], int]:
    """The sound records of a file, and the byte at which the last of them ends."""
    kind = settings.format
    is_csv = kind is OutputFormat.csv
    signature = settings.csv_header.encode() if is_csv else JSON_START
    with path.open("rb") as file:
        start = file.read(len(signature))
        if not signature.startswith(start):
            raise OutputError(f"{path}: is not {kind} that regionqa wrote; name another file")
        if start != signature:
            return [], 0
        if not is_csv:
            file.seek(0)
        return _read_records(file, path, settings.columns if is_csv else ())


def _read_records(
    file: BinaryIO, path: Path, columns: tuple[str, ...]
) -> tuple[list[WrittenRecord], int]:
    """columns: those of CSV; none: the lines are JSON."""
    end = file.tell()
    records: list[WrittenRecord] = []
    fault: str | None = None
    for number, line in _lines(file, bool(columns)):
        where = f"{path}: line {number}"
        if fault is not None:
            raise OutputError(f"{fault}; mend or remove it, then run again")
        try:
            record = _from_csv(line, columns) if columns else _from_json(line)
        except ValueError as error:  # forgiven in the last line alone
            fault = f"{where} is damaged: {error}"
            continue
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise OutputError(f"{where} is no answer of regionqa; name another file") from None
        records.append(record)
        end += record.size
    return records, end


def _lines(file: BinaryIO, is_csv: bool) -> Iterator[tuple[int, bytes]]:
    """Every record that was written to its end, with the number of its first line.

    A CSV record goes on over a line end that stands inside quotes. There the number of quotes so
    far is odd, also behind a doubled one; in UTF-8 no other character holds either byte.
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
    """Raises ValueError for broken JSON, and several others where it is not a record of ours."""
    fields = json.loads(line)
    boxes = boxes_text(region["box"] for region in fields["regions"])
    key = _key(fields["image"], boxes, fields["question"], fields["model"], fields["revision"])
    return WrittenRecord(key, fields["error"] is not None, len(line))


def _from_csv(line: bytes, columns: tuple[str, ...]) -> WrittenRecord:
    """Raises ValueError for a broken record."""
    try:
        [row] = csv.reader([line.decode("utf-8")], strict=True)
    except csv.Error as error:
        raise ValueError(error) from error
    cells = dict(zip(columns, row, strict=True))
    key = _key(*(cells[column] for column in ("image", "boxes", "question", "model", "revision")))
    return WrittenRecord(key, cells["error"] != "", len(line))


def _key(*parts: str) -> Key:
    """Parts as they come back from a file, where a stray byte of a name may be spelt out."""
    return tuple(encode(part).decode() for part in parts)


def _remove_failed(path: Path, records: list[WrittenRecord], end: int) -> None:
    """Replace the file by one without its failed records; until then the old one stays whole."""
    with NamedTemporaryFile(dir=path.parent, prefix=".regionqa-", delete=False) as kept:
        try:
            with path.open("rb") as file:
                kept.write(file.read(end - sum(record.size for record in records)))
                for record in records:
                    line = file.read(record.size)
                    if not record.failed:
                        kept.write(line)
            kept.close()
            shutil.copymode(path, kept.name)
            Path(kept.name).replace(path)
        finally:
            Path(kept.name).unlink(missing_ok=True)
