"""`finetune`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from regionqa.cli.options import FINETUNE, Overrides, only, require, with_options
from regionqa.errors import BundleError, RegionQAError, UsageError
from regionqa.files import is_folder
from regionqa.finetune.config import (
    DEFAULT,
    PRESETS,
    SETTINGS,
    TRAINING,
    FinetuneSettings,
    Preset,
    Stages,
    StageSettings,
)
from regionqa.finetune.settings_files import (
    StageOverrides,
    override_stages,
    read_settings_file,
    saved_settings,
)
from regionqa.flags import Options, Reads, Section, Writes, option
from regionqa.options import OutputOptions, RuntimeOptions

VLM_LORA, VLM_RATE = 16, 1e-5
"""Default rank of LoRA for vision-language models, and learning rate for all of their weights."""
VLM = Stages(
    align=DEFAULT.align,
    instruct=StageSettings(
        learning_rate=1e-4, batch=2, accumulate=8, projector=True, language=True, warm_up=0.1,
    ),
)  # fmt: skip
"""Default for vision-language models of the Hub, whose images take many tokens."""


class StageChoice(StrEnum):
    """Which stages of training run."""

    align = "align"
    instruct = "instruct"
    both = "both"

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in order."""
        return ("align", "instruct") if self is StageChoice.both else (str(self),)


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ProcessOptions(Options):
    """Options of the process, which do not change the result."""

    resume: bool = option(
        False, "Continue the run in --out exactly where it stopped.", section=Section.record
    )
    max_minutes: float | None = option(
        None,
        "Time for all of it: as many steps are planned as fit. With --steps, --epochs or a preset "
        "of a paper: save and stop after this time (exit status 3).",
        section=Section.record,
    )
    shard: bool = option(
        False, "Under torchrun: shard the weights over the GPUs (FSDP2).", section=Section.general
    )


@with_options
def finetune(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the new model."), Writes.folder
    ],
    *,
    stage_settings: Overrides[StageSettings],
    run_settings: Overrides[FinetuneSettings],
    stage: Annotated[StageChoice | None, typer.Option(help="Stages to run. Default: both.")] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="Settings to start from; pvit and gpt4roi are those of the papers."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings, with tables [align] and [instruct]."),
        Reads.data,
    ] = None,
    process: ProcessOptions,
    runtime: Annotated[RuntimeOptions, only("device", section=Section.record)],
    output: Annotated[OutputOptions, only("quiet")],
) -> None:
    """Train a model on your own regions.

    regionqa finetune --data mine.jsonl --out my-model
    """
    require("finetune", "finetune", FINETUNE)
    if process.shard and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise UsageError(
            "--shard: has no effect in one process; start several with torchrun, or drop it: "
            "torchrun --nproc_per_node 2 -m regionqa finetune ..."
        )
    if stage:
        run_settings["run"] = stage.stages
    chosen = chosen_settings(
        out if process.resume else None, preset, settings, run_settings, stage_settings
    )
    from regionqa.bundles.store import CARD
    from regionqa.finetune.run import ProcessSettings
    from regionqa.finetune.run import finetune as train
    from regionqa.finetune.vlm.run import finetune_checkpoint

    same = ProcessSettings(
        process.resume, runtime.device, process.shard, process.max_minutes, output.quiet
    )
    finished = (out / CARD).is_file()
    if is_checkpoint(str(out.absolute()) if finished else chosen.model):
        trained = finetune_checkpoint(chosen, out, same) is not None
    else:
        trained = train(chosen, out, **asdict(same)) is not None
    if trained:
        print(out)


