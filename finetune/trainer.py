"""The training loop: the stages of a run, and the steps of a stage.

A step is a function of settings, seed and step number. So a stopped run continues exactly, and
several processes compute what one would with their batches together.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from regionqa.data.records import Record
from regionqa.errors import TrainingError
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.batches.collate import LabelledBatch
from regionqa.finetune.batches.sampler import BrokenImages, Collates, DrawnRecord
from regionqa.finetune.checkpoint import BestStep, TrainingProgress
from regionqa.finetune.config import StageSettings, TrainingPrecision
from regionqa.finetune.distributed import (
    ProcessGroup,
    decoder_layers,
    deterministic_kernels,
    full_tensor,
    unwrap,
)
from regionqa.finetune.model import (
    AnswerModel,
    learning_rate,
    make_optimizers,
    parameters_of,
    select_trainable,
)
from regionqa.finetune.schedule.control import StageControl, StageEnding
from regionqa.finetune.schedule.pace import RECENT, Clock, Pace, about
from regionqa.finetune.schedule.signals import StoppedError, StopReason, StopSignal
from regionqa.finetune.tracking import LogEntry, TrainingLog


class Sampler(Protocol):
    """The records of every step of a stage, as a function of its number."""

    def steps(self, epochs: float) -> int:
        """Return how many steps so many passes over the data take."""

    def step(self, step: int) -> list[DrawnRecord]:
        """Draw the records of one step, counted from 0."""


@dataclass(frozen=True)
class StageRun:
    """A stage with everything it trains on."""

    name: str
    number: int
    """1 for the first stage of the run."""
    settings: StageSettings
    sampler: "Sampler"
    held_out: Sequence[Record]
    collator: Collates[LabelledBatch]
    evaluate_every: int
    save_every: int
    folder: Path
    """Folder of the checkpoints."""
    spare: Sequence[Record] = ()
    broken: BrokenImages = field(default_factory=BrokenImages)
    """The broken images of the run; `spare` is trained on where a batch has no other."""
    teacher: AnswerModel | None = None
    """The base before training, where replayed records hold its own answers: these are learned by
    distillation, as distributions over tokens rather than as the one text."""
    control: StageControl | None = None
    """The plan of the stage, where its settings say no number of steps."""
    first_pass: int | None = None
    """Steps after which every record was read, and its features are cached; None: never."""
    clock: Clock = time.monotonic

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage, as planned at its start."""
        return self.steps_at(0)

    def steps_at(self, done: int) -> int:
        """Optimizer steps of the stage, as planned when `done` of them are finished."""
        if self.control:
            return self.control.plan.steps_at(done)
        return self.settings.steps or self.sampler.steps(self.settings.epochs or 1.0)


@dataclass(frozen=True)
class StageResult:
    """The outcome of the stages so far."""

    trained: tuple[str, ...]
    """Names of all weights that have changed."""
    seconds: float
    """Training time."""


def train_stages(
    runs: Sequence[StageRun],
    model: AnswerModel,
    processes: ProcessGroup,
    log: TrainingLog,
    stop: StopSignal,
    resumed: tuple[Path, TrainingProgress] | None = None,
    announce: Callable[[StageRun, TrainingProgress | None], None] = lambda run, progress: None,
) -> StageResult:
    """Train every stage that is not finished, in place.

    Args:
        runs: The stages in order.
        model: The model that trains.
        processes: The processes that train it together.
        log: Receives steps and evaluations.
        stop: Checked between steps.
        resumed: Checkpoint to continue from, of any of the stages.
        announce: Called before each stage, with its progress where it is resumed.

    Raises:
        StoppedError: `stop` asked for it.
        TrainingError: The loss is not finite, or a checkpoint cannot be written.
    """
    result, current = StageResult((), 0.0), None
    if resumed:
        result = StageResult(resumed[1].trained, resumed[1].seconds)
        current = next(run.number for run in runs if run.name == resumed[1].stage)
    for run in runs:
        if run.settings.gradient_checkpointing:
            enable_gradient_checkpointing(model.decoder)
        if current and run.number < current:
            continue  # the checkpoint of a later stage holds its weights
        checkpoint = resumed if run.number == current else None
        announce(run, checkpoint[1] if checkpoint else None)
        with deterministic_kernels(processes.device):
            result = StageTrainer(run, model, processes, log, result, checkpoint).train(stop)
    return result


def enable_gradient_checkpointing(language: PreTrainedModel) -> None:
    """Recompute a language model's activations in the backward pass instead of keeping them."""
    # newer releases of transformers 5 renamed the method
    old = language.gradient_checkpointing_enable
    getattr(language, "activation_checkpointing_enable", old)({"use_reentrant": False})


