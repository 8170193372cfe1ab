"""Training records written as JSON lines, which read back as the same records."""

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
    """Write records as JSON lines, in order.

    An existing file is replaced only when the new one is complete.

    Args:
        path: The file to write. Images in or below its folder are named relative to it, others by
            their absolute path.
        records: Records that were read, in any format.

    Raises:
        OutputError: If the file cannot be written.
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
    except (
        OSError,
        UnicodeEncodeError,
    ) as error:  # the latter for a folder's name with stray bytes
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written: {reason}; name another") from None


def as_document(record: Record, folder: Path) -> dict[str, object]:
    """Convert a record to the JSON object for a file in this (absolute) folder."""
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
