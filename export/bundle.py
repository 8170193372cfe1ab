"""Write torch modules and a card as a bundle, and read the modules of a bundle.

A bundle is written beside its folder, every graph is compared with torch, and only then is it
moved, so that the folder appears whole or not at all.
"""

import hashlib
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tomli_w
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from regionqa.bundles.store import CARD, Bundle, file_spec, open_bundle
from regionqa.bundles.weights import read_index
from regionqa.errors import BundleError, message_of
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.detection import DetectionHead
from regionqa.export.modules.registry import architecture_table, build, build_detector
from regionqa.export.onnx.export import export_detector, export_region, export_vision
from regionqa.export.onnx.files import read_model
from regionqa.export.onnx.interface import level_names
from regionqa.export.onnx.verify import ParityReport
from regionqa.files import set_default_permissions, write_whole

WEIGHTS = "encoders.safetensors"
VISION_GRAPH, REGION_GRAPH, DETECTOR_GRAPH = "vision.onnx", "region.onnx", "detector.onnx"
FOUND = ("files", "revision", "architecture")
"""Keys of a card that `write_card` computes."""
COUNTERS = ("num_batches_tracked",)
"""Buffers of BatchNorm that only training without momentum uses; not stored."""


def write_bundle(
    folder: Path,
    card: Mapping[str, Any],
    vision: VisionModule,
    region: RegionModule | None,
    language: PreTrainedModel | Path,
    tokenizer: Path,
    unchanged: Mapping[str, Path] = MappingProxyType({}),
    like: Mapping[str, Path] = MappingProxyType({}),
    detector: DetectionHead | None = None,
) -> tuple[Bundle, list[ParityReport]]:
    """Write a bundle and open it.

    Files in `folder` that do not belong to a bundle are kept.

    Args:
        folder: The bundle's folder.
        card: The card's tables without `files`, `revision`, `architecture` and the vision
            encoder's `levels`, which are computed here.
        vision: The vision encoder.
        region: The region encoder, if the model has one.
        language: A model, whose weights are stored in their own precision, or a folder to copy.
        tokenizer: A tokenizer.json.
        unchanged: Graphs to copy, which were compared with torch before, by file name.
        like: Graphs of encoders of the same architecture, by file name; see `export_vision`.
        detector: The detection head; given if, and only if, the card has [detector]. Its weights
            are in its graph only.

    Raises:
        ExportError: A graph differs from torch by more than the tolerance; `folder` is unchanged.
    """
    if ("detector" in card) != (detector is not None):
        raise ValueError("a detection head and the card's [detector] are given together")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_encoders(vision, region, partial / WEIGHTS)
        reports = write_graphs(partial, vision, region, detector, unchanged, like)
        save_language(language, partial / "llm")
        shutil.copyfile(tokenizer, partial / "llm" / "tokenizer.json")
        write_card(partial, card, vision, region, detector)
        open_bundle(partial)
        move_bundle(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_bundle(folder), reports


def write_graphs(
    root: Path,
    vision: VisionModule,
    region: RegionModule | None,
    detector: DetectionHead | None,
    unchanged: Mapping[str, Path],
    like: Mapping[str, Path],
) -> list[ParityReport]:
    """Export all graphs and compare them with torch, except those that are copied."""
    for name, source in unchanged.items():
        shutil.copyfile(source, root / name)
    reports = []
    if VISION_GRAPH not in unchanged:
        reports.append(export_vision(vision, root / VISION_GRAPH, like.get(VISION_GRAPH)))
    if region is not None and REGION_GRAPH not in unchanged:
        reports.append(export_region(region, root / REGION_GRAPH, like.get(REGION_GRAPH)))
    if detector is not None and DETECTOR_GRAPH not in unchanged:
        reports.append(export_detector(detector, root / DETECTOR_GRAPH))
    for report in reports:
        report.check()
    return reports


def save_language(language: PreTrainedModel | Path, folder: Path) -> None:
    """Write the language model in transformers' format: config and safetensors."""
    if isinstance(language, PreTrainedModel):
        language.save_pretrained(folder)
        set_default_permissions(folder)
        return
    folder.mkdir()
    for source in language_files(language):
        shutil.copyfile(source, folder / source.name)


def language_files(folder: Path) -> list[Path]:
    """JSON files and weights of a language model in transformers' format.

    Only weights that transformers reads: some checkpoints hold a second layout too.
    """
    weights = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" in weights:
        weights = {"model.safetensors"}
    elif index.is_file():
        weights = set(read_index(index).values())
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and (path.suffix == ".json" or path.name in weights)
    )


