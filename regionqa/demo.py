"""`regionqa demo`: the starter asked about real photos that come with scikit-image.

The photos are in no training set of ours. It does nothing that `ask --draw` does not do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from regionqa.drawing import draw_answers, save_drawing
from regionqa.engine import Engine
from regionqa.errors import OutputError, UsageError
from regionqa.images import open_picture
from regionqa.regions import Box, Region
from regionqa.requests import Request


@dataclass(frozen=True)
class Question:
    """One question of the demonstration."""

    photo: str
    """File in scikit-image's data folder."""
    boxes: tuple[Box, ...]
    """Its regions."""
    text: str
    """What is asked."""


CAT, CUP, ASTRONAUT, MOTORCYCLE = (
    "chelsea.png", "coffee.png", "astronaut.png", "motorcycle_left.png",
)  # fmt: skip
QUESTIONS = (
    Question(CAT, (Box(120, 20, 345, 240),), "what is this?"),
    Question(CAT, (Box(120, 20, 345, 240),), "is this a dog?"),
    Question(CUP, (Box(165, 55, 480, 335),), "what is <region1>?"),
    Question(CUP, (), "describe this picture."),
    Question(ASTRONAUT, (Box(50, 0, 420, 512),), "describe <region1>."),
    Question(MOTORCYCLE, (Box(90, 60, 640, 470),), "what is in this region?"),
    Question(MOTORCYCLE, (), "is there a person in the picture?"),
)


def photo_folder() -> Path:
    """Where scikit-image keeps its photos; UsageError where it is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise UsageError("the demo's photos come with scikit-image: pip install 'regionqa[demo]'")
    return Path(spec.origin).parent / "data"


def demonstrate(engine: Engine, out: Path, tell: Callable[[str], None]) -> None:
    """Ask, tell each question with its answer, and draw a picture per photo into `out`."""
    folder = photo_folder()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made: {error.strerror}; name another folder") from None
    photos = {
        name: open_picture(folder / name) for name in dict.fromkeys(q.photo for q in QUESTIONS)
    }
    requests = [
        Request(q.photo, q.text, tuple(Region(box) for box in q.boxes), photos[q.photo])
        for q in QUESTIONS
    ]
    answers = list(engine.answer(requests))
    for answer in answers:
        request = answer.request
        where = " ".join(f"[{region.box}]" for region in request.regions) or "[whole picture]"
        tell(f"{request.image} {where} {request.question}\n    {answer.text or answer.error}")
    for name, picture in photos.items():
        drawing = draw_answers(picture.load(), [a for a in answers if a.request.image == name])
        path = out / f"{Path(name).stem}.png"
        save_drawing(drawing, path)
        tell(f"drawn: {path}")
