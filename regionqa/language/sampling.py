"""Token sampling."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regionqa.requests import Sampling


class TokenSampler:
    """Chooses the next tokens of a batch, with one random generator per answer."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int]) -> None:
        """Create a sampler.

        Args:
            sampling: How tokens are chosen.
            seeds: One per answer, so that an answer is the same in any batch.
        """
        self._sampling = sampling
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, logits: Tensor) -> Tensor:
        """Choose one token id per answer: logits (Q, V) -> ids (Q,).

        A token is drawn by inverting the cumulative distribution, so that logits that differ only
        in their last digits almost always give the same token.
        """
        if self._sampling.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.double() / self._sampling.temperature
        if 0 < self._sampling.top_k < scaled.shape[-1]:
            least = scaled.topk(self._sampling.top_k).values[:, -1:]  # (Q, 1)
            scaled = scaled.masked_fill(scaled < least, -torch.inf)
        cumulative = scaled.softmax(-1).cumsum(-1)  # (Q, V)
        drawn = torch.tensor([[rng.random()] for rng in self._generators], dtype=cumulative.dtype)
        at = drawn.to(cumulative.device) * cumulative[:, -1:]  # (Q, 1)
        ids = torch.searchsorted(cumulative, at, right=True).squeeze(1)
        return ids.clamp(max=cumulative.shape[1] - 1)
