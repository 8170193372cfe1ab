"""The stages of a run one after the other, and one stage as one flat loop.

What a step computes follows from the settings, the seed and the step's number, so a run that was
stopped goes on exactly, and several processes compute what one would with their batches together.
"""

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regionqa.data.records import Record
from regionqa.errors import RegionQAError, TrainingError
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.checkpoint import TrainingProgress
from regionqa.finetune.collate import Batch, Collator
from regionqa.finetune.config import StageSettings, TrainingPrecision
from regionqa.finetune.distributed import ProcessGroup, decoder_layers, plain, whole
from regionqa.finetune.model import (
    RegionLanguageModel,
    choose_what_trains,
    learning_rate,
    make_optimizers,
    parameters_of,
)
from regionqa.finetune.sampler import DrawnRecord
from regionqa.finetune.tracking import LogEntry, TrainingLog


class StopReason(IntEnum):
    """Why a run stops; a larger one wins where processes differ."""

    none = 0
    time = 1
    interrupt = 2
    terminate = 3


TOLD = {
    StopReason.time: ("the time is up", 3),
    StopReason.interrupt: ("interrupted", 130),
    StopReason.terminate: ("told to stop (SIGTERM)", 143),
}
"""What the user is told, and the exit status: the shell's own for signals, 3 for not finished."""


class StoppedError(RegionQAError):
    """A run stopped before its end, after it had saved where it stood."""

    def __init__(self, reason: StopReason, text: str) -> None:
        words, self.exit_status = TOLD[reason]
        super().__init__(f"{words} {text}")


class StopSignal:
    """Notes signals and the time, for the loop to ask between steps. A context manager.

    A second Ctrl-C ends the program at once.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._reason = StopReason.none
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._reason is StopReason.interrupt and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = StopReason.interrupt if number == signal.SIGINT else StopReason.terminate

    def reason(self, processes: ProcessGroup) -> StopReason:
        """Why to stop now, the same in every process; all must ask."""
        own = self._reason
        if own is StopReason.none and self._deadline and time.monotonic() > self._deadline:
            own = StopReason.time
        if processes.count == 1:
            return own
        counts = torch.zeros(len(StopReason), device=processes.device)
        counts[own] = 1
        counts = processes.sum(counts)
        return StopReason(int(counts.nonzero().max()))


class Sampler(Protocol):
    """What every step of a stage takes, as a function of its number."""

    def steps(self, epochs: float) -> int:
        """Steps that so many passes over the data take."""

    def step(self, step: int) -> list[DrawnRecord]:
        """The records of one step."""


@dataclass(frozen=True)
class StageRun:
    """Everything one stage needs."""

    name: str
    number: int
    """1 for the first stage of the run."""
    settings: StageSettings
    order: "Sampler"
    held_out: Sequence[Record]
    collator: Collator
    evaluate_every: int
    save_every: int
    folder: Path
    """Where checkpoints go."""
    teacher: RegionLanguageModel | None = None
    """The base as it was, where replayed records are its own answers: then they are learned as it
    gives them, every word with its probability, and not as the one answer written down."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.settings.steps or self.order.steps(self.settings.epochs)


@dataclass(frozen=True)
class StageResult:
    """What a finished stage leaves."""

    trained: tuple[str, ...]
    """Names of all weights changed so far."""
    seconds: float
    """Training time so far, earlier stages included."""


def train_stages(
    runs: Sequence[StageRun],
    model: RegionLanguageModel,
    processes: ProcessGroup,
    journal: TrainingLog,
    watch: StopSignal,
    resumed: tuple[Path, TrainingProgress] | None = None,
    announce: Callable[[StageRun, TrainingProgress | None], None] = lambda run, here: None,
) -> StageResult:
    """Train every stage that is not done, in place. Raises as `train_stage` does.

    resumed: the checkpoint to go on from, of any of the stages. announce: is called before a stage
    starts, with where it stood if it is gone on with.
    """
    result, stage = StageResult((), 0.0), None
    if resumed:
        result = StageResult(resumed[1].trained, resumed[1].seconds)
        stage = next(run.number for run in runs if run.name == resumed[1].stage)
    for run in runs:
        if run.settings.gradient_checkpointing:
            save_memory(model.language)
        if stage and run.number < stage:
            continue  # the checkpoint of a later stage holds what this one did
        here = resumed if run.number == stage else None
        announce(run, here[1] if here else None)
        result = train_stage(run, model, processes, journal, watch, result, here)
    return result


def save_memory(language: PreTrainedModel) -> None:
    """Let a language model compute its activations again instead of keeping them."""
    # transformers 5 renamed it on the way
    old = language.gradient_checkpointing_enable
    getattr(language, "activation_checkpointing_enable", old)({"use_reentrant": False})


