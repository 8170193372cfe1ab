"""What is asked and what comes back: `Request` and `Answer`, the two ends of `Engine.answer`.

Plain values; nothing here opens an image or runs a model.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from regionqa.errors import ItemError
from regionqa.images.reading import InputImage
from regionqa.regions import Region

NAMING_QUESTION = "what is this?"
"""What is asked of a box whose only known truth is its class, in training as in evaluation."""
LONGEST_WINDOW = 256
"""Requests held at a time, however many ask about one image; this bounds the memory."""


@dataclass(frozen=True)
class HistoryTurn:
    """An earlier question of a conversation, with its answer."""

    question: str
    answer: str
    regions: int
    """How many of the conversation's regions there were by then."""


@dataclass(frozen=True)
class Request:
    """One question about one image and any number of its regions (none: the whole image).

    A request that cannot be asked (its image is missing, its box is malformed) carries the
    reason in `error`; the engine passes it on in its place, so that answers keep their order.
    """

    image: str
    """The image's name as the user gave it."""
    question: str
    """The question; `<region1>` names the first of `regions`, and so on."""
    regions: tuple[Region, ...] = ()
    """Inside the image, in pixels of the image as displayed."""
    source: InputImage | None = None
    """The opened image; None only where there is an error."""
    error: ItemError | None = None
    """Why this request cannot be asked."""
    history: tuple[HistoryTurn, ...] = ()
    """What was asked before, oldest first; `regions` are those of the whole conversation."""
    choices: tuple[str, ...] = ()
    """The only answers there are: the likeliest is given, and nothing is generated. None: any."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one request, or why it said nothing."""

    request: Request
    text: str = ""
    """The answer, or that the model is not sure of one; empty where there is an error."""
    tokens: int = 0
    """Tokens that were generated."""
    seconds: float = 0.0
    """This request's share of the time spent on the batch it was answered in."""
    error: ItemError | None = None
    """Why there is no answer."""
    confidence: float | None = None
    """How probable the model holds what it generated, from 0 to 1, whether that was given as the
    answer or held back; None where there is an error."""


def windows(requests: Iterable[Request], batch_size: int) -> Iterator[list[Request]]:
    """Consecutive requests that are answered together.

    A window ends with an image, once it holds a batch; the first ends with the first image, so
    that its answer need not wait. With a batch size of 1 every request is answered at once.
    """
    window: list[Request] = []
    enough = 1
    for request in requests:
        new_image = bool(window) and request.source is not window[-1].source
        if len(window) >= LONGEST_WINDOW or (new_image and len(window) >= enough):
            yield window
            window, enough = [], batch_size
        window.append(request)
        if batch_size == 1:
            yield window
            window = []
    if window:
        yield window
