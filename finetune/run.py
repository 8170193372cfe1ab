"""A finetuning run, top to bottom: settings and base bundle -> align -> instruct -> bundle.

OUT/training holds settings, log, curves and, until the run is finished, checkpoints.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from regionqa.backends.bundle import BundleModel
from regionqa.backends.vlm.backend import VlmModel
from regionqa.bundles.card import ModelCard
from regionqa.bundles.store import CARD, Bundle, find_bundle, open_bundle
from regionqa.data.english import counted
from regionqa.errors import TrainingError, UsageError
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.batches.collate import Collator, LabelledBatch
from regionqa.finetune.batches.dataset import RunData, Say, read_run_data, sample_builder
from regionqa.finetune.batches.frozen import FrozenEncoders
from regionqa.finetune.batches.sampler import BrokenImages, Collates, RecordStream, StepSampler
from regionqa.finetune.checkpoint import TrainingProgress, base_identity, save_settings
from regionqa.finetune.config import (
    SETTINGS,
    TRAINING,
    FinetuneSettings,
    RegionPart,
    StageSettings,
)
from regionqa.finetune.distributed import ProcessGroup, ran_out_of_memory
from regionqa.finetune.finish import (
    BundleModules,
    changed_weights,
    describe_run,
    measure_result,
    merge_weights,
    read_modules,
    write_result,
)
from regionqa.finetune.model import RegionLanguageModel, add_lora
from regionqa.finetune.rehearsal import with_rehearsal
from regionqa.finetune.schedule.control import StageControl
from regionqa.finetune.schedule.pace import Clock
from regionqa.finetune.schedule.plan import EVALUATE_EVERY, Planner, describe_plan, evaluated
from regionqa.finetune.schedule.signals import StopSignal
from regionqa.finetune.tracking import TrainingLog, describe_stage, read_log, truncate_log
from regionqa.finetune.trainer import StageRun, train_stages
from regionqa.options import RuntimeOptions

CHECKPOINTS, REHEARSAL = "checkpoints", "rehearsal.jsonl"
REGION_ENCODER = "region encoder"
"""Its name among the `untrained` parts of a card."""

Base = TypeVar("Base", Bundle, VlmModel)
Resumed = tuple[Path, TrainingProgress]
"""A checkpoint to continue from, and its progress."""
TrainedWeights = tuple[Mapping[str, torch.Tensor], tuple[str, ...]]
"""The weights that training has changed, by name, and their names."""


@dataclass(frozen=True)
class TrainingStart(Generic[Base]):
    """A run whose data is not read yet."""

    settings: FinetuneSettings
    base: Base
    training: Path
    """Folder of the run's own files."""
    processes: ProcessGroup
    say: Say
    resume: bool

    def save(self, data: RunData) -> None:
        """Save the settings, or compare them with those of the resumed run."""
        self.processes.wait()
        if self.processes.is_first:
            settings, base = self.settings, self.base
            save_settings(self.training, settings, base, data, self.say, resume=self.resume)
        self.processes.wait()


@dataclass(frozen=True)
class TrainingRun(Generic[Base]):
    """Settings, base, data and processes of one run."""

    settings: FinetuneSettings
    base: Base
    stages: Sequence[tuple[str, StageSettings]]
    """Names and settings of the stages that have something to train, in order."""
    data: RunData
    out: Path
    processes: ProcessGroup
    log: TrainingLog
    broken: BrokenImages
    planner: Planner

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.out / TRAINING / CHECKPOINTS


@dataclass(frozen=True)
class ModelKind(Generic[Base]):
    """How models of one kind are trained."""

    find: Callable[[str], Base]
    """Finds a base by its name or folder."""
    open: Callable[[Path], Base]
    """Opens a finished result."""
    stages: Callable[[FinetuneSettings, Base], list[tuple[str, StageSettings]]]
    """Names and settings of the stages that have something to train."""
    prepare: Callable[[TrainingStart[Base]], RunData]
    """Reads all records and saves the settings."""
    train: Callable[[TrainingRun[Base], StopSignal, Resumed | None], TrainedWeights]
    """Trains the stages that are not finished."""
    finish: Callable[[TrainingRun[Base], TrainedWeights], Base]
    """Writes the result and removes the checkpoints."""


