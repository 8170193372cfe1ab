"""A finetuning run of a vision-language model, top to bottom: checkpoint -> instruct -> checkpoint.

Loop, sampler, checkpoints and log are those of bundles.
"""

from functools import partial
from pathlib import Path

import torch

from regionqa.backends.vlm.backend import VlmModel, open_model
from regionqa.backends.vlm.checkpoint import load_checkpoint
from regionqa.backends.vlm.features import TorchTower
from regionqa.backends.vlm.processor import VlmProcessor
from regionqa.bundles.weights import stored
from regionqa.data.english import counted
from regionqa.errors import UsageError
from regionqa.finetune.batches.dataset import RunData, read_run_data
from regionqa.finetune.config import FinetuneSettings, RegionPart, StageSettings
from regionqa.finetune.distributed import ProcessGroup
from regionqa.finetune.finish import changed_weights
from regionqa.finetune.model import add_lora
from regionqa.finetune.run import (
    ModelKind,
    ProcessSettings,
    Resumed,
    TrainedWeights,
    TrainingRun,
    TrainingStart,
    announce,
    collated_stage,
    train_model,
)
from regionqa.finetune.schedule.signals import StopSignal
from regionqa.finetune.trainer import computes_in_bf16, train_stages
from regionqa.finetune.vlm.base import conversation_builder, find_checkpoint
from regionqa.finetune.vlm.batches import (
    ConversationCollator,
    FrozenTower,
    TrainedTower,
    TrainingBackend,
    TrainingLanguage,
)
from regionqa.finetune.vlm.finish import finish
from regionqa.finetune.vlm.model import VisionLanguageModel, language_layers
from regionqa.runtime.devices import Device
from regionqa.runtime.memory import gigabytes, memory
from regionqa.runtime.precision import Dtype, Precision

STAGE = "instruct"
"""The only stage: there is no region encoder to align."""
DEFAULTS = StageSettings(learning_rate=1.0)


def finetune_checkpoint(
    settings: FinetuneSettings, out: Path, options: ProcessSettings
) -> VlmModel | None:
    """Train a vision-language model and write the result into `out`.

    Args:
        settings: Everything that decides what the run computes.
        out: Folder of the new checkpoint.
        options: What does not change the result.

    Returns:
        The checkpoint in the first process, None in the others.

    Raises:
        UsageError: A setting has no effect or cannot be used with this model, `out` is in use, or
            the settings differ from those of the resumed run.
        DataError: A record cannot be used; nothing has been computed yet.
        StoppedError: The run was stopped and has saved a checkpoint.
        TrainingError: The run cannot continue.
    """
    kind = ModelKind(
        find=partial(find_checkpoint, settings.way),
        open=open_model,
        stages=check_stages,
        prepare=prepare_data,
        train=train_checkpoint,
        finish=finish,
    )
    return train_model(kind, settings, out, options)


def check_stages(settings: FinetuneSettings, base: VlmModel) -> list[tuple[str, StageSettings]]:
    """Return the stage with its settings; UsageError for a setting that has no effect."""
    name, stage = base.card.name, settings.stages.instruct
    if STAGE not in settings.run:
        raise UsageError(f"{name} has no region encoder to align; use --stage {STAGE}")
    without_effect = {
        "--align-data": (bool(settings.align_data), "there is no region encoder to align"),
        "--rehearse": (bool(settings.rehearse), "rehearsal is for bundles; use --replay"),
        "--rehearse-on": (bool(settings.rehearse_on), "rehearsal is for bundles; use --replay"),
        "--keep-adapter": (settings.keep_adapter and not settings.lora_rank, "--lora is 0"),
        "region": (stage.region is not RegionPart.auto, "there is no region encoder"),
        "region_rate": (stage.region_rate != DEFAULTS.region_rate, "there is no region encoder"),
        "projector_rate": (stage.projector_rate != DEFAULTS.projector_rate, "one rate is for all"),
        "feature_mixing": (stage.feature_mixing > 0, "no encoder's features are kept"),
        "feature_noise": (stage.feature_noise > 0, "no encoder's features are kept"),
        "swapped_images": (stage.swapped_images > 0, "no encoder's features are kept"),
    }
    for option, (given, reason) in without_effect.items():
        if given:
            raise UsageError(f"{option}: has no effect on {name}: {reason}; leave it out")
    return [(STAGE, stage)]


