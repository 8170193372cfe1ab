"""A training loop for the starter's encoders, in processes that do not wait for each other.

Workers change the same weights in shared memory without locks (Niu et al. 2011, "Hogwild"): threads
that wait for each other stand still where anything else is at work, and be it what makes the next
batch.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from recipes.starter.saving import Log, save_atomically
from recipes.starter.vision.orthogonal import KernelOptimizer, parameter_groups

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Phase:
    """A part of the training."""

    until: float
    """Share of all steps after which it ends."""
    side: int
    """Pixels of a picture."""
    counts: tuple[int, ...]
    """Examples per step of each kind that the task has."""


@dataclass(frozen=True)
class TrainingSchedule:
    """How long and how fast an encoder learns."""

    steps: int
    """Steps of each worker."""
    phases: tuple[Phase, ...]
    """What is shown when."""
    kernel_rate: float
    """Peak share of a kernel that a step may change."""
    learning_rate: float = 2.5e-3
    """Peak of AdamW's learning rate for all other weights."""
    weight_decay: float = 0.02
    """AdamW's decay, on matrices only."""
    average: float = 0.998
    """Decay of the running average of the weights; the average is what training gives."""
    workers: int = 2
    """Processes of one thread each that change the same weights."""
    seed: int = 5
    """Seed of every random choice."""


class TrainingTask(Protocol):
    """What is learned, and from what; it goes to every worker."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a step's examples are called in the log."""

    def batch(self, phase: Phase, rng: np.random.Generator) -> Any:
        """Examples of one step."""

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss, and how many examples of each kind are answered rightly (kinds,)."""


def rates(progress: float, schedule: TrainingSchedule) -> tuple[float, float]:
    """The kernels' rate and AdamW's: a short rise, then straight down to zero."""
    share = min(1.0, progress / 0.01 + 0.05) * (1 - progress)
    return schedule.kernel_rate * share, schedule.learning_rate * share


@contextmanager
def prefetched(make: Callable[[], Any], depth: int = 3) -> Iterator[Callable[[], Any]]:
    """What gives the next of what `make` makes, made ahead by a thread that ends with the context.

    A thread at work while its process ends can take the process down with it.
    """
    queue: Queue[Any] = Queue(depth)
    ended = Event()

    def work() -> None:
        while not ended.is_set():
            try:
                made = make()
            except BaseException as error:
                made = error
            while not ended.is_set():
                with suppress(Full):
                    queue.put(made, timeout=0.1)
                    break

    def following() -> Any:
        made = queue.get()
        if isinstance(made, BaseException):
            raise made
        return made

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield following
    finally:
        ended.set()
        thread.join()


class Shared:
    """What workers share: weights in shared memory, and the step that a resumed run begins with."""

    def __init__(self, model: nn.Module, schedule: TrainingSchedule) -> None:
        self.model = model
        self.average = torch.optim.swa_utils.AveragedModel(
            model,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
                schedule.average
            ),
            use_buffers=True,
        )
        self.first = 0
        model.share_memory()

    def __getstate__(self) -> dict[str, Any]:
        """What another worker gets: the average is the first one's alone."""
        return {"model": self.model, "first": self.first}

    def resume(self, checkpoint: Path, log: Log) -> None:
        """Go on from a checkpoint where there is one; momenta begin anew."""
        if not checkpoint.exists():
            return
        state = torch.load(checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.first = state["step"]
        log(f"resumed at step {self.first}")

    def save(self, checkpoint: Path, step: int) -> None:
        """Weights, their average and the step."""
        state: dict[str, Any] = {"model": self.model.state_dict(), "step": step}
        save_atomically(state | {"average": self.average.state_dict()}, checkpoint)


def work(
    rank: int,
    shared: Shared,
    task: TrainingTask,
    schedule: TrainingSchedule,
    checkpoint: Path,
    log: Log,
) -> None:
    """One worker: a flat loop. The first of them also averages, logs and saves.

    The others end when it does, however it ends.
    """
    parent = multiprocessing.parent_process() if rank else None
    torch.set_num_threads(1)
    model, chief = shared.model.train(), rank == 0
    kernel_optimizer = KernelOptimizer(p for p in model.parameters() if p.ndim == 4)
    rest = [p for p in model.parameters() if p.ndim < 4]
    optimizer = torch.optim.AdamW(parameter_groups(rest, schedule.weight_decay), betas=(0.9, 0.98))
    torch.manual_seed(schedule.seed + rank)
    rng = np.random.default_rng((schedule.seed, rank, shared.first))
    seen, right = torch.zeros(len(task.kinds)), torch.zeros(len(task.kinds))
    step, started = shared.first, time.monotonic()
    for phase in schedule.phases:
        last = round(phase.until * schedule.steps)
        if step >= last:
            continue
        with prefetched(partial(task.batch, phase, rng)) as following:
            while step < last:
                if parent and not parent.is_alive():
                    return
                loss, answered = task.loss(model, following())
                model.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                rate, optimizer.param_groups[0]["lr"] = rates(step / schedule.steps, schedule)
                optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
                kernel_optimizer.step(rate)
                optimizer.step()
                step += 1
                if not chief:
                    continue
                shared.average.update_parameters(model)
                seen, right = seen + torch.tensor(phase.counts), right + answered
                if step % 100 == 0 or step == schedule.steps:
                    shares = " ".join(
                        f"{kind} {share:.3f}"
                        for kind, share in zip(task.kinds, (right / seen).tolist(), strict=True)
                    )
                    pace = (time.monotonic() - started) / (step - shared.first)
                    log(
                        f"step {step}/{schedule.steps} side {phase.side} loss {loss.item():.3f} "
                        f"{shares} {pace:.2f} s/step"
                    )
                    seen, right = torch.zeros(len(task.kinds)), torch.zeros(len(task.kinds))
                    shared.save(checkpoint, step)


def train_async(
    model: Model, task: TrainingTask, schedule: TrainingSchedule, checkpoint: Path, log: Log
) -> Model:
    """Train with `schedule.workers` processes; returns the average of the weights.

    A killed run goes on from `checkpoint`, which is written every 100 steps.
    """
    model.to(memory_format=torch.channels_last)
    shared = Shared(model, schedule)
    shared.resume(checkpoint, log)
    run_workers((shared, task, schedule, checkpoint), schedule.workers, log)
    return cast(Model, shared.average.module).eval()


def run_workers(
    arguments: tuple[Shared, TrainingTask, TrainingSchedule, Path], count: int, log: Log
) -> None:
    """Run `work` here and in `count - 1` further processes; RuntimeError where one of them fails.

    They are new processes: a fork of one that has trained before cannot train.
    """
    context, threads = torch.multiprocessing.get_context("spawn"), torch.get_num_threads()
    others = [
        context.Process(target=work, args=(rank, *arguments, silent), daemon=True)
        for rank in range(1, count)
    ]
    try:
        for other in others:
            other.start()
        work(0, *arguments, log)
        for other in others:
            other.join()
    finally:
        torch.set_num_threads(threads)
        for other in others:
            other.kill()
    failed = [other.exitcode for other in others if other.exitcode]
    if failed:
        raise RuntimeError(f"a worker of an encoder's training ended with {failed[0]}")


def silent(text: str) -> None:
    """What all workers but the first log with."""