def chosen_settings(
    resumed: Path | None,
    preset: str | None,
    file: Path | None,
    run_values: Mapping[str, Any],
    stage_values: Mapping[str, Any],
) -> FinetuneSettings:
    """Combine preset, settings file and flags; the latter take precedence.

    Paths become absolute, so that a run can be resumed from another folder.

    Args:
        resumed: Folder of a run to resume; its own settings hold where no data is named.
        preset: Name of the preset; default: "default".
        file: Settings file.
        run_values: Fields of `FinetuneSettings` from flags; None is not given.
        stage_values: Fields of both stages from flags; None is not given.

    Raises:
        UsageError: A setting is unknown or impossible, or contradicts the resumed run.
    """
    path = resumed / TRAINING / SETTINGS if resumed else None
    given = {name: value for name, value in run_values.items() if value is not None}
    stage_given = {name: value for name, value in stage_values.items() if value is not None}
    has_data = given.get("data") or given.get("mixture")
    if path and path.is_file() and file is None and not has_data:
        if given or stage_given or preset:
            one = next(iter((*given, *stage_given, "preset")))
            raise UsageError(
                f"--resume without --data uses the run's own settings; leave {one} out, or repeat "
                "the whole command"
            )
        return saved_settings(path)
    table: dict[str, Any] = {}
    changes = StageOverrides()
    stages = PRESETS[preset or "default"]
    if file is not None:
        table, changes = read_settings_file(file)
        stages = override_stages(stages, changes, str(file))
        if "stages" in table:
            raise UsageError(f"{file}: unknown key 'stages'; write tables [align] and [instruct]")
    table |= {name: _as_text(value) for name, value in given.items()}
    stages = override_stages(stages, StageOverrides(stage_given, stage_given), "options")
    table = {"data": [], "model": "starter", **table, "stages": asdict(stages)}
    where = str(file or "options")
    chosen = _settings(table, where)
    if is_checkpoint(chosen.model):
        defaults = {"lora_rank": VLM_LORA, "rehearse": 0}
        table = defaults | table
        if preset is None:
            stages = vlm_stages(table["lora_rank"], changes, stage_given, where)
            table["stages"] = asdict(stages)
        chosen = _settings(table, where)
    chosen = with_absolute_paths(chosen)
    for name in (*given, *stage_given):
        if name in WITHOUT_EFFECT and WITHOUT_EFFECT[name][0](chosen, stage_given):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: has no effect {WITHOUT_EFFECT[name][1]}; drop it")
    return chosen


def _settings(table: Mapping[str, Any], where: str) -> FinetuneSettings:
    """Make settings of a table; UsageError where a key or value is wrong."""
    from regionqa.schema import from_table, without_none

    try:
        return from_table(FinetuneSettings, without_none(table), where)
    except BundleError as error:
        raise UsageError(str(error)) from error


def is_checkpoint(model: str) -> bool:
    """Return whether a model is a vision-language model of the Hub.

    One that is not found is none: the run reports why.
    """
    from regionqa.vlm.store import find_vlm

    try:
        return find_vlm(model) is not None
    except RegionQAError:
        return False


def vlm_stages(
    lora_rank: int, changes: StageOverrides, given: Mapping[str, Any], where: str
) -> Stages:
    """Return the stages of a vision-language model, with the changes of a file and of flags."""
    stages = VLM
    if not lora_rank:
        rate = StageOverrides(instruct={"learning_rate": VLM_RATE})
        stages = override_stages(stages, rate, where)
    stages = override_stages(stages, changes, where)
    return override_stages(stages, StageOverrides(given, given), "options")


def _as_text(value: object) -> object:
    """Convert paths, alone or in a tuple, to text, as a settings file holds them."""
    if isinstance(value, tuple | list):
        return [_as_text(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def with_absolute_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """Return the settings with absolute paths; a model is one if it is a folder."""
    changes: dict[str, Any] = {}
    for name in ("data", "align_data", "replay"):
        changes[name] = tuple(str(Path(path).absolute()) for path in getattr(settings, name))
    for name in ("images", "mixture", "held_out", "rehearse_on"):
        path = getattr(settings, name)
        changes[name] = None if path is None else str(Path(path).absolute())
    if is_folder(Path(settings.model)):
        changes["model"] = str(Path(settings.model).absolute())
    return replace(settings, **changes)


WITHOUT_EFFECT: Mapping[str, tuple[Callable[[FinetuneSettings, Mapping[str, Any]], bool], str]] = {
    "keep_adapter": (lambda run, _: not run.lora_rank, "without --lora"),
    "held_out_share": (lambda run, _: bool(run.held_out), "beside --held-out"),
    "rehearse": (lambda run, _: bool(run.replay), "beside --replay"),
    "rehearse_on": (lambda run, _: bool(run.replay) or not run.rehearse, "without rehearsal"),
    "align_data": (lambda run, _: "align" not in run.run, "without the stage align"),
    "replay_share": (
        lambda run, _: not (run.replay or run.rehearse),
        "without --replay or --rehearse",
    ),
    "epochs": (lambda _, stage: "steps" in stage, "beside --steps"),
}
"""Options that another one leaves without effect: when, from the settings of the run and the flags
of its stages, and how that is said."""