def prepare_data(start: TrainingStart[VlmModel]) -> RunData:
    """Read all records and save the settings."""
    base = start.base
    assert base.folder is not None
    processor = VlmProcessor(base.folder, base.card, cuda=on_cuda(start.processes))
    data = read_run_data(start.settings, conversation_builder(base, processor), start.say)
    start.save(data)
    return data


def on_cuda(processes: ProcessGroup) -> bool:
    """Return whether images have the size for CUDA."""
    return processes.device.type == "cuda"


def train_checkpoint(
    run: TrainingRun[VlmModel], stop: StopSignal, resumed: Resumed | None
) -> TrainedWeights:
    """Train the stage; return the changed weights and their names."""
    settings, base, processes = run.settings, run.base, run.processes
    assert base.folder is not None
    (_, stage) = run.stages[0]
    bf16 = bool(settings.lora_rank) and computes_in_bf16(stage.precision, processes.device)
    # trained weights are float32; frozen ones need not be more precise than their products
    frozen = Precision(Dtype.bfloat16 if bf16 else Dtype.float32)
    device = Device.cuda if on_cuda(processes) else Device.cpu
    if warning := memory_warning(base.folder, frozen, device, all_weights=not settings.lora_rank):
        run.log.say(warning)
    network = load_checkpoint(base.folder, Device.cpu, frozen)
    torch.manual_seed(settings.seed)
    add_lora(network, settings, language_layers(network))
    processor = VlmProcessor(base.folder, base.card, cuda=on_cuda(processes))
    language = TrainingLanguage(network, processor.image_token_id, processor.decode)
    model = VisionLanguageModel(network, language.type_name)
    if not processes.shards:
        model.to(processes.device)  # the vision encoder runs before the first step
    # sharded weights only work inside the model
    within = processes.shards or (not settings.lora_rank and stage.projector)
    tower = TrainedTower() if within else FrozenTower(TorchTower(network))
    backend = TrainingBackend(base, processor, tower, language, device)
    collator = ConversationCollator(conversation_builder(base, processor), backend)
    model.unfreeze(stage)
    run.log.say(describe(model, once=not within))
    result = train_stages(
        [collated_stage(run, collator, STAGE, 1)],
        model, processes, run.log, stop, resumed, partial(announce, run),
    )  # fmt: skip
    return changed_weights(model, result.trained), result.trained


def memory_warning(
    folder: Path, precision: Precision, device: Device, *, all_weights: bool
) -> str | None:
    """Warn before weights are loaded whose training does not fit into a device's memory."""
    copies = 4 if all_weights else 1  # with a gradient, and two moments of AdamW
    needed = copies * precision.dtype.width * sum(each.count for each in stored(folder))
    room = memory(device)
    if room is None or needed <= room:
        return None
    advice = "use LoRA" if all_weights else "choose a smaller model, or --precision bf16 on a GPU"
    return (
        f"warning: the weights and what training them needs take {gigabytes(needed)}, and there "
        f"are {gigabytes(room)}; {advice}, or --shard over several GPUs"
    )


def describe(model: VisionLanguageModel, *, once: bool) -> str:
    """Say what trains, and the memory of weights and of what training them needs.

    once: whether each image is encoded once.
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    kept = gigabytes(sum(weight.nbytes for weight in weights))
    # a gradient, and two moments of AdamW
    more = gigabytes(3 * sum(weight.nbytes for weight in trained))
    vision = "trains too" if model.trains_vision else "is frozen"
    if once:
        vision += " and encodes each image once"
    count = sum(weight.numel() for weight in trained)
    return (
        f"{counted(count, 'weight')} of {sum(weight.numel() for weight in weights):,} train; the "
        f"vision encoder {vision}; memory: {kept} of weights, {more} of gradients and moments, and "
        "activations"
    )
