"""Files of boxes, and what was read from them."""

import json
from collections.abc import Sequence
from pathlib import Path

from regionqa.regions import Region, WrittenBox


def save(path: Path, content: object) -> Path:
    """Write text as it is and anything else as JSON, in folders made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def values(boxes: Sequence[WrittenBox] | None) -> list[tuple[float, ...]]:
    assert boxes is not None
    return [box.values for box in boxes]


def regions(boxes: Sequence[WrittenBox] | None, width: int, height: int) -> list[Region]:
    assert boxes is not None
    return [box.resolve(width, height) for box in boxes]
