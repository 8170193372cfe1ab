"""Linear probes on frozen features, from which projectors into the language model are initialized.

A linear layer learns in seconds what a region's vector says of its class. A small language model
learns that slowly, from few questions about each class, and learns part of what is noise. So what
carries vectors to it begins as the probe: every class in the direction of its own name's
embeddings, as loud as the probe is sure of it.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.starter.language.features import ImageView
from regionqa.language.tokenization import BundleTokenizer

STEPS = 600
"""Steps of a probe."""
BATCH = 512
"""Vectors or pictures a step."""
RATE = 3e-3
"""AdamW's rate at first; it falls to zero."""
REGION_NOISE = 1.0
"""Standard deviation of noise on region vectors, as a share of theirs. The encoder has learned from
these very boxes: without noise the probe overfits them."""
IMAGE_NOISE = 0.3
"""The same for the cells of pictures."""
SMOOTHING = 0.1
"""Share of the target that is spread over all classes."""


def name_probe(views: Sequence[ImageView], width: int, seed: int) -> nn.Linear:
    """What reads classes off the first `width` numbers of region vectors; boxes count by weight."""
    vectors = torch.cat([view.vectors[:, :width] for view in views]).float()  # (N, width)
    labels = torch.cat([torch.from_numpy(view.scene.labels) for view in views])  # (N,)
    weights = np.concatenate([view.scene.box_weights for view in views])  # (N,)
    loss = partial(F.cross_entropy, label_smoothing=SMOOTHING)
    classes = len(views[0].scene.names)
    return fitted(vectors, labels, weights, REGION_NOISE, loss, classes, seed)


def image_probe(views: Sequence[ImageView], seed: int) -> nn.Linear:
    """What reads off a picture's cells which classes it shows; its logits are their mean."""
    images = torch.stack([view.image.float().mean(0) for view in views])  # (V, C)
    classes = len(views[0].scene.names)
    shown = np.stack([np.bincount(view.scene.labels, minlength=classes) > 0 for view in views])
    targets = torch.from_numpy(shown).float()  # (V, classes)
    loss = partial(F.binary_cross_entropy_with_logits, reduction="sum")
    return fitted(images, targets, np.ones(len(views)), IMAGE_NOISE, loss, classes, seed)


def fitted(
    inputs: Tensor,
    targets: Tensor,
    weights: np.ndarray,
    noise: float,
    loss: Callable[[Tensor, Tensor], Tensor],
    classes: int,
    seed: int,
) -> nn.Linear:
    """A linear layer that learns targets from inputs (N, C), each drawn by its weight (N,)."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    probe = nn.Linear(inputs.shape[1], classes)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=0.0)
    chances, spread = torch.from_numpy(weights).float(), noise * inputs.std()
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        rows = torch.multinomial(chances, BATCH, replacement=True, generator=generator)
        noisy = inputs[rows] + spread * torch.randn(BATCH, inputs.shape[1], generator=generator)
        optimizer.zero_grad()
        loss(probe(noisy), targets[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return probe.requires_grad_(False)


@torch.no_grad()
def name_directions(embeddings: Tensor, tokenizer: BundleTokenizer, names: Sequence[str]) -> Tensor:
    """(classes, H): the mean embedding of each name's tokens, of length one."""
    means = [embeddings[tokenizer.encode(f" {name}")].mean(0) for name in names]
    return F.normalize(torch.stack(means), dim=1)


@torch.no_grad()
def initialize_from_probe(
    projector: nn.Linear, probe: nn.Linear, directions: Tensor, inputs: Tensor, rms: float
) -> None:
    """Let the first columns of a projector say what the probe reads, in directions (classes, H).

    inputs: (N, C), of which what is carried shall have the mean zero and `rms` as its root
    mean square.
    """
    mean = probe(inputs).mean(0)  # (classes,)
    weight = directions.T @ probe.weight  # (H, C)
    bias = directions.T @ (probe.bias - mean)  # (H,)
    scale = rms / (inputs @ weight.T + bias).pow(2).mean().sqrt()
    projector.weight[:, : weight.shape[1]] = scale * weight
    projector.bias.copy_(scale * bias)
