"""What is asked and what comes back: `Request` and `Answer`, the two ends of `Engine.answer`.

Plain values; nothing here opens a picture or runs a model.
"""

from dataclasses import dataclass

from regionqa.errors import ItemError
from regionqa.images import Picture
from regionqa.regions import Region

NAMING_QUESTION = "what is this?"
"""What is asked of a box whose only known truth is its class, in training as in evaluation."""


@dataclass(frozen=True)
class Request:
    """One question about one picture and any number of its regions (none: the whole picture).

    A request that cannot be asked (its picture is missing, its box is malformed) carries the
    reason in `error`; the engine passes it on in its place, so that answers keep their order.
    """

    image: str
    """The picture's name as the user gave it."""
    question: str
    """The question; `<region1>` names the first of `regions`, and so on."""
    regions: tuple[Region, ...] = ()
    """Inside the picture, in pixels of the picture as displayed."""
    picture: Picture | None = None
    """The opened picture; None only where there is an error."""
    error: ItemError | None = None
    """Why this request cannot be asked."""
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
