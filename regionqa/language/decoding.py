"""Token-by-token decoding of a batch of answers, for every kind of language model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from regionqa.language.sampling import TokenSampler

OnTokens = Callable[[int, int, str], None]
"""Called after each token of an unfinished answer with its row, number of tokens, and text."""


class Constraint(Protocol):
    """Limits the next tokens of the answers of a batch."""

    def mask(self, logits: Tensor, unfinished: Sequence[int]) -> Tensor:
        """Return logits (Q, V) in which forbidden tokens of unfinished rows are minus infinity."""

    def accept(self, tokens: Tensor, unfinished: Sequence[int]) -> None:
        """Follow the tokens (Q,) that were chosen for the unfinished rows."""


Advance = Callable[[Tensor], Tensor]
"""Appends one token id per row, (Q,), and returns the logits after it, (Q, V)."""


@dataclass(frozen=True)
class DecodedAnswer:
    """One generated answer."""

    ids: tuple[int, ...]
    """Token ids, without the stop token."""
    text: str
    """The decoded answer."""
    confidence: float = field(compare=False)
    """Probability of all tokens including the stop. Not compared: its last digits depend on the
    rest of the batch."""


@dataclass(frozen=True)
class Stops:
    """What ends an answer."""

    ids: frozenset[int]
    """Token ids."""
    texts: tuple[str, ...] = ()
    """Texts in the decoded answer; what follows them is not part of it."""


class AnswerRows:
    """The answers of a batch as they grow."""

    def __init__(
        self,
        count: int,
        decode: Callable[[list[int]], str],
        stops: Stops,
        confidence_temperature: float = 1.0,
        on_tokens: OnTokens | None = None,
    ) -> None:
        """Start with empty answers.

        Args:
            count: Number of answers, Q.
            decode: Decodes token ids.
            stops: What ends an answer.
            confidence_temperature: Divisor of the logits before confidence is computed.
            on_tokens: Called as answers grow.
        """
        self._answers: list[list[int]] = [[] for _ in range(count)]
        self._logs = [0.0] * count
        self._decode = decode
        self._stops = stops
        self._temperature = confidence_temperature
        self._on_tokens = on_tokens
        self.unfinished = set(range(count))
        """Rows whose answers have not ended."""

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Append the chosen tokens (Q,) to the unfinished answers, given the logits (Q, V)."""
        logs = (logits.float() / self._temperature).log_softmax(-1)  # (Q, V)
        chosen: list[float] = logs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()
        for row, token in enumerate(tokens.tolist()):
            if row not in self.unfinished:
                continue
            ids = self._answers[row]
            self._logs[row] += chosen[row]
            if self._ends(ids, token):
                self.unfinished.discard(row)
            elif self._on_tokens:
                self._on_tokens(row, len(ids), self._decode(ids))

    def finished(self) -> list[DecodedAnswer]:
        """Return the answers, in order."""
        return [
            DecodedAnswer(tuple(ids), self._text(ids), math.exp(log))
            for ids, log in zip(self._answers, self._logs, strict=True)
        ]

    def _ends(self, ids: list[int], token: int) -> bool:
        """Append a token to an answer unless it ends it; return whether the answer has ended."""
        if token in self._stops.ids:
            return True
        ids.append(token)
        return bool(self._stops.texts) and any(
            stop in self._decode(ids) for stop in self._stops.texts
        )

    def _text(self, ids: list[int]) -> str:
        text = self._decode(ids)
        for stop in self._stops.texts:
            text = text.split(stop, 1)[0]
        return text.strip()


def decode_answers(
    logits: Tensor,
    advance: Advance,
    rows: AnswerRows,
    sampler: TokenSampler,
    max_new_tokens: int,
    constraint: Constraint | None = None,
) -> list[DecodedAnswer]:
    """Decode until every answer has ended or is at its limit.

    Args:
        logits: After the prompts, (Q, V).
        advance: Runs the model on the chosen tokens.
        rows: The answers, still empty.
        sampler: How tokens are chosen.
        max_new_tokens: Limit on the tokens of each answer.
        constraint: Limits the next tokens.
    """
    for count in range(1, max_new_tokens + 1):
        unfinished = sorted(rows.unfinished)
        if constraint is not None:
            logits = constraint.mask(logits, unfinished)
        tokens = sampler(logits)  # (Q,)
        if constraint is not None:
            constraint.accept(tokens, unfinished)
        rows.add(logits, tokens)
        if not rows.unfinished or count == max_new_tokens:
            break
        logits = advance(tokens)
    return rows.finished()


def score_answers(
    logits: Tensor, advance: Advance, answers: Sequence[Sequence[int]]
) -> list[float]:
    """Compute the log-probability of each answer, with one row of a batch per answer.

    Args:
        logits: After the prompt, (A, V), the same for every row.
        advance: Runs the model on one token per answer.
        answers: Token ids of each answer; at least one answer, each of at least one id.

    Returns:
        One natural logarithm per answer.
    """
    longest = max(map(len, answers))
    ids = torch.tensor(
        [[*each, *[0] * (longest - len(each))] for each in answers], device=logits.device
    )  # (A, T), padded; padding is not counted
    lengths = torch.tensor(list(map(len, answers)), device=logits.device)
    total = torch.zeros(len(answers), dtype=torch.float64, device=logits.device)
    for at in range(longest):
        logs = logits.double().log_softmax(-1).gather(1, ids[:, at : at + 1])[:, 0]  # (A,)
        total += torch.where(at < lengths, logs, 0.0)
        if at + 1 < longest:
            logits = advance(ids[:, at])
    return [float(each) for each in total]
