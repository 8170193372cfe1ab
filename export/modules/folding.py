"""Batch normalization folded into the convolutions before it.

With fixed statistics, a convolution and the normalization after it are one affine map of its input.
A folded network computes the same in about half the time on a CPU, where normalization is bound by
memory.
"""

from itertools import pairwise

import torch
from torch import nn


def fold_batch_norm(module: nn.Module) -> None:
    """Fold in place.

    A convolution is taken to feed the batch normalization that its parent registers next, as in
    the models of timm and torchvision; what stands behind the normalization (its activation in
    timm's layers) stays.
    """
    for (_, first), (name, second) in pairwise(list(module.named_children())):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            fold_pair(first, second)
            setattr(module, name, without_normalization(second))
    for child in module.children():
        fold_batch_norm(child)


@torch.no_grad()
def fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Make a convolution compute what it and a normalization in evaluation mode compute."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight  # (C,)
    bias = norm.running_mean.new_zeros(()) if conv.bias is None else conv.bias
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)


def without_normalization(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what a normalization layer of timm does after normalizing: dropout and activation."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    kept = [part for part in parts if part is not None and not isinstance(part, nn.Identity)]
    return nn.Sequential(*kept) if len(kept) > 1 else kept[0] if kept else nn.Identity()
