"""A finetuning run, top to bottom: settings and base bundle -> align -> instruct -> bundle.

OUT/training holds settings, log, curves and, until the run is finished, checkpoints.
"""

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
from regionqa.finetune.checkpoint import TrainingProgress, save_settings
from regionqa.finetune.collate import Collator, FrozenEncoders
from regionqa.finetune.config import (
    SETTINGS,
    TRAINING,
    FinetuneSettings,
    RegionPart,
    StageSettings,
    without_none,
)
from regionqa.finetune.dataset import RunData, Say, read_run_data, sample_builder
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
from regionqa.finetune.sampler import BrokenImages, RecordStream, StepSampler
from regionqa.finetune.tracking import LogEntry, TrainingLog, read_log, truncate_log
from regionqa.finetune.trainer import StageRun, StopSignal, train_stages

CHECKPOINTS, REHEARSAL = "checkpoints", "rehearsal.jsonl"
REGION_ENCODER = "region encoder"
"""Its name among the `untrained` parts of a card."""


@dataclass(frozen=True)
class TrainingRun:
    """Settings, base, data and processes of one run."""

    settings: FinetuneSettings
    base: Bundle
    data: RunData
    out: Path
    processes: ProcessGroup
    log: TrainingLog
    broken: BrokenImages

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.out / TRAINING / CHECKPOINTS

    @property
    def stages(self) -> list[tuple[str, StageSettings]]:
        """Names and settings of the stages that have something to train, in order."""
        has_features = self.base.card.prompt.takes_features
        names = [name for name in self.settings.run if has_features or name != "align"]
        return [
            (name, resolve_region(getattr(self.settings.stages, name), self.base.card))
            for name in names
        ]


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
) -> Bundle | None:
    """Train a bundle and write the result into `out`.

    Args:
        settings: Everything that decides what the run computes.
        out: Folder of the new bundle.
        resume: Continue a run that was stopped; start one where there is none.
        device: "auto", "cpu" or "cuda".
        shard: Spread the weights over the processes (FSDP2).
        max_minutes: Save and stop after so long.
        quiet: Print no progress.

    Returns:
        The bundle in the first process, None in the others. A finished run is returned as it is.

    Raises:
        UsageError: `out` is in use, or the settings differ from those of the resumed run.
        DataError: A record cannot be used; nothing has been computed yet.
        StoppedError: The run was stopped and has saved a checkpoint.
        TrainingError: The run cannot continue.
    """
    check_out(out, resume=resume)
    if (out / CARD).is_file() and not (out / TRAINING / CHECKPOINTS).exists():
        return open_bundle(out)  # finished: checkpoints are removed last
    processes = ProcessGroup(device, shard=shard)

    def say(text: str) -> None:
        if processes.is_first and not quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 (the log is not open yet)

    try:
        base = find_bundle(settings.model)
        data = prepare_data(settings, base, out / TRAINING, processes, say, resume=resume)
        resumed = find_checkpoint(settings, out / TRAINING, processes)
        with (
            StopSignal(max_minutes) as stop,
            TrainingLog(out / TRAINING, processes, quiet=quiet) as log,
        ):
            broken = BrokenImages(skip=settings.skip_bad, say=log.say)
            run = TrainingRun(settings, base, data, out, processes, log, broken)
            weights, trained = run_stages(run, stop, resumed)
        return finish(run, weights, trained) if processes.is_first else None
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise TrainingError(
                "out of memory; lower --batch (and raise --accumulate by as much), or add "
                "--gradient-checkpointing or --lora 16; then continue with --resume"
            ) from error
        raise
    finally:
        processes.close()


def prepare_data(
    settings: FinetuneSettings,
    base: Bundle,
    training: Path,
    processes: ProcessGroup,
    say: Say,
    *,
    resume: bool,
) -> RunData:
    """Read all records, save the settings, and add the base's own answers for rehearsal."""
    if settings.run == ("align",) and not base.card.prompt.takes_features:
        raise UsageError(
            f"{base.card.name} has no region features, so there is nothing to align; use "
            "--stage instruct"
        )
    data = read_run_data(settings, base, say)
    processes.wait()
    if processes.is_first:
        save_settings(training, settings, base, data, say, resume=resume)
    processes.wait()
    return with_rehearsal(settings, base, data, training / REHEARSAL, processes, say)


