"""The page on which people rank answers: one HTML file that needs nothing else.

Images are in it as JPEG, boxes as drawings over them, answers without their systems' names and
in an order of their own for every question. What a system is called in the page follows from the
seed, the question and its name, so that a saved ranking can be counted without the page.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from regionqa.bundles.store import find_bundle
from regionqa.errors import OutputError
from regionqa.evaluation.fineeval.questions import (
    FineEval,
    FineEvalItem,
    fineeval_requests,
    with_answers,
)
from regionqa.evaluation.runner import EvalSettings, run_task
from regionqa.images.reading import open_image
from regionqa.pipeline.console import Console
from regionqa.pipeline.drawing import COLOURS

FORMAT = "regionqa-fineeval-1"
LONGEST = 900
"""Pixels of an image's longer side in the page."""
QUALITY = 82
"""Of its JPEG."""


def blind_name(seed: int, item: FineEvalItem, system: str) -> str:
    """What a system is called on the page, for one question."""
    text = f"{seed}/{item.number}/{item.image}/{system}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_page(
    path: Path, data: FineEval, answers: Sequence[Mapping[str, str]], seed: int = 0
) -> None:
    """Write the page; answers: what is to be ranked, by system, for every item.

    Raises ImageError for an image that cannot be read, OutputError where the page cannot be
    written.
    """
    names = list(dict.fromkeys(item.image for item in data.items))
    content = {
        "format": FORMAT,
        "seed": seed,
        "systems": sorted({name for each in answers for name in each}),
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS],
        "images": {name: _embedded(data.images / name) for name in names},
        "items": [_described(item, given, seed)
                  for item, given in zip(data.items, answers, strict=True)],
    }  # fmt: skip
    content["id"] = _identity(content)
    html = _part("page.html")
    for name, text in (
        ("style", _part("page.css")),
        ("script", _part("page.js")),
        # `</script>` in an answer must not end the data
        ("data", json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")),
    ):
        html = html.replace(f"/*{name}*/", text, 1)
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror}; name another file"
        ) from error


def _part(name: str) -> str:
    return files("regionqa.evaluation.fineeval").joinpath(name).read_text(encoding="utf-8")


def _described(item: FineEvalItem, answers: Mapping[str, str], seed: int) -> dict[str, object]:
    """One question as the page holds it, its answers in an order drawn from the seed."""
    given = [(blind_name(seed, item, system), text) for system, text in sorted(answers.items())]
    order = np.random.default_rng([seed, item.number]).permutation(len(given))
    return {
        "number": item.number,
        "image": item.image,
        "question": item.question,
        "boxes": [[round(value / 1000, 4) for value in box.values] for box in item.boxes],
        "answers": [{"name": given[place][0], "text": given[place][1]} for place in order],
    }


def _embedded(path: Path) -> dict[str, object]:
    """An image as the page holds it, reduced where it is large."""
    image: Image.Image = open_image(path).load()
    image.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "width": image.width,
        "height": image.height,
        "data": f"data:image/jpeg;base64,{encoded}",
    }


def _identity(content: Mapping[str, object]) -> str:
    """Tells pages with other questions or answers apart, so that none takes another's ranking."""
    text = json.dumps([content["seed"], content["items"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_page(
    out: Path, data: FineEval, settings: EvalSettings, console: Console, seed: int
) -> int:
    """Write the page; how many questions a model has failed to answer, which stand without it.

    Raises DataError where two systems have one name, and the errors of loading and writing.
    """
    bundles = [find_bundle(model) for model in settings.models]
    with_answers(data, [(bundle.card.name, [None] * len(data.items)) for bundle in bundles])
    answers, failed = [], 0
    for bundle in bundles:
        requests = fineeval_requests(data, bundle.card.prompt.region_input)
        done = run_task(requests, settings, bundle, console)
        failed += done.failed
        texts = [
            done.answered[row].text if row in done.answered else None
            for row in range(len(requests))
        ]
        answers.append((bundle.card.name, texts))
    write_page(out, data, with_answers(data, answers), seed)
    return failed
