"""Training records and files of them."""

import json
from pathlib import Path
from typing import Any

from regionqa.data.records import TrainingData


def turns(*texts: str) -> list[dict[str, str]]:
    """Conversations of questions and answers in turn."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def good(**others: Any) -> dict[str, Any]:
    """A record without fault."""
    texts = turns("what is <region1>?", "a cat.")
    return {"image": "cat.jpg", "regions": [[10, 20, 90, 80]], "conversations": texts, **others}


def coco(*annotations: dict[str, Any], categories: object = None) -> dict[str, Any]:
    """A COCO document of a photo of a cat."""
    return {
        "images": [{"id": 7, "file_name": "cat.jpg"}, {"id": 8, "file_name": "gone.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 3, **each} for each in annotations],
        "categories": categories or [{"id": 3, "name": "cat"}, {"id": 4, "name": "Orange"}],
    }


def save(path: Path, *documents: object) -> Path:
    """Write one document or text a line."""
    lines = [each if isinstance(each, str) else json.dumps(each) for each in documents]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    return path


def problems(data: TrainingData) -> list[str]:
    return [str(problem) for problem in data.problems]
