"""The page on which people rank answers: one self-contained HTML file.

It embeds the images as JPEG and draws the boxes over them. Answers stand without the names of their
systems, in a different order for every question. A system's blind name is a hash of the seed, the
question and its name, so that a saved ranking can be counted without the page.
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

from regionqa.backends.base import configured_model
from regionqa.evaluation.fineeval.questions import (
    FineEval,
    FineEvalItem,
    answers_by_system,
    fineeval_requests,
)
from regionqa.evaluation.runner import EvalSettings, run_task
from regionqa.files import write_whole
from regionqa.images.reading import open_image
from regionqa.pipeline.console import Console
from regionqa.pipeline.drawing import COLOURS

FORMAT = "regionqa-fineeval-1"
MAX_SIDE = 900
"""Maximum of an image's longer side on the page, in pixels."""
JPEG_QUALITY = 82


def blind_name(seed: int, item: FineEvalItem, system: str) -> str:
    """Return the name of a system on the page, for one question."""
    text = f"{seed}/{item.number}/{item.image}/{system}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_page(
    path: Path, data: FineEval, answers: Sequence[Mapping[str, str]], seed: int = 0
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        data: The questions.
        answers: The answers to rank by system, for every item.
        seed: Random seed of blind names and order.

    Raises:
        ImageError: An image cannot be read.
        OutputError: The page cannot be written.
    """
    names = list(dict.fromkeys(item.image for item in data.items))
    content = {
        "format": FORMAT,
        "seed": seed,
        "systems": sorted({name for each in answers for name in each}),
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour) for colour in COLOURS],
        "images": {name: _image_record(data.images / name) for name in names},
        "items": [_item_record(item, given, seed)
                  for item, given in zip(data.items, answers, strict=True)],
    }  # fmt: skip
    content["id"] = _page_id(content)
    html = _part("page.html")
    for name, text in (
        ("style", _part("page.css")),
        ("script", _part("page.js")),
        # `</script>` in an answer must not end the data
        ("data", json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")),
    ):
        html = html.replace(f"/*{name}*/", text, 1)
    with write_whole(path) as file:
        file.write(html.encode())


def _part(name: str) -> str:
    return files("regionqa.evaluation.fineeval").joinpath(name).read_text(encoding="utf-8")


def _item_record(item: FineEvalItem, answers: Mapping[str, str], seed: int) -> dict[str, object]:
    """Return one question as the page's data has it, its answers in random order."""
    given = [(blind_name(seed, item, system), text) for system, text in sorted(answers.items())]
    order = np.random.default_rng([seed, item.number]).permutation(len(given))
    return {
        "number": item.number,
        "image": item.image,
        "question": item.question,
        "boxes": [[round(value / 1000, 4) for value in box.values] for box in item.boxes],
        "answers": [{"name": given[place][0], "text": given[place][1]} for place in order],
    }


def _image_record(path: Path) -> dict[str, object]:
    """Return an image as the page's data has it, reduced if it is large."""
    image: Image.Image = open_image(path).load()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "width": image.width,
        "height": image.height,
        "data": f"data:image/jpeg;base64,{encoded}",
    }


def _page_id(content: Mapping[str, object]) -> str:
    """Identify the questions and answers, so that a page refuses the ranking of another."""
    text = json.dumps([content["seed"], content["items"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_page(
    out: Path, data: FineEval, settings: EvalSettings, console: Console, seed: int
) -> int:
    """Ask the models and write the page.

    Returns:
        How many requests failed; the page shows those questions without that answer.

    Raises:
        DataError: Two systems have one name.
        RegionQAError: A model cannot be loaded, or the page cannot be written.
    """
    models = [configured_model(model, settings.runtime) for model in settings.models]
    answers_by_system(data, [(model.info.name, [None] * len(data.items)) for model in models])
    answers, failed = [], 0
    for model in models:
        requests = fineeval_requests(data, model.info.region_input)
        run = run_task(requests, settings, model, console)
        failed += run.failed
        texts = [
            run.answers[row].text if row in run.answers else None for row in range(len(requests))
        ]
        answers.append((model.info.name, texts))
    write_page(out, data, answers_by_system(data, answers), seed)
    return failed
