"""`regionqa demo`: questions about photos that come with scikit-image.

The photos are in no training set of this repository. They are copied beside the drawings, as input
for commands of the user's own.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regionqa.engine import Engine
from regionqa.errors import SOME_FAILED, OutputError, UsageError
from regionqa.images.reading import open_image
from regionqa.pipeline.draw_files import refuse_drawings, save_drawing
from regionqa.pipeline.drawing import draw_answers
from regionqa.regions import Box, Region
from regionqa.requests import Request

SOURCES = {
    "cat.png": "chelsea.png",
    "cup.png": "coffee.png",
    "astronaut.png": "astronaut.png",
    "motorcycle.png": "motorcycle_left.png",
}
"""File names of the copies, and of scikit-image's photos."""


@dataclass(frozen=True)
class DemoQuestion:
    """A question of the demo."""

    photo: str
    """Key of `SOURCES`."""
    boxes: tuple[Box, ...]
    """Regions of the question; empty: the whole image."""
    text: str


QUESTIONS = (
    DemoQuestion("cat.png", (Box(30, 0, 405, 288),), "what is this?"),
    DemoQuestion("cat.png", (Box(30, 0, 405, 288),), "is this a dog?"),
    DemoQuestion("cup.png", (Box(170, 18, 408, 285),), "what is <region1>?"),
    DemoQuestion("cup.png", (), "describe this picture."),
    DemoQuestion("astronaut.png", (Box(20, 8, 375, 512),), "describe <region1>."),
    DemoQuestion("motorcycle.png", (Box(98, 78, 684, 455),), "what is in this region?"),
    DemoQuestion("motorcycle.png", (), "is there a person in the picture?"),
)


def photo_folder() -> Path:
    """Return the folder of scikit-image's photos; UsageError if it is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError("the demo's photos come with scikit-image: pip install 'regionqa[demo]'")
    return Path(spec.origin).parent / "data"


def check_demo(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError if there are files where the demo writes, unless it may replace them."""
    paths = [place / name for place in (out / "photos", out) for name in SOURCES]
    refuse_drawings(f"--out {out}", paths, (), overwrite=overwrite)


def copy_photos(folder: Path) -> None:
    """Copy the photos to a folder; OutputError if that fails."""
    source = photo_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, original in SOURCES.items():
            shutil.copyfile(source / original, folder / name)
    except OSError as error:
        reason = f"{folder}: cannot be written: {error.strerror}; name another folder"
        raise OutputError(reason) from error


def run_demo(engine: Engine, out: Path, show: Callable[[str], None]) -> int:
    """Answer the questions, show each with its answer, and save a drawing per photo to `out`.

    Existing files are replaced.

    Returns:
        The exit status: 0, or `SOME_FAILED`, of a model that takes fixed tasks for instance.
    """
    copy_photos(out / "photos")
    images = {name: open_image(out / "photos" / name) for name in SOURCES}
    requests = [
        Request(q.photo, q.text, tuple(Region(box) for box in q.boxes), images[q.photo])
        for q in QUESTIONS
    ]
    answers = list(engine.answer(requests))
    for answer in answers:
        request = answer.request
        where = " ".join(f"[{region.box}]" for region in request.regions) or "[whole image]"
        show(f"{request.image} {where} {request.question}\n    {answer.text or answer.error}")
    for name, image in images.items():
        drawing = draw_answers(image.load(), [a for a in answers if a.request.image == name])
        path = out / name
        save_drawing(drawing, path, overwrite=True)
        show(f"drawn: {path}")
    return SOME_FAILED if any(answer.error for answer in answers) else 0
