"""Rows of several prompts, in which those about one image share its prefix.

Prompts about one image are equal up to the image's last token. A row holds this prefix once, then
the rest of each prompt. Positions continue from the prefix, and a prompt attends to the prefix and
to itself, so that every token is computed as in a row of its own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from heapq import heapreplace
from itertools import pairwise
from math import ceil, inf
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

PADDING = -1
"""Owner of positions without a token."""
PREFIX = -1
"""Prompt of positions that all prompts of their owner share."""
WIDE = 2048
"""Length of a row at which attention costs about as much as the other layers of a small model."""
LEAST_SAVING = 0.1
"""Share of the cost that packing must save: it prepares masks, and copies embeddings."""
MASKED_ATTENTION = ("sdpa", "eager")
"""Implementations of attention that read a mask of every pair of positions."""
CAUSAL_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that combine positions by attention alone."""
Group = tuple[int, ...]
"""Prompts about one image that share a prefix."""


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """G rows of W positions that hold Q prompts of up to L tokens.

    Attributes:
        sources: (G, W) the token at each position, as an index into (Q * L,); 0 in padding.
        positions: (G, W) position ids.
        owners: (G, W) number of the prefix that a position belongs to, or PADDING.
        prompts: (G, W) prompt of each position, or PREFIX.
        places: (Q, L) position of each token, as an index into (G * W,); 0 in padding.
    """

    sources: Tensor
    positions: Tensor
    owners: Tensor
    prompts: Tensor
    places: Tensor

    def to(self, device: torch.device) -> Self:
        """Copy the tensors to a device."""
        names = [item.name for item in fields(self)]
        return type(self)(**{n: getattr(self, n).to(device, non_blocking=True) for n in names})

    def pack(self, tokens: Tensor) -> Tensor:
        """Arrange tokens (Q, L, H) in rows (G, W, H)."""
        flat = tokens.flatten(0, 1).index_select(0, self.sources.flatten())  # (G * W, H)
        return flat.view(*self.sources.shape, -1)

    def unpack(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Return what rows (G, W, H) hold for chosen tokens, bool (Q, L) -> (A, H)."""
        return hidden.flatten(0, 1).index_select(0, self.places[chosen])

    def visible(self) -> Tensor:
        """Return the attention mask, bool (G, 1, W, W); True where a position may attend.

        Padding attends to itself and padding before it: softmax over no position would be NaN.
        """
        own = self.owners.unsqueeze(2) == self.owners.unsqueeze(1)
        key, query = self.prompts.unsqueeze(1), self.prompts.unsqueeze(2)
        return (own & ((key == PREFIX) | (key == query))).tril().unsqueeze(1)

    def inputs(self, tokens: Tensor, attention: str) -> dict[str, Tensor]:
        """Return what a model of transformers reads.

        Args:
            tokens: (Q, L, H) embedded prompts.
            attention: Implementation of attention, of MASKED_ATTENTION.
        """
        mask = self.visible()
        if attention == "eager":  # adds the mask to the scores
            lowest = torch.finfo(tokens.dtype).min
            mask = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, lowest)
        return {
            "inputs_embeds": self.pack(tokens),
            "attention_mask": mask,
            "position_ids": self.positions,
        }


def longest_packed_prompt(language: Any) -> float:
    """Return up to how many tokens a language model computes packed prompts as single ones.

    Tokens must meet by attention under the given mask only, and be placed by position ids only:
    with rotary positions, and without recurrent layers, convolutions or chunks. A sliding window
    follows positions in the row, so prompts may be as long as the window.

    Args:
        language: A model of transformers.

    Returns:
        0 where it cannot read packed rows, infinity where the length does not matter.
    """
    config = language.config
    layers = set(getattr(config, "layer_types", None) or CAUSAL_LAYERS)
    reads_masks = getattr(config, "_attn_implementation", None) in MASKED_ATTENTION
    if not (reads_masks and getattr(config, "rope_parameters", None) and layers <= CAUSAL_LAYERS):
        return 0
    others = ("attention_chunk_size", "use_bidirectional_attention")
    if getattr(language, "_is_stateful", False) or any(getattr(config, k, None) for k in others):
        return 0
    if any(isinstance(module, torch.nn.Conv1d) for module in language.modules()):
        return 0
    window: float = getattr(config, "sliding_window", None) or inf
    return window


def pack_prompts(
    images: Sequence[int], lengths: Sequence[int], shared: int, length: int
) -> PackedRows | None:
    """Arrange prompts in rows, or return None where rows of their own cost about as much.

    Several prefixes may stand in one row, and the prompts of one image in several.

    Args:
        images: Number of each prompt's image.
        lengths: Tokens of each prompt.
        shared: Tokens that all prompts about an image have in common.
        length: L, tokens of a padded prompt.
    """
    most = max(Counter(images).values())
    plans = [
        fill_rows(groups, lengths, shared, count)
        for groups in (split_images(images, each) for each in powers_of_two(most))
        for count in row_counts([group_size(group, lengths, shared) for group in groups])
    ]
    best = min(plans, key=lambda plan: cost(len(plan), row_width(plan, lengths, shared)))
    width = row_width(best, lengths, shared)
    if cost(len(best), width) > (1 - LEAST_SAVING) * cost(len(lengths), length):
        return None
    return arrange(best, width, lengths, shared, length)


def powers_of_two(most: int) -> Iterator[int]:
    """Yield 1, 2, 4, ... below `most`, and `most` itself."""
    each = 1
    while each < most:
        yield each
        each *= 2
    yield most


def split_images(images: Sequence[int], most: int) -> list[Group]:
    """Group prompts by image, up to `most` in a group and as evenly as that allows."""
    by_image: dict[int, list[int]] = {}
    for prompt, image in enumerate(images):
        by_image.setdefault(image, []).append(prompt)
    groups: list[Group] = []
    for own in by_image.values():
        parts = -(-len(own) // most)
        bounds = [len(own) * part // parts for part in range(parts + 1)]
        groups += [tuple(own[start:end]) for start, end in pairwise(bounds)]
    return groups


def group_size(group: Group, lengths: Sequence[int], shared: int) -> int:
    """Return the tokens of a prefix and the rest of each of its prompts."""
    return shared + sum(lengths[prompt] - shared for prompt in group)


def row_width(rows: Sequence[Sequence[Group]], lengths: Sequence[int], shared: int) -> int:
    """Return the tokens of the longest row."""
    return max(sum(group_size(group, lengths, shared) for group in row) for row in rows)


def cost(rows: int, width: int) -> float:
    """Estimate the cost of rows of a language model, in positions without attention."""
    return rows * width * (1 + width / WIDE)


def row_counts(sizes: Sequence[int]) -> list[int]:
    """Return how many rows to try for groups of these sizes: about as long as the longest, or
    several times as long, so that little is padded.
    """
    fewest = (ceil(sum(sizes) / (max(sizes) * times)) for times in (1, 1.5, 2, 3, 4))
    return sorted({min(count + more, len(sizes)) for count in fewest for more in (0, 1)})


def fill_rows(
    groups: Sequence[Group], lengths: Sequence[int], shared: int, count: int
) -> list[list[Group]]:
    """Fill `count` rows about equally: the longest group first, each into the shortest row."""
    sizes = {group: group_size(group, lengths, shared) for group in groups}
    rows: list[list[Group]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]  # a heap
    for group in sorted(groups, key=lambda group: -sizes[group]):
        size, row = filled[0]
        rows[row].append(group)
        heapreplace(filled, (size + sizes[group], row))
    return rows


def arrange(
    rows: Sequence[Sequence[Group]], width: int, lengths: Sequence[int], shared: int, length: int
) -> PackedRows:
    """Make the tensors of planned rows; see `pack_prompts`."""
    shape = (len(rows), width)
    sources, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    owners, prompts = np.full(shape, PADDING), np.full(shape, PREFIX)
    places = np.zeros((len(lengths), length), np.int64)
    owner = 0

    def put(row: int, at: int, prompt: int, span: range) -> int:
        """Place a span of a prompt's tokens; return the position after it."""
        end, tokens = at + len(span), np.arange(span.start, span.stop)
        sources[row, at:end] = prompt * length + tokens
        positions[row, at:end] = tokens
        owners[row, at:end] = owner
        return end

    for row, groups in enumerate(rows):
        at = 0
        for group in groups:
            start, at = at, put(row, at, group[0], range(shared))
            for prompt in group:
                places[prompt, :shared] = row * width + np.arange(start, start + shared)
                end = put(row, at, prompt, range(shared, lengths[prompt]))
                prompts[row, at:end] = prompt
                places[prompt, shared : lengths[prompt]] = row * width + np.arange(at, end)
                at = end
            owner += 1
    tensors: dict[str, npt.NDArray[np.int64]] = {
        "sources": sources, "positions": positions, "owners": owners, "prompts": prompts,
        "places": places,
    }  # fmt: skip
    return PackedRows(**{name: torch.from_numpy(value) for name, value in tensors.items()})
