"""Models of a few thousand weights and a few images, on which training takes seconds.

Each model reads 64 x 64 pixels and has a tokenizer of a few words. They differ in how the language
model gets a region, so that every row of PVIT's table 1 has one.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.starter.decoder import train_tokenizer
from regionqa.bundles.store import Bundle
from regionqa.export.bundle import write_bundle
from regionqa.export.modules.base import RegionModule
from regionqa.export.modules.detection import DetectionConfig, DetectionHead
from regionqa.export.modules.multilevel import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.modules.regionclip import RegionClipConfig, RegionClipEncoder
from regionqa.export.modules.resnet import ResNetConfig, ResNetVision
from regionqa.language.tokenization import BundleTokenizer

ROWS = ("levels", "pixels", "coordinates", "none")
"""Region features from the vision encoder's maps or from pixels, boxes as text, or nothing."""
WITH_HEAD = "detector"
"""As `levels`, with a detection head."""
CLASSES = ("red thing", "blue thing", "cat")
"""Of the detection head."""
HIDDEN = 32
TINY_CLIP = RegionClipConfig(
    stem=8, planes=(4, 4, 8, 32), depths=(1, 1, 2, 1), roi_size=4, heads=2, region_width=12,
    hidden_size=HIDDEN,
)  # fmt: skip
"""RegionCLIP's layers. Tracing one takes seconds, so all tests of its graph share this one."""
RED, BLUE = "a red thing.", "a blue thing."
QUESTION = "what is <region1>?"
SPOKEN = (
    "what is this?", "what is it?", "what is that thing?", "is this a red thing?",
    "is there a blue thing in the picture?", "describe this picture.", "how many things are there?",
    "the red thing is left of the blue thing.", "where is the thing?", "what colour is it?",
    RED, BLUE,
)  # fmt: skip
"""Texts of the tokenizer's training: one token per word."""


def tiny_vision(levels: tuple[int, ...] = (0, 1)) -> ResNetVision:
    """An untrained vision encoder; `levels`: stages for the region encoder."""
    torch.manual_seed(0)
    config = ResNetConfig(
        input_size=64,
        widths=(8, 16),
        depths=(1, 1),
        levels=levels,
        token_grid=2,
        hidden_size=HIDDEN,
    )
    vision = ResNetVision(config)
    for module in vision.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return vision


def tiny_region(row: str, vision: ResNetVision) -> RegionModule | None:
    """The untrained region encoder of a row."""
    torch.manual_seed(1)
    if row in ("levels", WITH_HEAD):
        channels, sides, _ = zip(*vision.level_shapes, strict=True)
        encoder = MultiLevelRegionEncoder(
            MultiLevelConfig(
                64, channels, sides, width=16, groups=4, position_width=16, region_width=32,
                hidden_size=HIDDEN,
            )
        )  # fmt: skip
        nn.init.normal_(encoder.roi_align.flatten_linear.weight, std=0.5)  # so that regions matter
        nn.init.normal_(encoder.roi_align.updims.weight, std=0.3)
        return encoder
    if row == "pixels":
        clip = RegionClipEncoder(TINY_CLIP)
        for module in clip.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(clip.prompt_projector.weight, std=2.0)
        return clip
    return None


def tiny_head(vision: ResNetVision) -> DetectionHead:
    """An untrained detection head, whose boxes and scores differ from cell to cell."""
    torch.manual_seed(3)
    channels, sides, _ = zip(*vision.level_shapes, strict=True)
    head = DetectionHead(DetectionConfig(channels, sides, len(CLASSES), width=8, depth=1, groups=2))
    nn.init.normal_(head.classes.weight)
    head.classes.bias = nn.Parameter(torch.zeros(len(CLASSES)))
    return head.eval()


def tiny_tokenizer(path: Path) -> Path:
    """A tokenizer independent of the starter's, so that new starter weights change no test."""
    train_tokenizer(iter(SPOKEN), 512, ("<s>", "</s>", "<answer>"), path)
    return path


