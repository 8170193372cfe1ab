"""Torch modules and a card -> a bundle on disk, and the way back to the modules.

The folder appears whole or not at all: it is written beside its place, every graph is compared
with torch, and only then it is moved there. It does not know how the modules were trained.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from regionqa.bundles import CARD, Bundle, file_spec, open_bundle
from regionqa.cards import from_table
from regionqa.errors import BundleError
from regionqa.export.graphs import ParityReport, export_region, export_vision, halve
from regionqa.export.region import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.vision import ResNetConfig, ResNetVision

WEIGHTS = "encoders.safetensors"
COUNTERS = ("num_batches_tracked",)
"""Buffers of BatchNorm that only its training without momentum reads; dropped by name."""


def write_bundle(
    folder: Path,
    card: Mapping[str, Any],
    vision: ResNetVision,
    region: MultiLevelRegionEncoder,
    language: PreTrainedModel,
    tokenizer: Path,
) -> tuple[Bundle, list[ParityReport]]:
    """Write a bundle and open it.

    card: the card's tables without `files`, `revision` and `architecture`, which are found here.
    Raises ExportError where a graph differs from torch by more than the tolerance; then `folder` is
    left as it was.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "llm").mkdir(parents=True)
    try:
        halve(vision)
        halve(region)
        save_encoders(vision, region, partial / WEIGHTS)
        shapes = [
            (channels, side, side)
            for channels, side in zip(vision.level_channels, vision.level_sizes, strict=True)
        ]
        size = vision.config.input_size
        reports = [
            export_vision(vision, size, len(shapes), partial / "vision.onnx"),
            export_region(region, shapes, partial / "region.onnx"),
        ]
        for report in reports:
            report.check()
        language.to(torch.float16).save_pretrained(partial / "llm")
        shutil.copyfile(tokenizer, partial / "llm" / "tokenizer.json")
        write_card(partial, card, vision, region)
        open_bundle(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_bundle(folder), reports


def write_card(
    root: Path, card: Mapping[str, Any], vision: ResNetVision, region: MultiLevelRegionEncoder
) -> None:
    """The card with the files found in `root`; its revision is a digest of theirs."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != CARD)
    files = [file_spec(root, path) for path in paths]
    digest = hashlib.sha256("".join(spec.sha256 for spec in files).encode()).hexdigest()
    table = {
        **card,
        "revision": digest[:12],
        "architecture": {"vision": asdict(vision.config), "region": asdict(region.config)},
        "files": [asdict(spec) for spec in files],
    }
    (root / CARD).write_text(tomli_w.dumps(table), encoding="utf-8")


def save_encoders(vision: nn.Module, region: nn.Module, path: Path) -> None:
    """Both encoders' weights in half precision, keys `vision.` and `region.` and torch's names."""
    weights = {
        f"{part}.{name}": value.half().contiguous()
        for part, module in (("vision", vision), ("region", region))
        for name, value in module.state_dict().items()
        if not name.endswith(COUNTERS)
    }
    save_file(weights, path)


def read_encoders(bundle: Bundle) -> tuple[ResNetVision, MultiLevelRegionEncoder]:
    """The torch encoders of a bundle, in evaluation mode; every key must be known."""
    architecture = bundle.card.architecture
    where = f"card of {bundle.card.name}: architecture"
    vision = ResNetVision(from_table(ResNetConfig, architecture["vision"], where))
    region = MultiLevelRegionEncoder(from_table(MultiLevelConfig, architecture["region"], where))
    weights = load_file(bundle.file(WEIGHTS))
    for part, module in (("vision", vision), ("region", region)):
        prefix = f"{part}."
        own = {
            key.removeprefix(prefix): weights.pop(key).float()
            for key in list(weights)
            if key.startswith(prefix)
        }
        missing, unknown = module.load_state_dict(own, strict=False)
        missing = [name for name in missing if not name.endswith(COUNTERS)]
        if missing or unknown:
            raise BundleError(f"{bundle.root / WEIGHTS}: missing {missing}, unknown {unknown}")
        module.eval()
    if weights:
        raise BundleError(f"{bundle.root / WEIGHTS}: unknown keys {sorted(weights)}")
    return vision, region