def bundle_stages(settings: FinetuneSettings, base: Bundle) -> list[tuple[str, StageSettings]]:
    """Return names and settings of the stages that have something to train, in order."""
    if settings.way is not None:
        BundleModel(base).configured(RuntimeOptions(way=settings.way))
    has_features = base.card.prompt.takes_features
    names = [name for name in settings.run if has_features or name != "align"]
    return [(name, resolve_region(getattr(settings.stages, name), base.card)) for name in names]


def resolve_region(settings: StageSettings, card: ModelCard) -> StageSettings:
    """Replace `region = "auto"` by the part that suits a base."""
    if settings.region is not RegionPart.auto:
        return settings
    reads_levels = card.region is not None and card.region.image is None
    whole = reads_levels and REGION_ENCODER in card.untrained
    return replace(settings, region=RegionPart.all if whole else RegionPart.projector)


def finetune(
    settings: FinetuneSettings,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    shard: bool = False,
    max_minutes: float | None = None,
    quiet: bool = False,
    clock: Clock = time.monotonic,
) -> Bundle | None:
    """Train a bundle and write the result into `out`.

    Args:
        settings: Everything that decides what the run computes.
        out: Folder of the new bundle.
        resume: Continue a run that was stopped; start one where there is none.
        device: "auto", "cpu" or "cuda".
        shard: Spread the weights over the processes (FSDP2).
        max_minutes: Time limit: of planned stages, which end in time; else save and stop after it.
        quiet: Print no progress.
        clock: Tells the seconds by which time is measured.

    Returns:
        The bundle in the first process, None in the others. A finished run is returned as it is.

    Raises:
        UsageError: `out` is in use, or the settings differ from those of the resumed run.
        DataError: A record cannot be used; nothing has been computed yet.
        StoppedError: The run was stopped and has saved a checkpoint.
        TrainingError: The run cannot continue.
    """
    kind = ModelKind(find_bundle, open_bundle, bundle_stages, prepare_data, run_stages, finish)
    options = ProcessSettings(resume, device, shard, max_minutes, quiet, clock)
    return train_model(kind, settings, out, options)


@dataclass(frozen=True)
class ProcessSettings:
    """What does not change the result of a run; see `finetune`."""

    resume: bool = False
    device: str = "auto"
    shard: bool = False
    max_minutes: float | None = None
    quiet: bool = False
    clock: Clock = time.monotonic


def train_model(
    kind: ModelKind[Base], settings: FinetuneSettings, out: Path, options: ProcessSettings
) -> Base | None:
    """Train a model of a kind; see `finetune`."""
    check_out(out, resume=options.resume)
    if (out / CARD).is_file() and not (out / TRAINING / CHECKPOINTS).exists():
        return kind.open(out)  # finished: checkpoints are removed last
    processes = ProcessGroup(options.device, shard=options.shard)
    quiet, started = options.quiet, options.clock()

    def say(text: str) -> None:
        if processes.is_first and not quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 (the log is not open yet)

    try:
        base = kind.find(settings.model)
        stages = kind.stages(settings, base)
        start = TrainingStart(settings, base, out / TRAINING, processes, say, options.resume)
        data = kind.prepare(start)
        resumed = find_checkpoint(settings, out / TRAINING, processes)
        minutes = options.max_minutes
        planner = Planner(out / TRAINING, settings, processes, minutes, options.clock, started)
        with (
            StopSignal(None if settings.plans else minutes) as stop,
            TrainingLog(out / TRAINING, processes, quiet=quiet) as log,
        ):
            broken = BrokenImages(skip=settings.skip_bad, say=log.say)
            run = TrainingRun(settings, base, stages, data, out, processes, log, broken, planner)
            trained = kind.train(run, stop, resumed)
        return kind.finish(run, trained) if processes.is_first else None
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise TrainingError(
                "out of memory; lower --batch (and raise --accumulate by as much), or add "
                "--gradient-checkpointing or --lora 16; then continue with --resume"
            ) from error
        raise
    finally:
        processes.close()


