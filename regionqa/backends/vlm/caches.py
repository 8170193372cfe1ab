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


def can_be_joined(cache: Any) -> bool:
    """Return whether rows of different lengths can be joined once their prompts were run.

    From then on every row gets one token at a time, so that padding is behind it: recurrent and
    convolutional states are beyond it, attention masks it, and it is the last that a sliding
    window would reach.
    """
    from transformers.cache_utils import (
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionLayer,
    )

    known = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)
    return all(type(layer) in known for layer in cache.layers)


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
    """Join the rows of several caches.

    Keys and values of shorter caches are padded on the left, which a mask must tell. Recurrent and
    convolutional states have no length; see `can_be_joined`.
    """
    if len(caches) == 1:
        return caches[0]
    joined = copy(caches[0])
    joined.layers = [
        _join_layers(layers) for layers in zip(*(each.layers for each in caches), strict=True)
    ]
    return joined


def _join_layers(layers: Sequence[Any]) -> Any:
    joined = copy(layers[0])
    for name in {"keys", "values"} & vars(joined).keys():
        if getattr(joined, name) is None:  # Gemma 4's last layers use keys of earlier ones
            continue
        rows = [getattr(layer, name) for layer in layers]  # (Q, heads, L, D) each
        longest = max(row.shape[-2] for row in rows)
        padded = [pad(row, (0, 0, longest - row.shape[-2], 0)) for row in rows]
        setattr(joined, name, torch.cat(padded))
    if "cumulative_length" in vars(joined):  # of a sliding window, which keeps the last keys only
        joined.cumulative_length = max(layer.cumulative_length for layer in layers)
    for name in {"conv_states", "recurrent_states"} & vars(joined).keys():
        states = [getattr(layer, name) for layer in layers]
        first = states[0]
        setattr(joined, name, {
            key: torch.cat([state[key] for state in states]) if isinstance(value, Tensor) else value
            for key, value in first.items()
        })  # fmt: skip
    return joined
