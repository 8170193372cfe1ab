"""Changes of frozen features, for encoders that have memorized the training images."""

import torch
from torch import Tensor


def swapped_rows(
    features: Tensor, share: float, swappable: Tensor, generator: torch.Generator
) -> Tensor:
    """Put another row in the place of a share of those that may be swapped.

    Args:
        features: (B, ..., C) of images.
        share: How many of the swappable ones are swapped, on average.
        swappable: (B,) bool, on the CPU.
        generator: Draws rows, on the CPU, whatever the features' device.
    """
    rows = torch.arange(len(features))
    chosen = (torch.rand(len(rows), generator=generator) < share) & swappable
    others = torch.randperm(len(rows), generator=generator)
    return features[torch.where(chosen, others, rows)]


def noisy_rows(features: Tensor, mixing: float, noise: float, generator: torch.Generator) -> Tensor:
    """Mix a share of another row into each of features (R, ..., C), and add normal noise.

    Args:
        features: Of images or regions.
        mixing: Largest share; each row's is drawn evenly from 0 on.
        noise: Standard deviation of the noise, as a share of that of the rows.
        generator: Draws shares, rows and noise, on the CPU, whatever the features' device.
    """
    rows = len(features)
    shares = mixing * torch.rand(rows, *[1] * (features.ndim - 1), generator=generator)
    others = features[torch.randperm(rows, generator=generator)]
    spread = features.std(0, correction=0)
    drawn = torch.randn(features.shape, generator=generator)
    device, dtype = features.device, features.dtype
    mixed = features.lerp(others, shares.to(device, dtype).expand_as(features))
    return mixed + noise * spread * drawn.to(device, dtype)
