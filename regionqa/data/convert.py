"""Training data of any format that is read, written as our own JSON lines.

What is written reads back as the same records. Bad records are not written.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from regionqa.boxes.fields import plain_number
from regionqa.data.conversations import ROLES
from regionqa.data.records import Record
from regionqa.errors import OutputError
from regionqa.regions import Region


def write_training_data(path: Path, records: Sequence[Record]) -> None:
    """Write records as JSON lines, in their order.

    Images in or below the folder of `path` are named from there, others by their whole path.
    What stood at `path` before stays until the new file is complete. Raises OutputError where it
    cannot be written.
    """
    part = path.with_name(f".{os.getpid()}-{path.name}")
    folder = path.parent.absolute()
    try:
        try:
            with part.open("w", encoding="utf-8", newline="\n") as file:
                for record in records:
                    document = as_document(record, folder)
                    file.write(json.dumps(document, ensure_ascii=False) + "\n")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, UnicodeEncodeError) as error:  # the latter: a folder's name with stray bytes
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written: {reason}; name another") from None


def as_document(record: Record, folder: Path) -> dict[str, object]:
    """The JSON object of a record, to stand in a file of this (absolute) folder."""
    image = record.image.absolute()
    name = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)
    texts = [text for turn in record.turns for text in (turn.question, turn.answer)]
    return {
        "image": name,
        "regions": [_region(region) for region in record.regions],
        "conversations": [
            {"from": ROLES[place % 2], "value": text} for place, text in enumerate(texts)
        ],
    }


def _region(region: Region) -> object:
    box = [plain_number(value) for value in region.box.xyxy]
    return {"box": box, "label": region.label} if region.label else box
