"""Caches of language models: selected by row and joined over images.

A cache that was computed once for the beginning of a prompt is used for many prompts. transformers'
caches change in place, so every function here returns a new one and leaves its argument as it was.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def can_be_padded(cache: Any) -> bool:
    """Return whether rows of different lengths can stand in one cache, the shorter ones padded.

    Padding is masked out of attention. A recurrent or convolutional state has no mask, and a
    sliding window would count the padding.
    """
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def select_rows(cache: Any, rows: Tensor) -> Any:
    """Return a cache with some rows of another, in this order; a row may occur several times."""
    selected = copy(cache)
    selected.layers = [copy(layer) for layer in cache.layers]
    for layer in selected.layers:
        # the states of a recurrent layer are replaced one by one in a dictionary
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, dict(value))
        layer.reorder_cache(rows)
    return selected


def join_caches(caches: Sequence[Any]) -> Any:
    """Join caches of one row each, left-padded to the longest; see `can_be_padded`."""
    if len(caches) == 1:
        return caches[0]
    longest = max(cache.get_seq_length() for cache in caches)
    joined = copy(caches[0])
    joined.layers = [copy(layer) for layer in caches[0].layers]
    for number, layer in enumerate(joined.layers):
        for name in ("keys", "values"):
            rows = [getattr(cache.layers[number], name) for cache in caches]  # (1, heads, L, D)
            padded = [pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows]
            setattr(layer, name, torch.cat(padded))
    return joined
