"""An optimizer for the convolutions of a network with batch norm: orthogonal steps.

The momentum of a kernel, as a matrix of one row per output channel, is replaced by the nearest
matrix with orthogonal rows (Jordan et al. 2024, "Muon"), so that every direction learns at the same
rate. Batch norm makes a kernel's length meaningless: it is held fixed, and the learning rate is the
share of it that a step may change.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

FACTORS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial that drives singular values from (0, 1] to about 1."""


def orthogonal(matrices: Tensor, rounds: int = 3) -> Tensor:
    """(K, R, C) -> matrices with singular values of about one, by a Newton-Schulz iteration."""
    first, third, fifth = FACTORS
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT  # (K, R, R)
        x = first * x + (third * square + fifth * (square @ square)) @ x
    rounded: Tensor = x.float()
    return rounded


class KernelOptimizer:
    """Orthogonal steps for convolution kernels."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.9) -> None:
        self.momentum = momentum
        self.groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.buffers = [
            torch.zeros(len(group), shape[0], math.prod(shape[1:]))
            for shape, group in self.groups.items()
        ]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change every kernel by `rate` of its length."""
        for (shape, group), buffer in zip(self.groups.items(), self.buffers, strict=True):
            gradients = torch.stack([gradient_of(kernel).reshape(shape[0], -1) for kernel in group])
            buffer.mul_(self.momentum).add_(gradients)
            steps = orthogonal(gradients + self.momentum * buffer).reshape(-1, *shape)
            for kernel, change in zip(group, steps, strict=True):
                kernel.mul_(shape[0] ** 0.5 / kernel.norm())
                kernel.add_(change, alpha=-rate)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """Its gradient, which must be there."""
    assert parameter.grad is not None
    return parameter.grad


def parameter_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Groups of AdamW, for all but kernels: matrices decay, biases and norms do not."""
    every = list(parameters)
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