def tiny_language(words: int, context: int = 96) -> LlamaForCausalLM:
    """An untrained decoder of two layers; `words`: size of the vocabulary."""
    torch.manual_seed(2)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words,
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            initializer_range=0.1,
        )
    )


def tiny_card(row: str) -> dict[str, Any]:
    """The card's tables, without those that `write_bundle` adds."""
    image = {
        "size": 64, "fit": "squash", "resample": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    region = {
        "levels": {"graph": "region.onnx", "tokens": 1},
        "pixels": {
            "graph": "region.onnx",
            "tokens": 1,
            "image": {**image, "fit": "shortest", "longest": 160},
        },
    }
    region[WITH_HEAD] = region["levels"]
    detector = {
        "graph": "detector.onnx", "classes": list(CLASSES), "min_score": 0.6, "nms": 0.5,
    }  # fmt: skip
    patterns = {"coordinates": "[{x0}, {y0}, {x1}, {y1}]", "none": ""}
    return {
        "name": f"tiny-{row}",
        "summary": "for tests",
        "max_regions": 4,
        "untrained": ["region encoder" if row in region else "language model"],
        "image": image,
        "vision": {"graph": "vision.onnx", "image_tokens": 4},
        **({"region": region[row]} if row in region else {}),
        **({"detector": detector} if row == WITH_HEAD else {}),
        "language": {
            "folder": "llm", "runtime": "native", "context": 96,
            "max_new_tokens": 6, "stop": ["</s>"],
        },
        "prompt": {
            "template": "<s>{image}{question}<answer>",
            "region": patterns.get(row, "{region}"),
            "image_question": "describe this picture.",
            "region_question": "what is <region1>?",
        },
        "provenance": {"licence": "none; made by a test"},
    }  # fmt: skip


def tiny_bundle(row: str, root: Path) -> Bundle:
    """A bundle of one of `ROWS`, or `WITH_HEAD`, written below `root`."""
    tokenizer = tiny_tokenizer(root / "tokenizer.json")
    vision = tiny_vision((0, 1) if row in ("levels", WITH_HEAD) else ())
    graphs = {}
    for known in ("pixels", "coordinates", "none"):  # all with the same vision encoder
        if row in ("pixels", "coordinates", "none") and (root / known / "vision.onnx").is_file():
            graphs = {"vision.onnx": root / known / "vision.onnx"}
    bundle, _ = write_bundle(
        root / row, tiny_card(row), vision, tiny_region(row, vision),
        tiny_language(BundleTokenizer(tokenizer).size), tokenizer, graphs,
        detector=tiny_head(vision) if row == WITH_HEAD else None,
    )  # fmt: skip
    return bundle


def two_things(folder: Path, images: int = 24) -> Path:
    """Write records about red squares and blue discs, one of each per image, as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for number in range(images):
        width, height = (96, 64) if number % 3 else (80, 80)
        noise = rng.integers(90, 160, (height, width, 3), np.uint8)
        image = Image.fromarray(noise)
        draw = ImageDraw.Draw(image)
        sides = rng.permutation([4, width // 2 + 2])
        for left, answer in zip(sides.tolist(), (RED, BLUE), strict=True):
            top, side = int(rng.integers(4, height - 34)), int(rng.integers(20, 28))
            box = [left, top, left + side, top + side]
            if answer == RED:
                draw.rectangle(box, fill=(230, 20, 20))
            else:
                draw.ellipse(box, fill=(20, 20, 230))
            records.append(record_json(f"{number:02}.png", [box], (QUESTION, answer)))
        image.save(folder / f"{number:02}.png")
    return write_lines(folder / "things.jsonl", records)


def record_json(image: str, boxes: Sequence[Sequence[float]], *turns: tuple[str, str]) -> Any:
    """A training record as a JSON value."""
    return {
        "image": image,
        "regions": [list(box) for box in boxes],
        "conversations": [
            {"from": speaker, "value": text}
            for turn in turns
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ],
    }


def write_lines(path: Path, records: Sequence[object]) -> Path:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def log_of(model: Path) -> list[dict[str, Any]]:
    """Read a run's log, without the seconds."""
    lines = (model / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
