"""Training of the starter's region encoder on naming boxes by their cuts.

The trunk begins as a copy of the vision encoder's, which photos taught before. Workers change the
same weights in shared memory without waiting for each other (Niu et al. 2011, "Hogwild"): on a
machine with other work to do, threads that wait for each other stand still most of the time. It
does not know about language, bundles or ONNX.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from regionqa.export.vision import ResNetVision
from regionqa.finetune.cutting import CutBatch, CutSource, opened, shorter_sides
from regionqa.finetune.kernels import KernelOptimizer
from regionqa.finetune.namer import Namer
from regionqa.finetune.pictures import PhotoSet
from regionqa.finetune.pretrain import Log, normalise, parameter_groups, save_atomically


@dataclass(frozen=True)
class Phase:
    """A part of the training."""

    until: float
    """Share of all steps after which it ends."""
    side: int
    """Pixels of a cut."""
    frozen: int
    """How many of the trunk's stages, from the first on and with the stem, do not learn."""


@dataclass(frozen=True)
class SightSettings:
    """How long and how fast the region encoder learns."""

    steps: int = 1160
    """Steps of each worker."""
    workers: int = 2
    """Processes of one thread each that change the same weights."""
    batch: int = 96
    """Boxes per step; each is two cuts."""
    phases: tuple[Phase, ...] = (Phase(0.13, 80, 0), Phase(1.0, 64, 2))
    """The shallow layers, which come trained, learn at the beginning only."""
    kernel_rate: float = 0.02
    """Peak share of a kernel that a step may change."""
    learning_rate: float = 2.5e-3
    """Peak of AdamW's learning rate for all other weights."""
    weight_decay: float = 0.02
    """AdamW's decay, on matrices only."""
    settle: float = 0.02
    """Share of the steps in which only the new layers learn; the kernels' rate rises after it."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    around: float = 6.0
    """Weight of saying what the wide cut shows."""
    dropout: float = 0.2
    """Share of what is found that the classifier does not see."""
    average: float = 0.98
    """Decay of the running average of the weights; the average is what training gives."""
    seed: int = 5
    """Seed of every random choice."""


SIGHT = SightSettings()


def begin(namer: Namer, vision: ResNetVision) -> None:
    """Copy the vision encoder's trunk; the mark of the box begins without effect."""
    trunk = namer.region.trunk
    trunk.stages.load_state_dict(vision.stages.state_dict())
    stem = {name: value.clone() for name, value in vision.stem.state_dict().items()}
    stem["0.weight"] = torch.cat(
        [stem["0.weight"], torch.zeros_like(stem["0.weight"][:, :1])], dim=1
    )
    trunk.stem.load_state_dict(stem)


def freeze(namer: Namer, stages: int) -> None:
    """Train all but the stem and the first `stages` stages; with none, all of it."""
    namer.train().requires_grad_(True)
    if stages:
        trunk = namer.region.trunk
        for part in (trunk.stem, *trunk.stages[:stages]):
            part.eval().requires_grad_(False)


def rates(progress: float, settings: SightSettings) -> tuple[float, float]:
    """The kernels' rate and AdamW's: a short rise, then straight down to zero."""
    falling = 1 - progress
    warm = min(1.0, progress / 0.01 + 0.05)
    ready = min(1.0, max(0.0, progress / settings.settle / 2 - 0.5)) if settings.settle else 1.0
    return settings.kernel_rate * warm * ready * falling, settings.learning_rate * warm * falling


def loss_of(namer: Namer, batch: CutBatch, settings: SightSettings) -> tuple[Tensor, Tensor]:
    """The loss, and how many boxes are named rightly."""
    with torch.autocast("cpu", torch.bfloat16):
        names, around = namer(batch.close, batch.wide, batch.places, settings.dropout)
    naming = F.cross_entropy(names.float(), batch.labels, label_smoothing=settings.label_smoothing)
    showing = F.binary_cross_entropy_with_logits(around.float(), batch.shown)
    return naming + settings.around * showing, (names.argmax(1) == batch.labels).sum()


def prefetched(make: Callable[[], CutBatch], depth: int = 3) -> Iterator[CutBatch]:
    """What `make` gives, made ahead by a thread."""
    queue: Queue[CutBatch] = Queue(depth)

    def work() -> None:
        while True:
            queue.put(make())

    Thread(target=work, daemon=True).start()
    while True:
        yield queue.get()


