"""`regionqa finetune`, top to bottom: settings + base bundle -> align -> instruct -> bundle.

OUT/training holds settings, log, curves and, while the run lasts, checkpoints.
"""

import shutil
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from regionqa.bundles.card import ModelCard
from regionqa.bundles.store import CARD, Bundle, find_bundle, open_bundle
from regionqa.data.records import Record
from regionqa.errors import TrainingError, UsageError
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.checkpoint import TrainingProgress, keep_settings
from regionqa.finetune.collate import Collator, FrozenEncoders
from regionqa.finetune.config import (
    SETTINGS,
    TRAINING,
    FinetuneSettings,
    RegionPart,
    StageSettings,
    without_none,
)
from regionqa.finetune.dataset import RunData, Say, read_run_data, sample_maker
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.finish import (
    BundleModules,
    accuracy_facts,
    ask_held_out,
    changed_weights,
    describe_run,
    held_out_questions,
    merge_weights,
    read_modules,
    recalibrate,
    update_card,
    write_result,
)
from regionqa.finetune.model import RegionLanguageModel, add_lora
from regionqa.finetune.rehearsal import with_rehearsal
from regionqa.finetune.sampler import RecordStream, StepSampler
from regionqa.finetune.tracking import LogEntry, TrainingLog, forget_after, read_log
from regionqa.finetune.trainer import StageRun, StopSignal, train_stages

CHECKPOINTS, REHEARSAL = "checkpoints", "rehearsal.jsonl"
REGION_ENCODER = "region encoder"
"""What cards call it among their untrained parts."""


@dataclass(frozen=True)
class TrainingRun:
    """What stays the same from the first step to the result."""

    settings: FinetuneSettings
    base: Bundle
    data: RunData
    out: Path
    processes: ProcessGroup
    journal: TrainingLog

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.out / TRAINING / CHECKPOINTS

    @property
    def stages(self) -> list[tuple[str, StageSettings]]:
        """The stages that have something to train, in order."""
        carried = self.base.card.prompt.takes_features
        names = [name for name in self.settings.run if carried or name != "align"]
        return [
            (name, resolved(getattr(self.settings.stages, name), self.base.card)) for name in names
        ]


def resolved(settings: StageSettings, card: ModelCard) -> StageSettings:
    """The stage with `region = "auto"` decided for a base."""
    if settings.region is not RegionPart.auto:
        return settings
    reads_levels = card.region is not None and card.region.image is None
    whole = reads_levels and REGION_ENCODER in card.untrained
    return replace(settings, region=RegionPart.all if whole else RegionPart.carrier)


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    shard: bool = False,
    max_minutes: float | None = None,
    quiet: bool = False,
) -> Bundle | None:
    """Train, and write the bundle into `out`.

    UsageError where `out` holds something else, or the settings contradict the run to be resumed;
    DataError for bad data, before anything is computed; StoppedError and TrainingError as of
    `train_stage`. A run that is finished is given back as it is. None in all processes but the
    first, which writes the bundle.
    """
    check_place(out, resume=resume)
    if (out / CARD).is_file() and not (out / TRAINING / CHECKPOINTS).exists():
        return open_bundle(out)  # checkpoints go last: with them it may be half described
    processes = ProcessGroup(device, shard=shard)
    training = out / TRAINING
    talks = processes.is_first and not quiet

    def say(text: str) -> None:
        if talks:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 (before there is a journal)

    try:
        base = find_bundle(settings.model)
        if settings.run == ("align",) and not base.card.prompt.takes_features:
            raise UsageError(
                f"{base.card.name} is told of regions in words, if at all: there is nothing to "
                "align; choose --stage instruct"
            )
        data = read_run_data(settings, base, say)
        processes.wait()
        if processes.is_first:
            keep_settings(training / SETTINGS, settings, base, data.files, resume=resume)
        processes.wait()
        data = with_rehearsal(settings, base, data, training / REHEARSAL, processes, say)
        resumed = checkpoints.newest(training / CHECKPOINTS)
        if processes.is_first:
            stage, step = (resumed[1].stage, resumed[1].step) if resumed else (settings.run[0], -1)
            forget_after(training, settings.run[: settings.run.index(stage)], stage, step)
        with (
            StopSignal(max_minutes) as watch,
            TrainingLog(training, writes=processes.is_first, quiet=quiet) as journal,
        ):
            run = TrainingRun(settings, base, data, out, processes, journal)
            weights, trained = run_stages(run, watch, resumed)
        return finish(run, weights, trained) if processes.is_first else None
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise TrainingError(
                "out of memory; lower --batch (and raise --accumulate by as much), or add "
                "--gradient-checkpointing or --lora 16; then go on with --resume"
            ) from error
        raise
    finally:
        processes.close()


def check_place(out: Path, *, resume: bool) -> None:
    """UsageError where `out` is in use for something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / TRAINING / SETTINGS).is_file():
        raise UsageError(f"{out}: exists and holds no training run; name another folder")
    if not resume:
        state = "a finished run" if (out / CARD).is_file() else "a run that was stopped"
        raise UsageError(f"{out}: holds {state}; go on with --resume, or name another folder")


def run_stages(
    run: TrainingRun, watch: StopSignal, resumed: tuple[Path, TrainingProgress] | None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Train what is not trained yet; the changed weights, and their names."""
    if len(run.stages) < len(run.settings.run):
        run.journal.say("align is left out: this model is told of regions in words, if at all")
    torch.manual_seed(run.settings.seed)
    parts = read_modules(run.base)
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    encoders = frozen_encoders(run, parts)
    teacher = as_it_was(model, run.processes.device) if run.data.rehearsed else None
    add_lora(parts.language, run.settings)  # before any stage: it renames weights
    stages = [
        stage_run(run, encoders, teacher, name, number)
        for number, (name, _) in enumerate(run.stages, start=1)
    ]
    result = train_stages(
        stages, model, run.processes, run.journal, watch, resumed, partial(announce, run)
    )
    return changed_weights(model, result.trained), result.trained


