"""Splice image and region tokens into the embeddings of prompts."""

import torch
from torch import Tensor


def splice_tokens(
    embeds: Tensor,
    image_tokens: Tensor,
    image_starts: Tensor,
    region_tokens: Tensor,
    region_rows: Tensor,
    region_starts: Tensor,
) -> Tensor:
    """Overwrite the slots of embedded prompts with image and region tokens.

    Args:
        embeds: (Q, L, H) embeddings of Q prompts, padded to L ids.
        image_tokens: (Q, T, H) tokens of each prompt's image.
        image_starts: (Q,) position of the first image token.
        region_tokens: (M, K, H) tokens of each region slot; M may be 0.
        region_rows: (M,) prompt of each region slot.
        region_starts: (M,) position of its first token.

    Returns:
        (Q, L, H) in the dtype of `embeds`; gradients flow into all three kinds of tokens.
    """
    count, length, width = embeds.shape
    flat = embeds.reshape(-1, width)  # (Q * L, H)
    rows = torch.arange(count, device=embeds.device)
    flat = _write(flat, rows * length + image_starts, image_tokens)
    if len(region_tokens):
        flat = _write(flat, region_rows * length + region_starts, region_tokens)
    return flat.view(count, length, width)


def _write(flat: Tensor, starts: Tensor, tokens: Tensor) -> Tensor:
    """Write runs of tokens (N, K, H) into rows of flat (P, H), each from its start (N,) on."""
    offsets = torch.arange(tokens.shape[1], device=flat.device)
    positions = (starts.unsqueeze(1) + offsets).flatten()  # (N * K,)
    values = tokens.reshape(-1, flat.shape[1]).to(flat)
    return flat.index_copy(0, positions, values)