def train_stage(
    run: StageRun,
    model: RegionLanguageModel,
    processes: ProcessGroup,
    journal: TrainingLog,
    watch: StopSignal,
    before: StageResult,
    resumed: tuple[Path, TrainingProgress] | None = None,
) -> StageResult:
    """Train in place. Raises StoppedError where told to stop, TrainingError where it cannot go on.

    before: what earlier stages, or the part of this one that is resumed, have left. resumed: the
    checkpoint of this stage to go on from.
    """
    settings, steps = run.settings, run.steps
    names = [name for name, _ in choose_what_trains(model, settings)]
    trained = tuple(sorted({*before.trained, *names}))
    bf16 = computes_in_bf16(settings.precision, processes.device)
    spread = processes.spread(model, decoder_layers(model.language), bf16=bf16)
    optimizers = make_optimizers(model, settings)
    # not those of before, in whose place sharding has put its own
    parameters = [p for optimizer in optimizers for p in parameters_of(optimizer)]
    first = 0
    if resumed:
        checkpoints.load_checkpoint(*resumed, plain(spread), optimizers)
        first = resumed[1].step
    journal.start_stage(run.name, first, steps)
    started = time.monotonic() - before.seconds

    def measure(step: int) -> None:
        if run.held_out:
            model.language.eval()
            loss, accuracy = evaluate_held_out(run, plain(spread), processes, bf16=bf16)
            journal.add(LogEntry(run.name, step, loss, accuracy, held_out=True), steps)

    def save(step: int) -> Path:
        progress = TrainingProgress(run.name, step, trained, time.monotonic() - started)
        return checkpoints.save_checkpoint(
            run.folder, run.number, progress, plain(spread), optimizers
        )

    if first == 0:
        measure(0)
    for step in range(first, steps):
        model.language.train()  # or it neither drops out nor computes activations again
        rate = learning_rate(settings, step, steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:  # a checkpoint brings its own groups
                group["lr"] = rate * group["share"]
        tally = forward_and_backward(run, spread, step, processes, bf16=bf16)
        norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
        check_finite(run, step, float(tally[0]), whole(norm))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss, accuracy = float(tally[0] / tally[1]), float(tally[4] / tally[3])
        elapsed = round(time.monotonic() - started, 1)
        done = step + 1
        journal.add(LogEntry(run.name, done, loss, accuracy, rate, int(tally[1]), elapsed), steps)
        if done % run.evaluate_every == 0 or done == steps:
            measure(done)
        reason = watch.reason(processes)
        if done % run.save_every == 0 or done == steps or reason is not StopReason.none:
            path = save(done)
            if reason is not StopReason.none and done < steps:
                raise StoppedError(
                    reason,
                    f"at step {done} of {steps} of {run.name}; saved in {path}; "
                    "the same command with --resume goes on",
                )
    return StageResult(trained, time.monotonic() - started)


def forward_and_backward(
    run: StageRun, model: nn.Module, step: int, processes: ProcessGroup, *, bf16: bool
) -> Tensor:
    """Leave a step's gradients in the model; what it came to, over all processes (5,)."""
    batches = own_batches(run, step, processes)
    own_tokens = sum(batch.answer_tokens for batch in batches)
    tokens = processes.sum(torch.tensor(own_tokens, device=processes.device))
    tally = torch.zeros(5, dtype=torch.float64, device=processes.device)
    for position, batch in enumerate(batches, start=1):
        batch = batch.to(processes.device)
        with (
            processes.gradients_stay(model, position < len(batches)),
            torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16),
        ):
            result = model(batch, teacher_logits(run, batch))
            # processes average their gradients; the mean is over all their tokens together
            (result.loss / tokens * processes.count).backward()
        tally += result.detached()
    return processes.sum(tally)


@torch.no_grad()
def teacher_logits(run: StageRun, batch: Batch) -> Tensor | None:
    """What the base says at every learned position (A, V), where a batch rehearses."""
    if run.teacher is None or not bool(batch.taught.any()):
        return None
    return run.teacher.logits(batch)


def own_batches(run: StageRun, step: int, processes: ProcessGroup) -> list[Batch]:
    """This process's share of a step, one batch per forward pass."""
    settings = run.settings
    everything = run.order.step(step)
    share = len(everything) // processes.count  # the effective batch is a multiple of the processes
    own = everything[processes.rank * share : (processes.rank + 1) * share]
    parts = [own[start : start + settings.batch] for start in range(0, len(own), settings.batch)]
    return [
        replace(
            run.collator.batch(
                [drawn.record for drawn in part],
                settings.box_noise,
                [drawn.seed for drawn in part],
            ),
            taught=torch.tensor([run.teacher is not None and drawn.replayed for drawn in part]),
        )
        for part in parts
    ]


@torch.no_grad()
def evaluate_held_out(
    run: StageRun, model: nn.Module, processes: ProcessGroup, *, bf16: bool
) -> tuple[float, float]:
    """Mean loss a token, and share of answers right, on held-out records."""
    size, count = run.settings.batch, len(run.held_out)
    passes = math.ceil(count / (size * processes.count))
    tally = torch.zeros(5, dtype=torch.float64, device=processes.device)
    for index in range(passes):
        start = (index * processes.count + processes.rank) * size
        part = run.held_out[start : start + size]
        # a process without a share goes along with any record: sharded weights need all of them
        batch = run.collator.batch(part or run.held_out[:1]).to(processes.device)
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            result = model(batch).detached()
        tally += result if part else 0 * result
    tally = processes.sum(tally)
    return float(tally[0] / tally[1]), float(tally[4] / tally[3])


def computes_in_bf16(precision: TrainingPrecision, device: torch.device) -> bool:
    """Whether matrix products run in bf16."""
    if precision is TrainingPrecision.auto:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision is TrainingPrecision.bf16


def check_finite(run: StageRun, step: int, loss: float, norm: Tensor) -> None:
    """TrainingError where the loss or its gradient is no number; nothing was changed by it."""
    if math.isfinite(loss) and bool(torch.isfinite(norm)):
        return
    last = checkpoints.newest(run.folder)
    kept = f"the last good checkpoint is {last[0]}" if last else "there is no checkpoint yet"
    what = "the loss" if not math.isfinite(loss) else "the gradient"
    raise TrainingError(
        f"{what} is no finite number at step {step + 1} of {run.name}; {kept}; start again with a "
        "lower --learning-rate, or look at the data with: regionqa data check"
    )
