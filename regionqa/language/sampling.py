"""The next token of each of several answers, from logits.

It does not know what is asked; each answer brings a seed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regionqa.errors import UsageError
from regionqa.requests import Request


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


class TokenSampler:
    """Chooses tokens for the answers of one batch, each from random numbers of its own."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        """seeds: one per answer, so that its numbers are the same in any batch."""
        self._sampling = sampling
        self._streams = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (Q, V) -> token ids (Q,).

        What is drawn is where a number falls on the line of all probabilities, so that logits of
        other last digits nearly always give the same token.
        """
        if self._sampling.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.double() / self._sampling.temperature
        if 0 < self._sampling.top_k < scaled.shape[-1]:
            least = scaled.topk(self._sampling.top_k).values[:, -1:]  # (Q, 1)
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        ends = scaled.softmax(-1).cumsum(-1)  # (Q, V)
        drawn = torch.tensor([[stream.random()] for stream in self._streams], dtype=ends.dtype)
        at = drawn.to(ends.device) * ends[:, -1:]  # (Q, 1)
        return torch.searchsorted(ends, at, right=True).squeeze(1).clamp(max=ends.shape[1] - 1)