def find_checkpoint(
    settings: FinetuneSettings, training: Path, processes: ProcessGroup
) -> tuple[Path, TrainingProgress] | None:
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
    run: TrainingRun, stop: StopSignal, resumed: tuple[Path, TrainingProgress] | None
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Train the stages that are not finished; return the changed weights and their names."""
    if len(run.stages) < len(run.settings.run):
        run.log.say("align is skipped: this model has no region features")
    torch.manual_seed(run.settings.seed)
    parts = read_modules(run.base)
    model = RegionLanguageModel(parts.vision, parts.region, parts.language)
    encoders = frozen_encoders(run, parts)
    teacher = frozen_copy(model, run.processes.device) if run.data.rehearsed else None
    add_lora(parts.language, run.settings)  # before any stage: it renames weights
    stages = [
        stage_run(run, encoders, teacher, name, number)
        for number, (name, _) in enumerate(run.stages, start=1)
    ]
    result = train_stages(
        stages, model, run.processes, run.log, stop, resumed, partial(announce, run)
    )
    return changed_weights(model, result.trained), result.trained


def frozen_copy(model: RegionLanguageModel, device: torch.device) -> RegionLanguageModel:
    """Copy the model, to keep the base as a teacher."""
    return deepcopy(model).to(device).eval().requires_grad_(False)


def frozen_encoders(run: TrainingRun, parts: BundleModules) -> FrozenEncoders:
    """Build the encoders that do not train; UsageError where sharding does not allow it."""
    region, device = parts.region, run.processes.device
    frozen = {settings.region is RegionPart.projector for _, settings in run.stages}
    if region is not None and run.processes.shards and True in frozen:
        if len(frozen) > 1:
            raise UsageError(
                "--shard needs the same `region` in both stages; set it to all or projector"
            )
        region = deepcopy(region).to(device)  # sharded weights only work inside the model
    return FrozenEncoders(run.base.card, parts.vision.to(device), region, device)


def stage_run(
    run: TrainingRun,
    encoders: FrozenEncoders,
    teacher: RegionLanguageModel | None,
    name: str,
    number: int,
) -> StageRun:
    """Build the sampler and collator of a stage."""
    settings = dict(run.stages)[name]
    frozen = settings.region is RegionPart.projector
    seed, replay = run.settings.seed, run.data.replay
    return StageRun(
        name=name,
        number=number,
        settings=settings,
        sampler=StepSampler(
            RecordStream(run.data.records(name), settings.group, (seed, number, 0)),
            RecordStream(replay, settings.group, (seed, number, 1)) if replay else None,
            settings.batch * settings.accumulate * run.processes.count,
            settings.replay_share,
            seed,
        ),
        held_out=run.data.held_out,
        collator=Collator(sample_builder(run.base), encoders, frozen),
        evaluate_every=run.settings.evaluate_every,
        save_every=run.settings.save_every,
        folder=run.checkpoints,
        spare=run.data.records(name),
        broken=run.broken,
        teacher=teacher,
    )


def announce(run: TrainingRun, stage: StageRun, progress: TrainingProgress | None) -> None:
    """Print what a stage will do before it starts."""
    settings, count, sampler = stage.settings, run.processes.count, stage.sampler
    assert isinstance(sampler, StepSampler)
    processes = "1 process" if count == 1 else f"{count} processes"
    run.log.say(
        f"{stage.name}: {len(sampler.fresh.records):,} records, {stage.steps:,} steps; "
        f"effective batch {sampler.effective_batch} = {settings.batch} x {settings.accumulate} "
        f"accumulated x {processes}"
        + (f", {sampler.replayed} of them replayed" if sampler.replayed else "")
    )
    if progress:
        run.log.say(f"{stage.name}: resumes after step {progress.step:,}")


def finish(
    run: TrainingRun, weights: Mapping[str, torch.Tensor], trained: tuple[str, ...]
) -> Bundle:
    """Write the bundle, evaluate it, complete its card, and remove the checkpoints."""
    say = run.log.say
    adapter = run.out / "adapter" if run.settings.keep_adapter else None
    parts = merge_weights(run.base, weights, run.settings, adapter)
    entries = read_log(run.out / TRAINING)
    stages = [describe_stage(name, settings, entries) for name, settings in run.stages]
    provenance = describe_run(run.base, run.settings, run.data.files, stages)
    bundle, reports = write_result(run.out, run.base, parts, trained, provenance)
    for report in reports:
        say(f"{report.graph} differs from torch by {report.difference:.1e}")
    bundle = measure_result(bundle, parts, run.broken.without(run.data.held_out), say)
    run.broken.summarise()
    checkpoints.remove(run.checkpoints)
    return bundle


def measure_result(
    bundle: Bundle, parts: BundleModules, held_out: Sequence[Record], say: Say
) -> Bundle:
    """Ask the bundle its held-out questions, and write accuracy and confidence into its card."""
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
    """Describe a stage for the card: its settings, and its last figures."""
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
    """Return whether an error means that memory ran out, on a GPU or in the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