def as_it_was(model: RegionLanguageModel, device: torch.device) -> RegionLanguageModel:
    """A copy of the model that stays as the base is now."""
    return deepcopy(model).to(device).eval().requires_grad_(False)


def frozen_encoders(run: TrainingRun, parts: BundleModules) -> FrozenEncoders:
    """The encoders that stand outside of what trains; UsageError where sharding forbids it."""
    region, device = parts.region, run.processes.device
    frozen = {settings.region is RegionPart.carrier for _, settings in run.stages}
    if region is not None and run.processes.shards and True in frozen:
        if len(frozen) > 1:
            raise UsageError("--shard takes the same `region` in both stages, all or carrier")
        region = deepcopy(region).to(device)  # sharded weights work inside the model only
    return FrozenEncoders(run.base.card, parts.vision.to(device), region, device)


def stage_run(
    run: TrainingRun,
    encoders: FrozenEncoders,
    teacher: RegionLanguageModel | None,
    name: str,
    number: int,
) -> StageRun:
    """Everything the stage needs."""
    settings = dict(run.stages)[name]
    frozen = settings.region is RegionPart.carrier
    seed, replay = run.settings.seed, run.data.replay
    return StageRun(
        name=name,
        number=number,
        settings=settings,
        order=StepSampler(
            RecordStream(run.data.records(name), settings.group, (seed, number, 0)),
            RecordStream(replay, settings.group, (seed, number, 1)) if replay else None,
            settings.batch * settings.accumulate * run.processes.count,
            settings.replay_share,
            seed,
        ),
        held_out=run.data.held_out,
        collator=Collator(sample_maker(run.base), encoders, frozen),
        evaluate_every=run.settings.evaluate_every,
        save_every=run.settings.save_every,
        folder=run.checkpoints,
        teacher=teacher,
    )


def announce(run: TrainingRun, stage: StageRun, stood: TrainingProgress | None) -> None:
    """Say what a stage will do before it does it."""
    settings, count = stage.settings, run.processes.count
    assert isinstance(stage.order, StepSampler)
    whose = "1 process" if count == 1 else f"{count} processes"
    run.journal.say(
        f"{stage.name}: {len(stage.order.fresh.records):,} records, {stage.steps:,} steps; "
        f"effective batch {stage.order.effective_batch} = {settings.batch} x {settings.accumulate} "
        f"accumulated x {whose}"
        + (f", {stage.order.replayed} of them replayed" if stage.order.replayed else "")
    )
    if stood:
        run.journal.say(f"{stage.name}: going on after step {stood.step:,}")


def finish(
    run: TrainingRun, weights: Mapping[str, torch.Tensor], trained: tuple[str, ...]
) -> Bundle:
    """Write the bundle, measure it, describe it, and drop the checkpoints."""
    say = run.journal.say
    adapter = run.out / "adapter" if run.settings.keep_adapter else None
    parts = merge_weights(run.base, weights, run.settings, adapter)
    entries = read_log(run.out / TRAINING)
    stages = [describe_stage(name, settings, entries) for name, settings in run.stages]
    provenance = describe_run(run.base, run.settings, run.data.files, stages)
    bundle, reports = write_result(run.out, run.base, parts, trained, provenance)
    for report in reports:
        say(f"{report.graph} differs from torch by {report.difference:.1e}")
    bundle = measure_result(bundle, parts, run.data.held_out, say)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return bundle


def measure_result(
    bundle: Bundle, parts: BundleModules, held_out: Sequence[Record], say: Say
) -> Bundle:
    """Ask the written bundle its held-out questions; note accuracy and confidence in its card."""
    questions = held_out_questions(held_out)
    facts: dict[str, Any] = {}
    confidence = None
    if questions:
        answers = ask_held_out(bundle, questions)
        facts = accuracy_facts(answers)
    if rule := bundle.card.confidence:
        if questions:
            confidence, note = recalibrate(bundle, rule, questions, answers, say)
        else:
            note = "the base's; there are no held-out answers to compute it again"
        facts["confidence"] = note
        say(f"confidence table: {note}")
    if facts:
        bundle = update_card(bundle, parts, facts, confidence)
    if questions:
        say(str(facts["measured"]))
    return bundle


def describe_stage(name: str, settings: StageSettings, entries: list[LogEntry]) -> dict[str, Any]:
    """A stage for the card: its settings, and the figures it ended with."""
    own = [entry for entry in entries if entry.stage == name]
    figures: dict[str, Any] = {}
    for held_out, key in ((False, "training"), (True, "held_out")):
        last = next((entry for entry in reversed(own) if entry.held_out is held_out), None)
        if last:
            figures[f"{key}_loss"] = round(last.loss, 4)
            figures[f"{key}_answers_right"] = round(last.accuracy, 4)
            figures["steps"] = last.step
    return {"name": name, **figures, "settings": without_none(asdict(settings))}


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or beside it."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
