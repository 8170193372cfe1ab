"""`finetune`: parse, fill in the settings, train."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regionqa.cli.options import FINETUNE, Debug, Device, DeviceChoice, Quiet, require


class StageChoice(StrEnum):
    """Values of --stage."""

    align = "align"
    instruct = "instruct"
    both = "both"


STAGES = {
    StageChoice.align: ("align",),
    StageChoice.instruct: ("instruct",),
    StageChoice.both: ("align", "instruct"),
}


class Preset(StrEnum):
    """Values of --preset."""

    default = "default"
    pvit = "pvit"
    gpt4roi = "gpt4roi"


Files = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", "-d", help="Training records: JSON lines, a JSON array of PVIT or LLaVA, COCO."
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The model to start from; starter if not said."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the new model.")]
Images = Annotated[
    Path | None, typer.Option(help="Folder that image names are relative to; else the file's.")
]
AlignData = Annotated[
    list[Path] | None, typer.Option("--align-data", help="Other records for the first stage.")
]
Replay = Annotated[
    list[Path] | None,
    typer.Option(help="Older records, mixed into every step so that they are not forgotten."),
]
Rehearse = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Without --replay: boxes an image that the base is asked about first, to replay its "
        "own answers; 0: none.",
    ),
]
RehearseOn = Annotated[
    Path | None,
    typer.Option(
        "--rehearse-on",
        help="Rehearse on a folder of other images, or on the boxes of a file, such as COCO.",
    ),
]
HeldOut = Annotated[
    Path | None, typer.Option("--held-out", help="Records to measure on, never trained on.")
]
HeldOutShare = Annotated[
    float | None,
    typer.Option("--held-out-share", help="Share of the images held out if no file is named."),
]
Stage = Annotated[StageChoice | None, typer.Option(help="Which stages run.")]
PresetOption = Annotated[
    Preset | None, typer.Option(help="Settings to start from; pvit and gpt4roi hold the papers'.")
]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="TOML with settings, and [align] and [instruct].")
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data, in each stage.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps, in each stage.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Questions in one forward pass of one process.")
]
Accumulate = Annotated[int | None, typer.Option(min=1, help="Forward passes per step.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", help="Peak of the learning rate.")]
ReplayShare = Annotated[
    float | None, typer.Option("--replay-share", help="Share of each step that is replayed.")
]
BoxNoise = Annotated[
    float | None, typer.Option("--box-noise", help="Shift box edges by up to this share of a side.")
]
Lora = Annotated[
    int | None, typer.Option(min=0, help="Train LoRA of this rank, not the language model itself.")
]
KeepAdapter = Annotated[
    bool, typer.Option("--keep-adapter", help="Keep LoRA's own weights beside the merged model.")
]
PrecisionChoice = Annotated[str | None, typer.Option("--precision", help="auto, bf16 or fp32.")]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave bad records out.")]
EvaluateEvery = Annotated[
    int | None, typer.Option("--evaluate-every", min=1, help="Steps between measurements.")
]
SaveEvery = Annotated[
    int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints.")
]
Seed = Annotated[int | None, typer.Option(help="Of order, noise and new weights.")]
ResumeRun = Annotated[
    bool, typer.Option("--resume", help="Go on where the run in --out stopped, exactly.")
]
MaxMinutes = Annotated[
    float | None, typer.Option("--max-minutes", help="Save and stop after so long (status 3).")
]
Shard = Annotated[
    bool, typer.Option("--shard", help="Under torchrun: spread the weights over the GPUs (FSDP2).")
]


def finetune(
    out: Out,
    data: Files = None,
    model: Base = None,
    images: Images = None,
    align_data: AlignData = None,
    replay: Replay = None,
    rehearse: Rehearse = None,
    rehearse_on: RehearseOn = None,
    held_out: HeldOut = None,
    held_out_share: HeldOutShare = None,
    stage: Stage = None,
    preset: PresetOption = None,
    settings: SettingsFile = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    learning_rate: Rate = None,
    replay_share: ReplayShare = None,
    box_noise: BoxNoise = None,
    lora: Lora = None,
    keep_adapter: KeepAdapter = False,
    precision: PrecisionChoice = None,
    gradient_checkpointing: Checkpointing = False,
    skip_bad: SkipBad = False,
    evaluate_every: EvaluateEvery = None,
    save_every: SaveEvery = None,
    seed: Seed = None,
    resume: ResumeRun = False,
    max_minutes: MaxMinutes = None,
    device: Device = DeviceChoice.auto,
    shard: Shard = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model on your own regions, in two stages.

    regionqa finetune --data mine.jsonl --out my-model
    """
    require("finetune", "finetune", FINETUNE)
    from regionqa.finetune.settings import chosen_settings

    stage_fields = {
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "replay_share": replay_share,
        "box_noise": box_noise,
        "lora_rank": lora,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing or None,
    }
    run_fields = {
        "model": model,
        "data": data,
        "images": images,
        "align_data": align_data,
        "replay": replay,
        "rehearse": rehearse,
        "rehearse_on": rehearse_on,
        "held_out": held_out,
        "held_out_share": held_out_share,
        "run": stage and STAGES[stage],
        "keep_adapter": keep_adapter or None,
        "skip_bad": skip_bad or None,
        "evaluate_every": evaluate_every,
        "save_every": save_every,
        "seed": seed,
    }
    chosen = chosen_settings(
        out if resume else None, preset and str(preset), settings, run_fields, stage_fields
    )
    from regionqa.finetune.run import finetune as train

    bundle = train(
        chosen, out, resume=resume, device=str(device), shard=shard, max_minutes=max_minutes,
        quiet=quiet,
    )  # fmt: skip
    if bundle:
        print(bundle.root)
