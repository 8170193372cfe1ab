"""Requests and answers: the two ends of `Engine.answer`."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from regionqa.errors import ItemError, UsageError
from regionqa.images.reading import InputImage
from regionqa.options import RegionWay
from regionqa.regions import Region

NAMING_QUESTION = "what is this?"
"""Question about a box of which only the class is known, in training and in evaluation."""
LONGEST_WINDOW = 256
"""Largest number of requests held at a time; bounds the memory where all are about one image."""


@dataclass(frozen=True)
class HistoryTurn:
    """An earlier question of a conversation, with its answer."""

    question: str
    answer: str
    regions: int
    """Number of the conversation's regions at that time."""


@dataclass(frozen=True)
class Request:
    """One question about one image and any number of its regions; none: the whole image.

    A request that cannot be asked (its image is missing, its box is malformed) carries the reason
    in `error`; the engine passes it on in its place, so that answers keep their order.
    """

    image: str
    """Name of the image as the user gave it."""
    question: str
    """The question; `<region1>` refers to the first of `regions`, and so on."""
    regions: tuple[Region, ...] = ()
    """Regions inside the image, in pixels of the image as displayed."""
    source: InputImage | None = None
    """The opened image; None only where there is an error."""
    error: ItemError | None = None
    """Why this request cannot be asked."""
    history: tuple[HistoryTurn, ...] = ()
    """Earlier turns, oldest first; `regions` are those of the whole conversation."""
    choices: tuple[str, ...] = ()
    """Allowed answers: the likeliest is given and nothing is generated. Empty: any answer."""
    way: RegionWay | None = None
    """How its regions are told; None: as the model's options and card say."""
    fade: float = 0.0
    """Share by which crops are grey outside of their regions' masks, 0 to 1."""
    id: str | int | float | None = None
    """The user's own name of the request, which comes back with the answer."""
    meta: Any = field(default=None, hash=False)
    """Further JSON of the user's, which comes back with the answer."""

    @property
    def carried(self) -> dict[str, object]:
        """`id` and `meta`, without those that were not given."""
        both = {"id": self.id, "meta": self.meta}
        return {key: value for key, value in both.items() if value is not None}


@dataclass(frozen=True)
class Answer:
    """The model's answer to one request, or the error that prevented it."""

    request: Request
    text: str = ""
    """The answer, or the model's text for "unsure"; empty where there is an error."""
    tokens: int = 0
    """Number of generated tokens."""
    seconds: float = 0.0
    """This request's share of the time spent on the window it was answered in."""
    error: ItemError | None = None
    """Why there is no answer."""
    value: Any = field(default=None, hash=False)
    """The answer as JSON, where a schema was given."""
    confidence: float | None = None
    """Probability that the model gives to what it generated, from 0 to 1, whether given as the
    answer or held back; None where there is an error or the model reports none."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the likeliest token."""
    top_k: int = 0
    """Draw from this many of the likeliest tokens; 0: from all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature {self.temperature}: must be 0 or more")


def request_seed(request: Request, seed: int) -> int:
    """Derive the random seed of one request from its content, not from its place among others."""
    boxes = [region.box.xyxy for region in request.regions]
    content = repr((seed, request.question, request.history, boxes))
    return int.from_bytes(hashlib.sha256(content.encode("utf-8", "replace")).digest()[:8])


def windows(requests: Iterable[Request], batch_size: int) -> Iterator[list[Request]]:
    """Split requests into runs that are answered together.

    A window ends with an image, once it holds a batch; the first ends with the first image, so
    that its answer need not wait. With a batch size of 1 every request is its own window.
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
