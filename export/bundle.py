"""Torch modules and a card -> a bundle on disk, and the way back to the modules.

The folder appears whole or not at all: it is written beside its place, every graph is compared
with torch, and only then it is moved there. It does not know how the modules were trained.
"""

import hashlib
import json
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
from regionqa.errors import BundleError
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.registry import architecture_table, build
from regionqa.export.onnx.export import export_region, export_vision
from regionqa.export.onnx.interface import level_names
from regionqa.export.onnx.verify import ParityReport

WEIGHTS = "encoders.safetensors"
VISION_GRAPH, REGION_GRAPH = "vision.onnx", "region.onnx"
FOUND = ("files", "revision", "architecture")
"""Keys of a card that are found when it is written."""
COUNTERS = ("num_batches_tracked",)
"""Buffers of BatchNorm that only its training without momentum reads; dropped by name."""


def write_bundle(
    folder: Path,
    card: Mapping[str, Any],
    vision: VisionModule,
    region: RegionModule | None,
    language: PreTrainedModel | Path,
    tokenizer: Path,
    unchanged: Mapping[str, Path] = MappingProxyType({}),
) -> tuple[Bundle, list[ParityReport]]:
    """Write a bundle and open it.

    card: the card's tables without `files`, `revision`, `architecture` and the vision encoder's
    `levels`, which are found here.
    language: a model, whose weights are stored as they are, or a folder to copy.
    tokenizer: a tokenizer.json. unchanged: graphs that were compared before, to be copied.
    What `folder` holds beside a bundle stays there. Raises ExportError where a graph differs from
    torch by more than the tolerance; then `folder` is left as it was.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_encoders(vision, region, partial / WEIGHTS)
        reports = write_graphs(partial, vision, region, unchanged)
        save_language(language, partial / "llm")
        shutil.copyfile(tokenizer, partial / "llm" / "tokenizer.json")
        write_card(partial, card, vision, region)
        open_bundle(partial)
        move_bundle(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_bundle(folder), reports


def write_graphs(
    root: Path,
    vision: VisionModule,
    region: RegionModule | None,
    unchanged: Mapping[str, Path],
) -> list[ParityReport]:
    """Both graphs, each compared with torch unless it is copied."""
    for name, source in unchanged.items():
        shutil.copyfile(source, root / name)
    reports = []
    if VISION_GRAPH not in unchanged:
        reports.append(export_vision(vision, root / VISION_GRAPH))
    if region is not None and REGION_GRAPH not in unchanged:
        reports.append(export_region(region, root / REGION_GRAPH))
    for report in reports:
        report.check()
    return reports


def save_language(language: PreTrainedModel | Path, folder: Path) -> None:
    """The language model in transformers' own format: config and safetensors."""
    if isinstance(language, PreTrainedModel):
        language.save_pretrained(folder)
        return
    folder.mkdir()
    for source in language_files(language):
        shutil.copyfile(source, folder / source.name)


def language_files(folder: Path) -> list[Path]:
    """JSON files and weights of a language model in transformers' format.

    Of the weights those that transformers reads: some checkpoints hold them in another layout too.
    """
    weights = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" in weights:
        weights = {"model.safetensors"}
    elif index.is_file():
        weights = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and (path.suffix == ".json" or path.name in weights)
    )


def move_bundle(partial: Path, folder: Path) -> None:
    """Put a finished bundle in its place: at once, or, into a folder that is there, card last.

    A folder without a card is no bundle, so a kill in between leaves none rather than a mixture.
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
    root: Path, card: Mapping[str, Any], vision: VisionModule, region: RegionModule | None
) -> None:
    """The card with the files found in `root`; its revision is a digest of theirs.

    The names of the vision encoder's maps come from the encoder too.
    """
    own = (root / name for name in (WEIGHTS, VISION_GRAPH, REGION_GRAPH))
    paths = sorted(path for path in (*own, *(root / "llm").rglob("*")) if path.is_file())
    files = [file_spec(root, path) for path in paths]
    digest = hashlib.sha256("".join(spec.sha256 for spec in files).encode()).hexdigest()
    modules = {"vision": vision, "region": region}
    table = {
        **card,
        "vision": {**card["vision"], "levels": level_names(len(vision.level_shapes))},
        "revision": digest[:12],
        "architecture": {
            name: architecture_table(module) for name, module in modules.items() if module
        },
        "files": [asdict(spec) for spec in files],
    }
    (root / CARD).write_text(tomli_w.dumps(table), encoding="utf-8")


def given_tables(bundle: Bundle) -> dict[str, Any]:
    """The card's tables as they were given to `write_bundle`, to write another card from."""
    table = tomllib.loads((bundle.root / CARD).read_text(encoding="utf-8"))
    return {key: value for key, value in table.items() if key not in FOUND}


def save_encoders(vision: VisionModule, region: RegionModule | None, path: Path) -> None:
    """Both encoders' weights, keys `vision.` and `region.` and torch's names.

    In half precision where that loses nothing.
    """
    modules = {"vision": vision, "region": region}
    weights = {
        f"{part}.{name}": smallest(value)
        for part, module in modules.items()
        for name, value in (module.state_dict().items() if module else ())
        if not name.endswith(COUNTERS)
    }
    save_file(weights, path)


def smallest(values: Tensor) -> Tensor:
    """The values as float16 where it holds them exactly, else as they are."""
    half = values.half()
    return (half if torch.equal(half.float(), values.float()) else values).contiguous()


def read_encoders(bundle: Bundle) -> tuple[VisionModule, RegionModule | None]:
    """The torch encoders of a bundle, in evaluation mode and float32; every key must be known."""
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
