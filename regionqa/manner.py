"""How answers are made: how long, how sure, how random, and who hears them as they are made.

Plain values and text; nothing here runs a model.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regionqa.errors import UsageError
from regionqa.prompts import PromptRules
from regionqa.requests import Request
from regionqa.wording import may_be_lead, read_answer

HALF = "\ufffd"
"""What a tokenizer writes for the beginning of a character whose end is still to come."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """What logits are divided by before one is drawn; 0: the likeliest is taken."""
    top_k: int = 0
    """How many of the likeliest tokens are drawn from; 0: all."""
    seed: int = 0
    """What is drawn follows from it and from what is asked, whatever else is asked beside."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"temperature {self.temperature}: must be 0 or more")

    def seed_of(self, request: Request) -> int:
        """The seed of one request: of its words and boxes, not of its place among others."""
        told = (self.seed, request.question, request.history, [r.box.xyxy for r in request.regions])
        return int.from_bytes(hashlib.sha256(repr(told).encode("utf-8", "replace")).digest()[:8])


OnText = Callable[[Request, str], None]


@dataclass(frozen=True)
class Manner:
    """How all answers of one call are made."""

    max_new_tokens: int
    """Longest answer."""
    sampling: Sampling = Sampling()
    """How tokens are chosen."""
    unsure_below: float = 0.0
    """Answers less probable than this are held back."""
    described: int | None = None
    """Answers of more tokens than this are never held back; None: any may be."""
    on_text: OnText | None = None
    """Told each part of an answer as soon as nothing can take it back."""

    def holds_back(self, tokens: int) -> bool:
        """Whether an answer that is so long by now may yet be held back."""
        return self.unsure_below > 0 and not (
            self.described is not None and tokens > self.described
        )


class Teller:
    """Tells one answer in parts that together are the answer."""

    def __init__(
        self, rules: PromptRules, stops: Sequence[str], tell: Callable[[str], None]
    ) -> None:
        """rules: what stands around an answer; stops: texts that may end it. Neither is told."""
        self._rules = rules
        self._stops = stops
        self._tell = tell
        self._told = ""

    def hear(self, written: str) -> None:
        """Tell what is certain of all that was generated so far."""
        certain = settled(written, self._stops)
        meant = read_answer(self._rules, certain)
        if not may_be_lead(self._rules, certain) and meant.startswith(self._told):
            self._tell_rest(meant)

    def finish(self, answer: str) -> None:
        """Tell the rest of the answer."""
        if not answer.startswith(self._told):  # never seen: a tokenizer that changes its words
            self._tell("\n")
            self._told = ""
        self._tell_rest(answer)

    def _tell_rest(self, text: str) -> None:
        if rest := text[len(self._told) :]:
            self._tell(rest)
            self._told = text


def settled(text: str, stops: Sequence[str]) -> str:
    """The part of a growing text that is no half of a character and no beginning of a stop."""
    text = text.rstrip(HALF)
    begun = [
        length
        for stop in stops
        for length in range(1, min(len(stop), len(text) + 1))
        if text.endswith(stop[:length])
    ]
    return text[: len(text) - max(begun, default=0)]
