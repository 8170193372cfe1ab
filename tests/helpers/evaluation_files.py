"""Files for tests of `regionqa eval`: images, boxes, and the cached answers of a run.

With every answer in the cache no model is loaded, so a test determines the answers itself.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from regionqa.bundles.store import Bundle

Box = Sequence[float]


def grey(folder: Path, *names: str, size: tuple[int, int] = (400, 300)) -> None:
    """Write grey images of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size, (90, 90, 90)).save(folder / name)


def coco(path: Path, boxes: Sequence[tuple[str, Box, str]], names: Sequence[str] = ()) -> Path:
    """Write a COCO file of (image, xyxy, class); `names` are further classes."""
    images = list(dict.fromkeys(image for image, _, _ in boxes))
    classes = list(dict.fromkeys([*(label for _, _, label in boxes), *names]))
    table = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(images)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": [
            {
                "id": i,
                "image_id": images.index(image),
                "category_id": classes.index(label),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            for i, (image, (x0, y0, x1, y1), label) in enumerate(boxes)
        ],
    }
    path.write_text(json.dumps(table))
    return path


def answered(
    path: Path,
    bundle: Bundle,
    replies: Sequence[tuple[str, Sequence[Box], str, str]],
    confidence: Sequence[float | None] = (),
    **more: Any,
) -> Path:
    """Append answers of a model, (image, boxes, question, reply), to a cache file."""
    confidences = [*confidence, *[None] * (len(replies) - len(confidence))]
    with path.open("a", encoding="utf-8") as file:
        for (image, boxes, question, reply), probability in zip(replies, confidences, strict=True):
            record = {
                "image": image,
                "width": 400,
                "height": 300,
                "regions": [{"id": n, "box": list(b), "label": None} for n, b in enumerate(boxes)],
                "question": question,
                "answer": reply,
                "model": bundle.card.name,
                "revision": bundle.card.revision,
                "device": "cpu",
                "ms": None,
                "error": None,
                "confidence": probability,
            }
            file.write(json.dumps(record | more) + "\n")
    return path


def metric_values(document: dict[str, Any], group: str | None = None) -> dict[str, float | None]:
    """Return metric values by key, of the document that --json wrote."""
    found = document["figures"] if group is None else document["groups"][group]
    return {each["key"]: each["value"] for each in found}
