"""Parts of training over tiny models: stages, records, and the model with its collator."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import QUESTION, RED
from regionqa.bundles.store import Bundle
from regionqa.data.records import Record, Turn
from regionqa.finetune.batches.collate import Collator
from regionqa.finetune.batches.dataset import sample_builder
from regionqa.finetune.batches.frozen import FrozenEncoders
from regionqa.finetune.batches.sampler import RecordStream, StepSampler
from regionqa.finetune.config import RegionPart, StageSettings
from regionqa.finetune.finish import read_modules
from regionqa.finetune.model import RegionLanguageModel, select_trainable
from regionqa.finetune.tracking import LogEntry, TrainingLog
from regionqa.finetune.trainer import StageRun
from regionqa.regions import Box, Region

CPU = torch.device("cpu")
STAGE = StageSettings(learning_rate=1e-3, batch=4, region=RegionPart.all)


class Ticks:
    """A clock that goes on by the same time whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self._seconds = seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


def make_stage_run(
    records: Sequence[Record], collator: Any, stage: StageSettings = STAGE, seed: int = 0
) -> StageRun:
    """Make a stage run over records, which are also its held-out records."""
    effective = stage.batch * stage.accumulate
    stream = RecordStream(records, stage.group, (seed, 1, 0))
    order = StepSampler(stream, None, effective, 0.5, seed)
    return StageRun("align", 1, stage, order, records, collator, 10, 10, Path("nowhere"))


def plain_record(number: int, image: int, *turns: tuple[str, str]) -> Record:
    """Make a record about one region."""
    answered = tuple(Turn(*turn) for turn in turns or ((QUESTION, RED),))
    region = Region(Box(number % 7, 2, 30, 40))
    return Record(Path(f"{image}.png"), (region,), answered, f"mine.jsonl:{number}")


def parts_of(
    bundle: Bundle, part: RegionPart = RegionPart.all
) -> tuple[RegionLanguageModel, Collator]:
    """Build the model of training and its collator."""
    parts = read_modules(bundle)
    encoders = FrozenEncoders(bundle.card, parts.vision, parts.region, CPU)
    frozen = part is RegionPart.projector
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    return model, Collator(sample_builder(bundle), encoders, frozen)


def unfrozen(model: RegionLanguageModel) -> RegionLanguageModel:
    """Make the weights of the second stage trainable."""
    stage = replace(STAGE, projector=True, language=True)
    assert len(select_trainable(model, stage)) > 10
    return model


def call_at_step(
    stage: str, step: int, act: Callable[[], object], patch: pytest.MonkeyPatch | None = None
) -> None:
    """Call a function as soon as a training step is logged; without `patch`, for good."""
    add = TrainingLog.add

    def add_and_act(self: TrainingLog, entry: LogEntry, steps: int) -> None:
        add(self, entry, steps)
        if (entry.stage, entry.step, entry.held_out) == (stage, step, False):
            act()

    (patch or pytest.MonkeyPatch()).setattr(TrainingLog, "add", add_and_act)
