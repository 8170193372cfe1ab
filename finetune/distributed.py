"""Processes that train together: rank, device, data-parallel or sharded model, reductions.

`torchrun` starts them and accelerate reads its environment. Every process holds the whole model
(DDP), or a share of it where it does not fit one GPU (FSDP2). The threads of a process add in a
fixed order on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import TensorBoardTracker
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from regionqa.runtime.devices import Device, choose_device


@contextmanager
def deterministic_kernels(device: torch.device) -> Iterator[None]:
    """Compute the same bits in every run on a CPU with the same number of threads.

    Without it, gradients of rows that are read several times, such as the tokens of an image with
    several questions, are added in the order in which threads arrive. An operation that has no such
    kernel warns. On a GPU nothing changes.
    """
    if device.type != "cpu":
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing reads such memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        memory.fill_uninitialized_memory = fills


class ProcessGroup:
    """This process and the others that train with it."""

    def __init__(self, device: str = "auto", *, shard: bool = False) -> None:
        """Join the group; DeviceError where `device` is "cuda" and cannot be used."""
        chosen = choose_device(device)
        self._accelerator = Accelerator(cpu=chosen is Device.cpu)
        self.device: torch.device = self._accelerator.device
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self._shard = shard and self.count > 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and progress for all."""
        return self.rank == 0

    @property
    def shards(self) -> bool:
        """Whether every process holds only a share of the model."""
        return self._shard

    def spread(self, model: nn.Module, layers: nn.ModuleList, *, bf16: bool) -> nn.Module:
        """Wrap the model for training in all processes; FSDP gathers one of `layers` at a time."""
        model.to(self.device)
        if isinstance(model, FSDPModule):  # an earlier stage has wrapped it
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
        """Sum over all processes."""
        return cast(Tensor, self._accelerator.reduce(values, "sum"))

    def agreed(self, value: float) -> float:
        """Return the first process's value in every process; a collective call."""
        if self.count == 1:
            return value
        own = torch.tensor(value if self.is_first else 0.0, device=self.device)
        return float(self.sum(own))

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._accelerator.wait_for_everyone()

    def tensorboard(self, name: str, folder: Path) -> Any:
        """Start accelerate's TensorBoard tracker, which writes into `folder / name`."""
        tracker = TensorBoardTracker(name, folder)
        tracker.start()
        return tracker

    @contextmanager
    def delay_sync(self, model: nn.Module, delay: bool) -> Iterator[None]:
        """Keep gradients local while a step accumulates more of them."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(not delay)
            yield
        elif delay and self.count > 1:
            with self._accelerator.no_sync(model):
                yield
        else:
            yield

    def close(self) -> None:
        """Leave the group, so that another run in this program can join one."""
        self._accelerator.end_training()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model itself, without the DDP wrapper."""
    return cast(nn.Module, model.module) if hasattr(model, "module") else model


def full_tensor(value: Tensor) -> Tensor:
    """Gather a tensor that processes may hold shards of; a plain one stays as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def decoder_layers(language: nn.Module) -> nn.ModuleList:
    """Return the module list that holds most of a language model's weights."""
    lists = [module for module in language.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda each: sum(p.numel() for p in each.parameters()))


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on a GPU or in the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
