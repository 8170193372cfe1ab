"""One process or many: what each is, and how they share a model and a batch.

`torchrun` starts them; accelerate finds out which this one is. Every process holds the whole model
(DDP), or a share of it where it does not fit one GPU (FSDP2). Training code asks this module and
never how many there are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from regionqa.runtime.devices import Device, choose_device


class ProcessGroup:
    """This process among those that train together."""

    def __init__(self, device: str = "auto", *, shard: bool = False) -> None:
        """Join the others; DeviceError where CUDA was asked for and cannot be used."""
        chosen = choose_device(device)
        self._accelerator = Accelerator(cpu=chosen is Device.cpu)
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self._shard = shard and self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all have made."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether every process holds only a share of the model."""
        return self._shard

    def spread(self, model: nn.Module, layers: nn.ModuleList, *, bf16: bool) -> nn.Module:
        """The model as all processes train it; layers: what FSDP gathers one at a time."""
        model.to(self.device)
        if isinstance(model, FSDPModule):  # by the stage before
            model.reshard()
            return model
        if self._shard:
            mesh = init_device_mesh(self.device.type, (self.count,))
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else None
            options: dict[str, Any] = {"mesh": mesh} | ({"mp_policy": policy} if policy else {})
            for layer in layers:
                fully_shard(layer, **options)
            fully_shard(model, **options)
            return model
        if self.count == 1:
            return model
        return cast(nn.Module, self._accelerator.prepare_model(model))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, "sum"))

    def wait(self) -> None:
        """Until all are here."""
        self._accelerator.wait_for_everyone()

    @contextmanager
    def gradients_stay(self, model: nn.Module, stay: bool) -> Iterator[None]:
        """Keep gradients in this process while a step still accumulates."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(not stay)
            yield
        elif stay and self.count > 1:
            with self._accelerator.no_sync(model):
                yield
        else:
            yield

    def close(self) -> None:
        """Leave the others; the next run in this program starts anew."""
        self._accelerator.end_training()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def plain(model: nn.Module) -> nn.Module:
    """The model itself, without what spreads it."""
    return cast(nn.Module, model.module) if hasattr(model, "module") else model


def whole(value: Tensor) -> Tensor:
    """A tensor that processes may hold shares of, as each of them can read it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def decoder_layers(language: nn.Module) -> nn.ModuleList:
    """The list of layers that holds most of a language model's weights."""
    lists = [module for module in language.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda each: sum(p.numel() for p in each.parameters()))
