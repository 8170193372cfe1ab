"""Training of tiny checkpoints: records about coloured rectangles, and the parts of a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from regionqa.backends.vlm.backend import VlmModel, open_model
from regionqa.backends.vlm.checkpoint import load_checkpoint
from regionqa.backends.vlm.features import TorchTower, VisionTower
from regionqa.backends.vlm.processor import VlmProcessor
from regionqa.data.files import read_training_data
from regionqa.data.records import Record
from regionqa.finetune.vlm.base import conversation_builder
from regionqa.finetune.vlm.batches import (
    ConversationCollator,
    FrozenTower,
    TrainedTower,
    TrainingBackend,
    TrainingLanguage,
)
from regionqa.finetune.vlm.model import VisionLanguageModel
from regionqa.finetune.vlm.samples import ConversationBuilder
from regionqa.options import RegionWay, RuntimeOptions
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import SINGLE

LEFT, RIGHT = [8, 8, 40, 56], [56, 8, 88, 56]
"""The boxes of the two rectangles of an image of 96 x 64 pixels."""
COLORS = ("red", "blue")
Turns = Sequence[tuple[str, str]]


def write_line(image: str, regions: Sequence[Sequence[int]], turns: Turns) -> str:
    """A line of training data."""
    said = [
        {"from": speaker, "value": text}
        for turn in turns
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return json.dumps({"image": image, "regions": regions, "conversations": said})


def write_colors(folder: Path, images: int = 4) -> Path:
    """Images of a red and a blue rectangle, and records with one turn and with two about each."""
    lines = []
    for number in range(images):
        first, second = COLORS if number % 2 else COLORS[::-1]
        image = Image.new("RGB", (96, 64), "gray")
        image.paste(first, (8, 8, 40, 56))
        image.paste(second, (56, 8, 88, 56))
        image.save(folder / f"{number}.png")
        asked = ("what is <region1>?", first)
        lines.append(write_line(f"{number}.png", [LEFT], [asked]))
        lines.append(
            write_line(f"{number}.png", [LEFT, RIGHT], [asked, ("and <region2>?", second)])
        )
    path = folder / "colors.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True)
class VlmTraining:
    """What trains a checkpoint, without the loop."""

    base: VlmModel
    builder: ConversationBuilder
    model: VisionLanguageModel
    collator: ConversationCollator


def vlm_training(
    folder: Path, way: RegionWay | None = None, *, frozen: bool = True, network: Any = None
) -> VlmTraining:
    """Make the parts of a run; the vision encoder is frozen, or runs within the model."""
    base = open_model(folder).configured(RuntimeOptions(way=way))
    network = network or load_checkpoint(folder, Device.cpu, SINGLE)
    processor = VlmProcessor(folder, base.card)
    language = TrainingLanguage(network, processor.image_token_id, processor.decode)
    builder = conversation_builder(base, processor)
    tower: VisionTower = FrozenTower(TorchTower(network)) if frozen else TrainedTower()
    backend = TrainingBackend(base, processor, tower, language, Device.cpu)
    model = VisionLanguageModel(network, language.type_name)
    return VlmTraining(base, builder, model, ConversationCollator(builder, backend))


def read_records(path: Path) -> tuple[Record, ...]:
    """The records of a file, which must all be sound."""
    data = read_training_data(path)
    assert not data.problems
    return data.records