class StageTrainer:
    """The loop of one stage, over a model that trains in place."""

    def __init__(
        self,
        run: StageRun,
        model: AnswerModel,
        processes: ProcessGroup,
        log: TrainingLog,
        before: StageResult,
        resumed: tuple[Path, TrainingProgress] | None = None,
    ) -> None:
        """Prepare model and optimizers, and load the checkpoint of a resumed stage.

        before: the result of earlier stages, or of the part of this one that is resumed.
        """
        self._run, self._processes, self._log = run, processes, log
        names = [name for name, _ in select_trainable(model, run.settings)]
        self._trained = tuple(sorted({*before.trained, *names}))
        self._language = model.decoder
        self._bf16 = computes_in_bf16(run.settings.precision, processes.device)
        self._model = processes.spread(model, decoder_layers(model.decoder), bf16=self._bf16)
        self._optimizers = make_optimizers(model, run.settings)
        # read from the optimizers: sharding replaces the parameters of the model
        self._parameters = [p for each in self._optimizers for p in parameters_of(each)]
        self._first, self._best = 0, None
        if resumed:
            checkpoints.load_checkpoint(*resumed, unwrap(self._model), self._optimizers)
            self._first, self._best = resumed[1].step, resumed[1].best
        self._started = run.clock() - before.seconds
        self._pace = Pace(run.clock, run.first_pass, run.evaluate_every)

    def train(self, stop: StopSignal) -> StageResult:
        """Train until the stage ends; raises as `train_stages` does."""
        run, done = self._run, self._first
        self._log.start_stage(run.name, done, run.steps_at(done))
        if done == 0:
            self._evaluate(0)
        else:
            self._review(done)
        while (ending := self._ending(done)) is None:
            self._train_step(done)
            done += 1
            self._review(done)
            due = done % run.evaluate_every == 0 or self._ending(done) is not None
            improved = due and self._evaluate(done)
            ends = self._ending(done) is not None
            reason = stop.reason(self._processes)
            if ends or improved or done % run.save_every == 0 or reason is not StopReason.none:
                path = self._save(done)
                if reason is not StopReason.none and not ends:
                    raise StoppedError(
                        reason,
                        f"at step {done} of {run.steps_at(done)} of {run.name}; saved in {path}; "
                        "continue with the same command and --resume",
                    )
        if run.control:
            self._keep_best(run.control, done, ending)
        return StageResult(self._trained, self._seconds())

    def _ending(self, done: int) -> StageEnding | None:
        """Return why the stage ends after so many steps; None where it goes on."""
        if done >= self._run.steps_at(done):
            return StageEnding.steps
        control = self._run.control
        if control is None:
            return None
        return control.ending(done, self._best.step if self._best else None)

    def _review(self, done: int) -> None:
        """Say the time that is left, and let the plan follow it."""
        run, pace, steps = self._run, self._pace, self._run.steps_at(done)
        if run.control:
            run.control.review(done, self._seconds(), pace, self._processes)
        if pace.measured == RECENT and done < steps:
            left = about(pace.seconds_left(done, run.steps_at(done)))
            self._log.say(f"{run.name}: {left} left")

    def _keep_best(self, control: StageControl, done: int, ending: StageEnding) -> None:
        """Load the weights of the step with the lowest held-out loss, and note the stage's end."""
        best = self._best
        if best and best.step != done:
            path = checkpoints.path_of(self._run.folder, self._run.number, best.step)
            checkpoints.load_weights(path, self._trained, unwrap(self._model))
        control.finish(done, best.step if best else done, ending)
        self._log.say(f"{self._run.name}: {control.describe_end(best.loss if best else None)}")

    def _train_step(self, step: int) -> None:
        """Take one optimizer step and log it; step counts from 0."""
        run = self._run
        self._language.train()  # enables dropout and gradient checkpointing
        rate = learning_rate(run.settings, step, run.steps_at(step))
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:  # loading a checkpoint replaces the groups
                group["lr"] = rate * group["share"]
        started = run.clock()
        batches = own_batches(run, step, self._processes)
        collated = run.clock()
        totals = forward_and_backward(run, self._model, batches, self._processes, bf16=self._bf16)
        norm = nn.utils.clip_grad_norm_(self._parameters, run.settings.clip)
        check_finite(run, step, float(totals[0]), full_tensor(norm))
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._pace.add_step(started, collated, run.clock())
        loss, accuracy = loss_and_accuracy(totals)
        tokens, seconds = int(totals[1]), round(self._seconds(), 1)
        entry = LogEntry(run.name, step + 1, loss, accuracy, rate, tokens, seconds)
        self._log.add(entry, run.steps_at(step))

    def _evaluate(self, step: int) -> bool:
        """Log loss and accuracy on the held-out records, if there are any.

        Returns:
            Whether the stage has a plan and this is its lowest loss so far.
        """
        run = self._run
        if not run.held_out:
            return False
        self._language.eval()
        started = run.clock()
        loss, accuracy = evaluate_held_out(
            run, unwrap(self._model), self._processes, bf16=self._bf16
        )
        self._pace.add_evaluation(started, run.clock())
        entry = LogEntry(run.name, step, loss, accuracy, held_out=True)
        self._log.add(entry, run.steps_at(step))
        if run.control is None or step == 0 or (self._best and self._best.loss <= loss):
            return False
        self._best = BestStep(step, loss)
        return True

    def _save(self, step: int) -> Path:
        """Write a checkpoint after so many steps."""
        run = self._run
        progress = TrainingProgress(run.name, step, self._trained, self._seconds(), self._best)
        return checkpoints.save_checkpoint(
            run.folder, run.number, progress, unwrap(self._model), self._optimizers
        )

    def _seconds(self) -> float:
        """Training time so far, earlier stages included."""
        return self._run.clock() - self._started


