"""Records of JSON lines, of a JSON array, or of one JSON document, each with its place.

It does not know what a record holds.
"""

from collections.abc import Iterator
from pathlib import Path

from regionqa.boxes.fields import parse_json
from regionqa.errors import DataError


def read_records(path: Path, give: str) -> Iterator[tuple[str, object]]:
    """Every record and where it stands, like `q.jsonl:12`, for messages.

    give: what to write instead, said where a line is no JSON. Raises DataError where the file
    cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; name a file") from None
    try:
        document = parse_json(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise DataError(f"{path}: is not JSON: {error}; {give}") from None
        yield from _lines(path, text, give)
        return
    if isinstance(document, list):
        yield from ((f"{path}: record {n}", each) for n, each in enumerate(document, start=1))
    else:
        yield f"{path}:1", document


def _lines(path: Path, text: str, give: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                document = parse_json(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: is not JSON: {error}; {give}") from None
            yield f"{path}:{number}", document
