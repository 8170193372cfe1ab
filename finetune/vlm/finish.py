"""Writing a trained vision-language model: merge LoRA, save, complete the card, and ask it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from regionqa.backends.vlm.backend import VlmModel, open_model
from regionqa.backends.vlm.checkpoint import load_checkpoint
from regionqa.bundles.store import CARD, CONFIG
from regionqa.bundles.weights import INDEX, main_kind, stored
from regionqa.data.records import Record
from regionqa.engine import Engine
from regionqa.errors import TrainingError
from regionqa.files import set_default_permissions, write_whole
from regionqa.finetune import checkpoint as checkpoints
from regionqa.finetune.checkpoint import base_identity
from regionqa.finetune.config import FinetuneSettings
from regionqa.finetune.finish import DTYPES, accuracy_facts, ask_engine, held_out_questions
from regionqa.finetune.model import add_lora
from regionqa.finetune.run import TrainedWeights, TrainingRun, provenance_of
from regionqa.finetune.vlm.model import VisionLanguageModel, language_layers
from regionqa.finetune.vlm.samples import answer_text
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import SINGLE
from regionqa.schema import without_none
from regionqa.vlm.card import SmallRegions, VlmCard
from regionqa.vlm.checkpoints import SUFFIXES

ASKED = 100
"""Most held-out questions that the finished model is asked: one takes seconds on a CPU."""
GENERATION = "generation_config.json"
WRITTEN = (CONFIG, INDEX, CARD)
"""Files of the base that the result has its own of."""


def finish(run: TrainingRun[VlmModel], result: TrainedWeights) -> VlmModel:
    """Write the checkpoint and its card, ask it, and remove the training checkpoints."""
    base = run.base
    assert base.folder is not None
    adapter = run.out / "adapter" if run.settings.keep_adapter else None
    try:  # asking loads the weights again
        save(merged(base.folder, result[0], run.settings, adapter), base.folder, run.out)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{run.out}: cannot be written: {error}; make room and continue with --resume"
        ) from error
    source = base.card.source
    licence = source.licence if source else base.card.provenance.get("licence")
    identity = base_identity(base) | ({"repo": source.repo} if source else {})
    way = base.way or f"{base.card.regions.default}, or as the base's card says"
    provenance = provenance_of(run, identity, licence) | {"way": str(way)}
    card = finetuned_card(base, run.out.resolve().name, provenance)
    write_card(run.out / CARD, card)
    facts = measure(run, open_model(run.out))
    if facts:
        write_card(run.out / CARD, replace(card, provenance={**provenance, **facts}))
        run.log.say(str(facts["measured"]))
    run.broken.summarise()
    checkpoints.remove(run.checkpoints)
    return open_model(run.out)


def merged(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    settings: FinetuneSettings,
    adapter: Path | None,
) -> Any:
    """Load a checkpoint with the changed weights, LoRA merged, in float32 on the CPU.

    adapter: a folder that keeps the LoRA adapter, in peft's format.
    """
    network = load_checkpoint(folder, Device.cpu, SINGLE)
    wrapped = add_lora(network, settings, language_layers(network))
    _, unknown = VisionLanguageModel(network, None).load_state_dict(weights, strict=False)
    assert not unknown, unknown
    if wrapped is None:
        return network
    if adapter:
        wrapped.save_pretrained(str(adapter))
        set_default_permissions(adapter)
    return wrapped.merge_and_unload()


def save(network: Any, base: Path, out: Path) -> None:
    """Write weights in the base's precision, and copy its processor files and settings."""
    network.to(DTYPES[main_kind(stored(base))])
    if (base / GENERATION).is_file():  # copied: it may hold what transformers does not write
        network.generation_config = GenerationConfig()
    disable_progress_bar()
    network.save_pretrained(out)
    set_default_permissions(out)
    for path in sorted(base.iterdir()):
        weights = path.suffix == ".safetensors"
        if path.suffix in SUFFIXES and not weights and path.name not in WRITTEN:
            shutil.copyfile(path, out / path.name)


def finetuned_card(base: VlmModel, name: str, provenance: Mapping[str, Any]) -> VlmCard:
    """Make the result's card: the base's, with the trained way as its default."""
    card, regions = base.card, base.card.regions
    if base.way is not None:
        # everything was told in one way, so small regions are too
        never = SmallRegions(0.0, base.way) if regions.small else None
        regions = replace(regions, default=base.way, small=never)
    return replace(
        card,
        name=name,
        summary=f"{card.name}, trained further",
        source=None,
        regions=replace(regions, measured="in which it was trained"),
        provenance=provenance,
    )


def write_card(path: Path, card: VlmCard) -> None:
    """Write a card with all of its tables, so that it does not change with its family's."""
    with write_whole(path) as file:
        file.write(tomli_w.dumps(without_none(asdict(card))).encode())


def measure(run: TrainingRun[VlmModel], model: VlmModel) -> dict[str, Any]:
    """Ask the finished model held-out questions; facts for its card, none without questions."""
    questions = questions_of(run.broken.without(run.data.held_out))
    if not questions:
        return {}
    engine = Engine.load(model, device=run.processes.device.type)
    return accuracy_facts(ask_engine(engine, questions, answer_text))


def questions_of(held_out: Sequence[Record]) -> list[Record]:
    """Split held-out records into questions, each once."""
    return list(dict.fromkeys(held_out_questions(held_out)))[:ASKED]
