"""Training records written as JSON lines, which read back as the same records."""

import json
from collections.abc import Iterable
from pathlib import Path

from regionqa.boxes.fields import plain_number
from regionqa.data.conversations import ROLES
from regionqa.data.records import Record
from regionqa.files import write_whole
from regionqa.regions import Region


def write_training_data(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, in order.

    An existing file is replaced only when the new one is complete.

    Args:
        path: The file to write. Images in or below its folder are named relative to it, others by
            their absolute path.
        records: Records that were read, in any format; taken one at a time.

    Raises:
        OutputError: If the file cannot be written.
    """
    folder = path.parent.absolute()
    with write_whole(path) as file:
        for record in records:
            document = as_document(record, folder)
            # fails for a folder's name with stray bytes, with write_whole's error
            file.write((json.dumps(document, ensure_ascii=False) + "\n").encode())


def as_document(record: Record, folder: Path) -> dict[str, object]:
    """Convert a record to the JSON object for a file in this (absolute) folder."""
    image = record.image.absolute()
    name = image.relative_to(folder).as_posix() if image.is_relative_to(folder) else str(image)
    texts = [text for turn in record.turns for text in (turn.question, turn.answer)]
    document: dict[str, object] = {
        "image": name,
        "regions": [_region(region) for region in record.regions],
        "conversations": [
            {"from": ROLES[place % 2], "value": text} for place, text in enumerate(texts)
        ],
    }
    return document | ({"kind": record.kind} if record.kind else {})


def _region(region: Region) -> object:
    box = [plain_number(value) for value in region.box.xyxy]
    return {"box": box, "label": region.label} if region.label else box
