"""`finetune`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.options import FINETUNE, Overrides, only, require, with_options
from regionqa.finetune.config import FinetuneSettings, Preset, StageSettings
from regionqa.options import Options, OutputOptions, RuntimeOptions, Section, option


class StageChoice(StrEnum):
    """Which stages of training run."""

    align = "align"
    instruct = "instruct"
    both = "both"

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in order."""
        return ("align", "instruct") if self is StageChoice.both else (str(self),)


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(Options):
    """Options of the process, which do not change the result."""

    resume: bool = option(
        False, "Continue the run in --out exactly where it stopped.", section=Section.record
    )
    max_minutes: float | None = option(
        None, "Save and stop after this time (exit status 3).", section=Section.record
    )
    shard: bool = option(
        False, "Under torchrun: shard the weights over the GPUs (FSDP2).", section=Section.general
    )


@with_options
def finetune(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new model.")],
    *,
    stage_settings: Overrides[StageSettings],
    run_settings: Overrides[FinetuneSettings],
    stage: Annotated[StageChoice | None, typer.Option(help="Stages to run. Default: both.")] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="Settings to start from; pvit and gpt4roi are those of the papers."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML file of settings, with tables [align] and [instruct].")
    ] = None,
    process: ProcessOptions,
    runtime: Annotated[RuntimeOptions, only("device", section=Section.record)],
    output: Annotated[OutputOptions, only("quiet")],
) -> None:
    """Train a model on your own regions, in two stages.

    regionqa finetune --data mine.jsonl --out my-model
    """
    require("finetune", "finetune", FINETUNE)
    from regionqa.finetune.config import chosen_settings

    if stage:
        run_settings["run"] = stage.stages
    chosen = chosen_settings(
        out if process.resume else None, preset, settings, run_settings, stage_settings
    )
    from regionqa.finetune.run import finetune as train

    bundle = train(
        chosen,
        out,
        resume=process.resume,
        device=runtime.device,
        shard=process.shard,
        max_minutes=process.max_minutes,
        quiet=output.quiet,
    )
    if bundle:
        print(bundle.root)
