"""Settings of a finetuning run and of its stages, and presets, such as the papers' settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from regionqa.errors import UsageError
from regionqa.flags import Reads, Section, flag, option
from regionqa.options import RegionWay

TRAINING, SETTINGS = "training", "settings.toml"
"""Folder of a run's own files below the new model, and the file of its settings in it."""
DATA: Mapping[str, Any] = {"parse": Path, "role": Reads.data}
LOWEST = {"rehearse": 0, "lora_rank": 0, "lora_alpha": 1, "evaluate_every": 1, "save_every": 1}
"""Least values of a run's numbers."""


class RegionPart(StrEnum):
    """Which part of the region encoder a stage trains."""

    auto = "auto"
    """`all` where the base's region encoder is untrained and reads the vision encoder's maps, else
    `projector`: training a trained encoder further makes it forget."""
    all = "all"
    """All of it (GPT4RoI)."""
    projector = "projector"
    """Its projector into the language model; the encoder stays frozen (PVIT)."""


class TrainingPrecision(StrEnum):
    """Precision of matrix products; trained weights stay float32."""

    auto = "auto"
    """bf16 on a GPU that supports it, else fp32."""
    bf16 = "bf16"
    fp32 = "fp32"


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings of one stage; an epoch is one pass over the records of `--data`."""

    epochs: float | None = option(
        None,
        "Passes over the data in each stage. Default: planned from the number of records.",
        section=Section.method,
    )
    steps: int | None = option(
        None, "Optimizer steps per stage. Default: from epochs.", section=Section.method, min=1
    )
    batch: int = option(
        16, "Questions per forward pass and process.", section=Section.method, min=1
    )
    accumulate: int = option(
        1,
        "Forward passes per optimizer step; the effective batch is batch x accumulate x processes.",
        section=Section.method,
        min=1,
    )
    learning_rate: float = field(metadata=flag("Peak learning rate.", section=Section.method))
    group: int = 4
    """Questions about one image that stay together; it is encoded once per forward pass."""
    region: RegionPart = RegionPart.auto
    """Part of the region encoder that trains."""
    region_rate: float = 1.0
    """The region encoder's learning rate, as a share of `learning_rate`."""
    orthogonal_rate: float = 0.0
    """Learning rate of Muon (Jordan et al. 2024) for matrices in the language model's layers, as a
    share of `learning_rate`; 0 uses AdamW for them. Small models learn to compare by it."""
    projector: bool = False
    """Whether the projector of the image tokens trains."""
    projector_rate: float = 1.0
    """Its learning rate, as a share of `learning_rate`."""
    language: bool = False
    """Whether the language model trains."""
    warm_up: float = 0.03
    """Share of the steps in which the learning rate rises to its peak."""
    warm_up_steps: int | None = None
    """The same as a number of steps, which takes precedence."""
    schedule: str = "cosine"
    """`cosine` falls to zero at the end, `constant` stays at the peak."""
    weight_decay: float = 0.0
    """Weight decay, on matrices and kernels only."""
    clip: float = 1.0
    """Norm to which gradients are clipped."""
    replay_share: float = option(
        0.75, "Share of replayed records in each step.", section=Section.method
    )
    box_noise: float = option(
        0.0,
        "Maximum random shift of a box's edges, as a share of its width and height.",
        section=Section.method,
    )
    """Drawn for every step (PVIT); boxes written as text shift too."""
    precision: TrainingPrecision = option(
        TrainingPrecision.auto,
        "Precision of matrix products; auto is bf16 on GPUs that support it, else fp32.",
        section=Section.runtime,
    )
    feature_mixing: float = 0.0
    """Largest share of another image's, or region's, features that is mixed into frozen ones."""
    feature_noise: float = 0.0
    """Standard deviation of the noise on frozen features, as a share of their own."""
    swapped_images: float = 0.0
    """Share of the images, among those that are asked about by regions alone, whose features are
    those of another image: what a region shows is then learned from the region."""
    gradient_checkpointing: bool = option(
        False,
        "Recompute activations of the language model to save memory; slower.",
        section=Section.runtime,
    )

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs", "batch", "accumulate", "group", "clip"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UsageError(f"{name} is {value}; it must be above 0")
        if (steps := self.steps) is not None and steps < 1:
            raise UsageError(f"steps is {steps}; it must be 1 or more")
        for name in ("warm_up", "replay_share", "feature_mixing", "swapped_images"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} is {value}; it must be from 0 to below 1")
        for name, value in vars(self).items():
            if name.endswith(("_rate", "_noise", "_decay")) and value < 0:
                raise UsageError(f"{name} is {value}; it must be 0 or more")
        if (noise := self.box_noise) >= 0.5:
            raise UsageError(f"box_noise is {noise}; it must be below 0.5, or edges may meet")
        if self.schedule not in ("cosine", "constant"):
            raise UsageError(f"schedule is {self.schedule!r}; known are cosine and constant")

    @property
    def changes_features(self) -> bool:
        """Whether frozen features are mixed, swapped or get noise."""
        return bool(self.feature_mixing or self.feature_noise or self.swapped_images)

    @property
    def planned(self) -> bool:
        """Whether the steps follow from the number of records; see `finetune.schedule`."""
        return self.steps is None and self.epochs is None