class Shared:
    """What workers share: weights in shared memory, and the step that a resumed run begins with."""

    def __init__(self, namer: Namer, settings: SightSettings) -> None:
        self.namer = namer
        self.average = torch.optim.swa_utils.AveragedModel(
            namer,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
                settings.average
            ),
            use_buffers=True,
        )
        self.first = 0
        namer.share_memory()

    def __getstate__(self) -> dict[str, Any]:
        """What another worker gets: the average is the first one's alone."""
        return {"namer": self.namer, "first": self.first}

    def resume(self, checkpoint: Path, log: Log) -> None:
        """Go on from a checkpoint where there is one; momenta begin anew."""
        if not checkpoint.exists():
            return
        state = torch.load(checkpoint, weights_only=True)
        self.namer.load_state_dict(state["namer"])
        self.average.load_state_dict(state["average"])
        self.first = state["step"]
        log(f"resumed at step {self.first}")

    def save(self, checkpoint: Path, step: int) -> None:
        """Weights, their average and the step."""
        state: dict[str, Any] = {"namer": self.namer.state_dict(), "step": step}
        save_atomically(state | {"average": self.average.state_dict()}, checkpoint)


def work(
    rank: int,
    shared: Shared,
    source: CutSource,
    settings: SightSettings,
    checkpoint: Path,
    log: Log,
) -> None:
    """One worker: a flat loop. The first of them also averages, logs and saves."""
    torch.set_num_threads(1)
    namer, chief = shared.namer, rank == 0
    torch.manual_seed(settings.seed + rank)
    rng = np.random.default_rng((settings.seed, rank, shared.first))
    seen, right, started = 0, 0, time.monotonic()
    step = shared.first
    for phase in settings.phases:
        last = round(phase.until * settings.steps)
        if step >= last:
            continue
        freeze(namer, phase.frozen)
        kernels = [p for p in namer.parameters() if p.ndim == 4 and p.shape[1] > 4]
        others = {id(p) for p in kernels}
        kernel_optimizer = KernelOptimizer(p for p in kernels if p.requires_grad)
        rest = [p for p in namer.parameters() if id(p) not in others and p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameter_groups(rest, settings.weight_decay), betas=(0.9, 0.98)
        )
        batches = prefetched(partial(source.batch, settings.batch, phase.side, rng))
        while step < last:
            loss, named = loss_of(namer, next(batches), settings)
            namer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            rate, optimizer.param_groups[0]["lr"] = rates(step / settings.steps, settings)
            optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"]
            kernel_optimizer.step(rate)
            optimizer.step()
            step += 1
            if not chief:
                continue
            shared.average.update_parameters(namer)
            seen, right = seen + settings.batch, right + int(named)
            if step % 100 == 0 or step == settings.steps:
                pace = (time.monotonic() - started) / (step - shared.first)
                log(
                    f"step {step}/{settings.steps} side {phase.side} loss {loss.item():.3f} "
                    f"accuracy {right / seen:.3f} {pace:.2f} s/step"
                )
                seen, right = 0, 0
                shared.save(checkpoint, step)


def train_sight(
    namer: Namer,
    source: CutSource,
    settings: SightSettings,
    checkpoint: Path,
    log: Log,
) -> Namer:
    """Train with `settings.workers` processes; returns the average of the weights.

    A killed run goes on from `checkpoint`, which is written every 100 steps.
    """
    namer.to(memory_format=torch.channels_last)
    shared = Shared(namer, settings)
    shared.resume(checkpoint, log)
    run_workers((shared, source, settings, checkpoint), settings.workers, log)
    trained = shared.average.module
    assert isinstance(trained, Namer)
    return trained.eval()


def run_workers(
    arguments: tuple[Shared, CutSource, SightSettings, Path], count: int, log: Log
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
        raise RuntimeError(f"a worker of the region encoder's training ended with {failed[0]}")


def silent(text: str) -> None:
    """What all workers but the first log with."""


@torch.no_grad()
def named_boxes(namer: Namer, photos: PhotoSet, smallest: float = 32.0) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of the photos' boxes of at least `smallest` pixels.

    The encoder sees the photos as they are, of at most 320 pixels.
    """
    namer.eval()
    logits, labels = [], []
    for photo in photos.photos:
        rows = np.flatnonzero(shorter_sides(photo.boxes) >= smallest)
        if len(rows):
            pixels = normalise(np.array(opened(photo))[np.newaxis])
            boxes = torch.from_numpy(photo.boxes[rows] / photo.scale)
            index = torch.zeros(len(rows), dtype=torch.int64)
            logits.append(namer.logits(namer.region.region_vectors([pixels], boxes, index)))
            labels.append(torch.from_numpy(photo.labels[rows]))
    return torch.cat(logits), torch.cat(labels)


def scores(logits: Tensor, labels: Tensor, names: tuple[str, ...]) -> str:
    """Shares of boxes named rightly: of all, of all but persons, and the mean over classes."""
    right = (logits.argmax(1) == labels).float()
    others = right[labels != names.index("person")]
    per_class = torch.stack([right[labels == label].mean() for label in set(labels.tolist())])
    return (
        f"{right.mean():.3f} of {len(labels)} boxes, {others.mean():.3f} of the {len(others)} that "
        f"are no person, mean over classes {per_class.mean():.3f}"
    )


def balanced(logits: Tensor, counts: Tensor, strength: float) -> Tensor:
    """Logits with `strength` times the logarithm of each class's share added."""
    return logits + strength * (counts / counts.sum()).log().float()