def prepare_data(start: TrainingStart[Bundle]) -> RunData:
    """Read all records, save the settings, and add the base's own answers for rehearsal."""
    settings, base, say = start.settings, start.base, start.say
    if settings.run == ("align",) and not base.card.prompt.takes_features:
        raise UsageError(
            f"{base.card.name} has no region features, so there is nothing to align; use "
            "--stage instruct"
        )
    data = read_run_data(settings, sample_builder(base), say)
    start.save(data)
    return with_rehearsal(settings, base, data, start.training / REHEARSAL, start.processes, say)


def find_checkpoint(
    settings: FinetuneSettings, training: Path, processes: ProcessGroup
) -> Resumed | None:
    """Find the checkpoint to resume from, and drop what the log says of later steps."""
    resumed = checkpoints.newest(training / CHECKPOINTS)
    if processes.is_first:
        stage, step = (resumed[1].stage, resumed[1].step) if resumed else (settings.run[0], -1)
        truncate_log(training, settings.run[: settings.run.index(stage)], stage, step)
    return resumed


def check_out(out: Path, *, resume: bool) -> None:
    """Raise UsageError where `out` is in use for something else."""
    if not out.exists() or (out.is_dir() and all(map(Path.is_dir, out.rglob("[!.]*")))):
        return  # a run that was killed at once leaves folders
    if not (out / TRAINING / SETTINGS).is_file():
        raise UsageError(f"{out}: exists and holds no training run; choose another folder")
    if not resume:
        state = "a finished run" if (out / CARD).is_file() else "a run that was stopped"
        raise UsageError(f"{out}: holds {state}; continue with --resume, or choose another folder")


def run_stages(
    run: TrainingRun[Bundle], stop: StopSignal, resumed: Resumed | None
) -> TrainedWeights:
    """Train the stages that are not finished; return the changed weights and their names."""
    if len(run.stages) < len(run.settings.run):
        run.log.say("align is skipped: this model has no region features")
    torch.manual_seed(run.settings.seed)
    parts = read_modules(run.base)
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    encoders = frozen_encoders(run, parts)
    rehearsed, device = run.data.rehearsed, run.processes.device
    teacher = deepcopy(model).to(device).eval().requires_grad_(False) if rehearsed else None
    add_lora(parts.language, run.settings)  # before any stage: it renames weights
    stages = [
        stage_run(run, encoders, teacher, name, number)
        for number, (name, _) in enumerate(run.stages, start=1)
    ]
    result = train_stages(
        stages, model, run.processes, run.log, stop, resumed, partial(announce, run)
    )
    return changed_weights(model, result.trained), result.trained


def frozen_encoders(run: TrainingRun[Bundle], parts: BundleModules) -> FrozenEncoders:
    """Build the encoders that do not train; UsageError where sharding does not allow it."""
    region, device = parts.region, run.processes.device
    frozen = {settings.region is RegionPart.projector for _, settings in run.stages}
    if region is not None and run.processes.shards and True in frozen:
        if len(frozen) > 1:
            raise UsageError(
                "--shard needs the same `region` in both stages; set it to all or projector"
            )
        region = deepcopy(region).to(device)  # sharded weights only work inside the model
    jittered = any(settings.box_noise for _, settings in run.stages)
    boxes = {} if region is None or frozen != {True} or jittered else run.data.boxes()
    return FrozenEncoders(run.base.card, parts.vision.to(device), region, device, boxes=boxes)