def forward_and_backward(
    run: StageRun,
    model: nn.Module,
    batches: Sequence[LabelledBatch],
    processes: ProcessGroup,
    *,
    bf16: bool,
) -> Tensor:
    """Compute a step's gradients, of the mean loss over all its tokens.

    batches: this process's share of the step.

    Returns:
        The summed metrics (5,) of all processes, in the order of `BatchMetrics`.
    """
    own_tokens = sum(batch.answer_tokens for batch in batches)
    tokens = processes.sum(torch.tensor(own_tokens, device=processes.device))
    totals = torch.zeros(5, dtype=torch.float64, device=processes.device)
    for position, batch in enumerate(batches, start=1):
        batch = batch.to(processes.device)
        with (
            processes.delay_sync(model, position < len(batches)),
            torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16),
        ):
            result = model(batch, teacher_logits(run, batch))
            # gradients are averaged over processes; `tokens` is the sum over them
            (result.loss / tokens * processes.count).backward()
        totals += result.detached()
    return processes.sum(totals)


@torch.no_grad()
def teacher_logits(run: StageRun, batch: LabelledBatch) -> Tensor | None:
    """Compute the base's logits (A, V) at every answer token; None where nothing is distilled."""
    if run.teacher is None or not bool(batch.distilled.any()):
        return None
    return run.teacher.logits(batch)


def own_batches(run: StageRun, step: int, processes: ProcessGroup) -> list[LabelledBatch]:
    """Collate this process's share of a step, one batch per forward pass."""
    settings = run.settings
    drawn = run.sampler.step(step)
    share = len(drawn) // processes.count  # the effective batch is a multiple of the processes
    own = drawn[processes.rank * share : (processes.rank + 1) * share]
    parts = [own[start : start + settings.batch] for start in range(0, len(own), settings.batch)]
    return [own_batch(run, part) for part in parts]


def own_batch(run: StageRun, part: Sequence[DrawnRecord]) -> LabelledBatch:
    """Collate the records of one forward pass, with the stage's jitter and noise."""
    settings, seeds = run.settings, [each.seed for each in part]
    records = [each.record for each in part]
    batch = run.broken.batch(run.collator, records, run.spare, settings.box_noise, seeds)
    if settings.changes_features:
        batch = batch.with_changed_features(settings, seeds[0])
    distilled = [run.teacher is not None and each.replayed for each in part]
    return replace(batch, distilled=torch.tensor(distilled))


@torch.no_grad()
def evaluate_held_out(
    run: StageRun, model: nn.Module, processes: ProcessGroup, *, bf16: bool
) -> tuple[float, float]:
    """Compute the mean loss per token and the accuracy on held-out records."""
    size, count = run.settings.batch, len(run.held_out)
    passes = math.ceil(count / (size * processes.count))
    totals = torch.zeros(5, dtype=torch.float64, device=processes.device)
    for index in range(passes):
        start = (index * processes.count + processes.rank) * size
        part = run.held_out[start : start + size]
        # a process without records runs one for nothing: sharded weights need every process
        batch = run.broken.batch(run.collator, part or run.held_out[:1], run.held_out)
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            result = model(batch.to(processes.device)).detached()
        totals += result if part else 0 * result
    return loss_and_accuracy(processes.sum(totals))


def loss_and_accuracy(totals: Tensor) -> tuple[float, float]:
    """Compute mean loss per token and share of right answers from summed `BatchMetrics` (5,)."""
    loss, tokens, _, answers, right_answers = totals.tolist()
    return loss / tokens, right_answers / answers


def computes_in_bf16(precision: TrainingPrecision, device: torch.device) -> bool:
    """Return whether matrix products run in bf16."""
    if precision is TrainingPrecision.auto:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision is TrainingPrecision.bf16


def check_finite(run: StageRun, step: int, loss: float, norm: Tensor) -> None:
    """Raise TrainingError where loss or gradient is not finite, before any weight changes."""
    if math.isfinite(loss) and bool(torch.isfinite(norm)):
        return
    last = checkpoints.newest(run.folder)
    kept = f"the last good checkpoint is {last[0]}" if last else "there is no checkpoint yet"
    what = "the loss" if not math.isfinite(loss) else "the gradient"
    raise TrainingError(
        f"{what} is not finite at step {step + 1} of {run.name}; {kept}; start again with a lower "
        "--learning-rate, or check the data with: regionqa data check"
    )
