"""What takes a stage's steps, and how long they are.

It does not know about batches, losses or checkpoints.
"""

import math

import torch
from torch import nn

from regionqa.finetune.config import StageSettings
from regionqa.finetune.distributed import decoder_layers
from regionqa.finetune.model import RegionLanguageModel


def make_optimizers(
    model: RegionLanguageModel, settings: StageSettings
) -> list[torch.optim.Optimizer]:
    """AdamW, and orthogonal steps for the language model's matrices where they are asked for.

    Matrices and kernels decay, biases and norms do not. A group's "share" is of the stage's rate.
    """
    layers = decoder_layers(model.language) if settings.orthogonal_rate else nn.ModuleList()
    turned = {id(p) for p in layers.parameters() if p.requires_grad and p.ndim == 2}
    matrices: list[nn.Parameter] = []
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in turned:
            matrices.append(parameter)
        elif parameter.requires_grad:
            share = settings.region_rate if name.startswith("region.") else 1.0
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((share, decay), []).append(parameter)
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(
            torch.optim.AdamW(
                [
                    {"params": parameters, "share": share, "weight_decay": decay}
                    for (share, decay), parameters in groups.items()
                ],
                lr=settings.learning_rate,
            )
        )
    if matrices:
        group = {"params": matrices, "share": settings.orthogonal_rate}
        rate, decay = settings.learning_rate, settings.weight_decay
        optimizers.append(torch.optim.Muon([group], lr=rate, weight_decay=decay))
    return optimizers


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that an optimizer changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def learning_rate(settings: StageSettings, step: int, steps: int) -> float:
    """Linear warm-up to the peak, then the schedule; step counts from 0."""
    warm_up = settings.warm_up_steps
    if warm_up is None:
        warm_up = math.ceil(settings.warm_up * steps)
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    if settings.schedule == "constant":
        return settings.learning_rate
    share = (step - warm_up) / max(1, steps - warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
