"""Replies of a server as they arrive, in chunks of text, probabilities and counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regionqa.errors import ItemError
from regionqa.language.streaming import stable_text

THINKING, THOUGHT = "<think>", "</think>"
"""What surrounds the thoughts of models whose server does not separate them from the answer."""


class MalformedReplyError(ValueError):
    """A reply is not what the protocol says."""


@dataclass(frozen=True)
class ReplyToken:
    """One generated token."""

    text: str
    """Its text."""
    log: float
    """Its log-probability."""
    others: Mapping[str, float]
    """Log-probabilities of the likeliest tokens in its place, by their texts."""


@dataclass
class Reply:
    """What has arrived of one reply."""

    content: str = ""
    """The text so far, thoughts included."""
    tokens: list[ReplyToken] = field(default_factory=list)
    """The tokens so far; empty where the server gives no probabilities."""
    finish: str | None = None
    """Why the reply ended; None: it has not."""
    thought: bool = False
    """Whether the server reported thoughts beside the text."""
    count: int = 0
    """Number of tokens: as the server counts them, else pieces of text so far."""
    prompt_count: int = 0
    """Number of tokens of the prompt; 0 where the server does not count them."""

    def add(self, chunk: Any) -> bool:
        """Add a chunk of the stream; return whether the text has grown.

        Raises:
            MalformedReplyError: The chunk is not what the protocol says.
        """
        try:
            return self._add(chunk)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise MalformedReplyError(f"a part of the reply is malformed: {error}") from error

    def _add(self, chunk: Any) -> bool:
        if (usage := chunk.usage) is not None and usage.completion_tokens is not None:
            self.count = int(usage.completion_tokens)
            self.prompt_count = int(getattr(usage, "prompt_tokens", None) or 0)
        if not chunk.choices:
            return False
        choice = chunk.choices[0]
        delta = choice.delta
        if getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None):
            self.thought = True
        if choice.logprobs is not None:
            for token in choice.logprobs.content or ():
                others = {str(o.token): float(o.logprob) for o in token.top_logprobs or ()}
                self.tokens.append(ReplyToken(str(token.token), float(token.logprob), others))
        text = delta.content if delta is not None else None
        if text:
            if not isinstance(text, str):
                raise TypeError(f"content is {text!r}")
            self.content += text
            self.count += 1
        if choice.finish_reason is not None:
            self.finish = str(choice.finish_reason)
        return bool(text)

    @property
    def thinks(self) -> bool:
        """Whether the model thought before it answered."""
        return self.thought or self.content.lstrip().startswith(THINKING)

    @property
    def answer(self) -> str:
        """The text without thoughts; empty as long as these last."""
        text = self.content.lstrip()
        if text.startswith(THINKING):
            text = text.partition(THOUGHT)[2]
        return text.strip()

    @property
    def stable(self) -> str:
        """The part of the answer that what follows cannot change."""
        text = self.content.lstrip()
        if not self.thinks and THINKING.startswith(text[: len(THINKING)]):
            return ""
        if self.thinks and not self.thought:
            text = text.partition(THOUGHT)[2].lstrip()
        return stable_text(text, ())

    @property
    def confidence(self) -> float | None:
        """Probability of all tokens that the server lists; None where that is not the answer's."""
        if not self.tokens or self.thinks:
            return None
        return min(1.0, math.exp(math.fsum(token.log for token in self.tokens)))

    def check(self, limit: int) -> None:
        """ItemError if the reply has ended without an answer.

        Args:
            limit: Limit on its tokens.
        """
        if self.finish == "content_filter":
            raise ItemError("the server's filter withheld the answer; ask differently")
        if not self.answer and self.thinks:
            raise ItemError(
                f"the server's model thought for all of its {limit} tokens and gave no answer; "
                "start the server with thinking off, or raise --max-new-tokens"
            )