def move_bundle(partial: Path, folder: Path) -> None:
    """Move a finished bundle to its folder: by renaming, or file by file if the folder exists.

    The card is removed first and moved last. A folder without a card is not a bundle, so an
    interruption leaves none rather than a mixture of two.
    """
    if not folder.exists():
        partial.rename(folder)
        return
    (folder / CARD).unlink(missing_ok=True)
    for source in sorted(partial.iterdir(), key=lambda path: path.name == CARD):
        target = folder / source.name
        if target.is_dir():
            shutil.rmtree(target)
        source.replace(target)


def write_card(
    root: Path,
    card: Mapping[str, Any],
    vision: VisionModule,
    region: RegionModule | None,
    detector: DetectionHead | None = None,
) -> None:
    """Write the card with the files in `root`, the architecture and the names of the levels.

    The revision is a digest of the files' digests.
    """
    own = (root / name for name in (WEIGHTS, VISION_GRAPH, REGION_GRAPH, DETECTOR_GRAPH))
    paths = sorted(path for path in (*own, *(root / "llm").rglob("*")) if path.is_file())
    files = [file_spec(root, path) for path in paths]
    digest = hashlib.sha256("".join(spec.sha256 for spec in files).encode()).hexdigest()
    modules = {"vision": vision, "region": region, "detector": detector}
    table = {
        **card,
        "vision": {**card["vision"], "levels": level_names(len(vision.level_shapes))},
        "revision": digest[:12],
        "architecture": {
            name: architecture_table(module) for name, module in modules.items() if module
        },
        "files": [asdict(spec) for spec in files],
    }
    with write_whole(root / CARD) as file:
        file.write(tomli_w.dumps(table).encode())


def given_tables(bundle: Bundle) -> dict[str, Any]:
    """Return the card's tables as they were passed to `write_bundle`, as a base of another card."""
    table = tomllib.loads((bundle.root / CARD).read_text(encoding="utf-8"))
    return {key: value for key, value in table.items() if key not in FOUND}


def save_encoders(vision: VisionModule, region: RegionModule | None, path: Path) -> None:
    """Write both encoders' weights under torch's names with the prefixes `vision.` and `region.`.

    Weights that float16 represents exactly are stored as float16.
    """
    modules = {"vision": vision, "region": region}
    weights = {
        f"{part}.{name}": smallest(value)
        for part, module in modules.items()
        for name, value in (module.state_dict().items() if module else ())
        if not name.endswith(COUNTERS)
    }
    save_file(weights, path)
    set_default_permissions(path.parent)


def smallest(values: Tensor) -> Tensor:
    """Return the values as float16 if it represents them exactly, else unchanged."""
    half = values.half()
    return (half if torch.equal(half.float(), values.float()) else values).contiguous()


def read_encoders(bundle: Bundle) -> tuple[VisionModule, RegionModule | None]:
    """Load the torch encoders of a bundle, in evaluation mode and float32.

    Raises:
        BundleError: Weights are missing or unknown, or the card names no torch definition.
    """
    vision, region = build(bundle.card)
    weights = load_file(bundle.file(WEIGHTS))
    for part, module in (("vision", vision), ("region", region)):
        if module is None:
            continue
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


def read_detector(bundle: Bundle) -> DetectionHead | None:
    """Load the torch definition of a bundle's detection head, in evaluation mode and float32.

    Returns:
        None for a bundle without one.

    Raises:
        BundleError: The graph does not have its weights, or the card names no torch definition.
    """
    head = build_detector(bundle.card)
    if head is None or bundle.card.detector is None:
        return None
    path = bundle.file(bundle.card.detector.graph)
    _, stored = read_model(path)
    weights = {
        name: torch.from_numpy(stored[name].copy()) for name in head.state_dict() if name in stored
    }
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:  # names, shapes
        raise BundleError(f"{path}: {message_of(error)}") from error
    return head.eval()