@dataclass(frozen=True)
class Stages:
    """The two stages of both papers: first the region encoder, then the language model too."""

    align: StageSettings
    """Stage one trains the region encoder or its projection alone."""
    instruct: StageSettings
    """Stage two also trains the projector and the language model."""


DEFAULT = Stages(
    align=StageSettings(learning_rate=3e-4, warm_up=0.1),
    instruct=StageSettings(learning_rate=2e-4, projector=True, language=True, warm_up=0.1),
)
PVIT = Stages(
    align=StageSettings(
        learning_rate=2e-3, epochs=1.0, batch=8, accumulate=2, region=RegionPart.projector,
        box_noise=0.02, gradient_checkpointing=True,
    ),
    instruct=StageSettings(
        learning_rate=2e-5, epochs=3.0, batch=8, region=RegionPart.projector, projector=True,
        language=True, box_noise=0.02, gradient_checkpointing=True,
    ),
)  # fmt: skip
"""arXiv 2308.13437, its two training scripts; meant for 8 GPUs (effective batches 128 and 64)."""
GPT4ROI = Stages(
    align=StageSettings(
        learning_rate=2e-5, epochs=2.0, batch=1, region=RegionPart.all, warm_up=0.003,
        weight_decay=0.01, gradient_checkpointing=True,
    ),
    instruct=StageSettings(
        learning_rate=2e-5, epochs=2.0, batch=2, region=RegionPart.all, warm_up_steps=3000,
        projector=True, language=True, gradient_checkpointing=True,
    ),
)  # fmt: skip
"""arXiv 2307.03601, its two training scripts; meant for 4 and 8 GPUs (batches 4 and 16)."""


class Preset(StrEnum):
    """Settings to start from."""

    default = "default"
    pvit = "pvit"
    gpt4roi = "gpt4roi"


PRESETS: Mapping[str, Stages] = dict(zip(Preset, (DEFAULT, PVIT, GPT4ROI), strict=True))


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Everything that decides what a run computes; saved with it, and compared on --resume."""

    data: tuple[str, ...] = field(
        metadata=flag(
            "Training records: JSON lines, a JSON array of PVIT or LLaVA, or COCO.",
            "--data",
            "-d",
            **DATA,
        )
    )
    mixture: str | None = option(
        None,
        "TOML file of weighted data files, in place of --data (docs/guide/data.md).",
        excludes=("data", "align_data"),
        **DATA,
    )
    model: str = field(
        metadata=flag("Model to start from. Default: starter.", "--model", "-m", role=Reads.model)
    )
    stages: Stages
    """How each stage trains."""
    run: tuple[str, ...] = ("align", "instruct")
    """Which stages run, in this order."""
    images: str | None = option(
        None,
        "Folder that image names are relative to. Default: each file's.",
        parse=Path,
        role=Reads.images,
    )
    align_data: tuple[str, ...] = option((), "Other records for the first stage.", **DATA)
    replay: tuple[str, ...] = option(
        (), "Older records to mix into every step, so that they are not forgotten.", **DATA
    )
    rehearse: int = option(
        4,
        "Without --replay: random boxes per image that the base model answers before training, "
        "and whose answers are replayed; 0 disables it (and is the default for a "
        "vision-language model).",
        min=0,
    )
    rehearse_on: str | None = option(
        None,
        "Rehearse on a folder of other images, or on the boxes of a file such as COCO.",
        **DATA,
    )
    held_out: str | None = option(None, "Records to evaluate on; never trained on.", **DATA)
    held_out_share: float | None = option(
        None,
        "Share of the images to hold out if no file is named. Default: a tenth, and where steps "
        "are planned none of fewer than 40 images and 500 at most.",
    )
    way: RegionWay | None = option(
        None,
        "How a vision-language model is told a region. Default: its card's.",
        section=Section.method,
    )
    lora_rank: int = option(
        0,
        "Rank of LoRA on all linear layers of the language model; 0 trains all weights. "
        "Default: 0; for a vision-language model 16.",
        "--lora",
        section=Section.method,
        min=0,
    )
    lora_alpha: int = 32
    """LoRA's scale is alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout probability of LoRA's inputs."""
    keep_adapter: bool = option(
        False, "Keep the LoRA adapter beside the merged model.", section=Section.method
    )
    skip_bad: bool = option(
        False, "Leave bad records out instead of stopping.", section=Section.record
    )
    evaluate_every: int | None = option(
        None,
        "Steps between evaluations on held-out records. Default: 100, or as planned.",
        section=Section.record,
        min=1,
    )
    save_every: int = option(100, "Steps between checkpoints.", section=Section.record, min=1)
    seed: int = option(
        0,
        "Random seed for data order, augmentation and initialization.",
        section=Section.record,
    )

    def __post_init__(self) -> None:
        if not self.data and self.mixture is None:
            raise UsageError("no training data; name a file with --data, or a --mixture")
        if not self.run or not set(self.run) <= {"align", "instruct"}:
            raise UsageError(f"stages {self.run}: known are align and instruct")
        for name in ("held_out_share", "lora_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        for name, low in LOWEST.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise UsageError(f"{name} is {value}; it must be {low} or more")

    @property
    def plans(self) -> bool:
        """Whether the steps of all stages are planned."""
        return all(getattr(self.stages, name).planned for name in self.run)