def stage_run(
    run: TrainingRun[Bundle],
    encoders: FrozenEncoders,
    teacher: RegionLanguageModel | None,
    name: str,
    number: int,
) -> StageRun:
    """Build the sampler and collator of a stage."""
    frozen = dict(run.stages)[name].region is RegionPart.projector
    collator = Collator(sample_builder(run.base), encoders, frozen)
    return replace(collated_stage(run, collator, name, number), teacher=teacher)


def collated_stage(
    run: TrainingRun[Base], collator: Collates[LabelledBatch], name: str, number: int
) -> StageRun:
    """Build the sampler of a stage whose batches a collator makes."""
    settings, held_out = dict(run.stages)[name], run.data.held_out
    seed, replay = run.settings.seed, run.data.replay
    sampler = StepSampler(
        RecordStream(run.data.records(name), settings.group, (seed, number, 0)),
        RecordStream(replay, settings.group, (seed, number, 1)) if replay else None,
        settings.batch * settings.accumulate * run.processes.count,
        settings.replay_share,
        seed,
    )
    control, every = None, run.settings.evaluate_every or EVALUATE_EVERY
    if settings.planned:
        held_out = evaluated(held_out)
        records = len(sampler.fresh.records)
        every = run.planner.stage(name, records, sampler.drawn, len(held_out)).evaluate_every
        control = StageControl(run.planner, name, run.log.say)
    return StageRun(
        name=name,
        number=number,
        settings=settings,
        sampler=sampler,
        held_out=held_out,
        collator=collator,
        evaluate_every=every,
        save_every=run.settings.save_every,
        folder=run.checkpoints,
        spare=run.data.records(name),
        broken=run.broken,
        control=control,
        first_pass=None if settings.box_noise else sampler.first_pass,
        clock=run.planner.clock,
    )


def announce(run: TrainingRun[Base], stage: StageRun, progress: TrainingProgress | None) -> None:
    """Print what a stage will do before it starts."""
    settings, count, sampler = stage.settings, run.processes.count, stage.sampler
    assert isinstance(sampler, StepSampler)
    processes, records = counted(count, "process"), len(sampler.fresh.records)
    run.log.say(
        f"{stage.name}: {records:,} records, {stage.steps:,} steps; "
        f"effective batch {sampler.effective_batch} = {settings.batch} x {settings.accumulate} "
        f"accumulated x {processes}"
        + (f", {sampler.replayed} of them replayed" if sampler.replayed else "")
    )
    if stage.control:
        plan = describe_plan(stage.control.plan, records, sampler.drawn, len(stage.held_out))
        run.log.say(f"{stage.name}: {plan}")
    if progress:
        run.log.say(f"{stage.name}: resumes after step {progress.step:,}")


def finish(run: TrainingRun[Bundle], result: TrainedWeights) -> Bundle:
    """Write the bundle, evaluate it, complete its card, and remove the checkpoints."""
    say, (weights, trained) = run.log.say, result
    adapter = run.out / "adapter" if run.settings.keep_adapter else None
    parts = merge_weights(run.base, weights, run.settings, adapter)
    licence = run.base.card.provenance.get("licence")
    provenance = provenance_of(run, base_identity(run.base), licence)
    bundle, reports = write_result(run.out, run.base, parts, trained, provenance)
    for report in reports:
        say(f"{report.graph} differs from torch by {report.difference:.1e}")
    bundle = measure_result(bundle, parts, run.broken.without(run.data.held_out), say)
    run.broken.summarise()
    checkpoints.remove(run.checkpoints)
    return bundle


def provenance_of(
    run: TrainingRun[Base], base: Mapping[str, Any], licence: object
) -> dict[str, Any]:
    """Describe for the card what a run has trained, and how; see `describe_run`."""
    entries, plans = read_log(run.out / TRAINING), run.planner.plan.stages
    stages = [
        describe_stage(name, settings, entries, plans.get(name)) for name, settings in run.stages
    ]
    return describe_run(base, licence, run.settings, run.data.files, stages)
