"""Convert the checkpoints of a published model (GPT4RoI, PVIT) to a bundle.

The language model is written by `delta`. The encoders are built in the shapes of the published
weights, so that checkpoints of any size convert. The tokenizer is rebuilt from `tokenizer.model`.
Everything that differs between models is in the card's [sources] and [architecture].
"""

import json
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.initialization import no_init_weights

from regionqa.bundles.card import ModelCard, Sources
from regionqa.bundles.store import CARD, Bundle, open_bundle, shipped_folder
from regionqa.errors import BundleError
from regionqa.export.bundle import (
    COUNTERS,
    FOUND,
    REGION_GRAPH,
    VISION_GRAPH,
    WEIGHTS,
    move_bundle,
    smallest,
    write_card,
)
from regionqa.export.modules.base import RegionModule
from regionqa.export.modules.registry import REGION
from regionqa.export.modules.tower import TowerConfig, TowerVision, tower_table
from regionqa.export.onnx.export import export_region, export_vision
from regionqa.export.onnx.verify import ParityReport
from regionqa.export.sources.checkpoints import quiet_transformers, read_tower, runtime_of
from regionqa.export.sources.delta import (
    JOURNAL,
    ConversionLog,
    MergePlan,
    Progress,
    check_base,
    check_disk,
    fingerprint,
    make_plan,
    read_encoder_weights,
    stream,
)
from regionqa.export.sources.download import staging
from regionqa.export.sources.region_checkpoints import (
    multilevel_sizes,
    read_regionclip,
    regionclip_sizes,
)
from regionqa.export.sources.sentencepiece import (
    MODEL_FILE,
    legacy_llama_tokenizer,
    read_added_tokens,
)
from regionqa.export.sources.shards import Shards, TensorEntry, join, write_safetensors
from regionqa.schema import from_table, read_object

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps",
)  # fmt: skip
"""Keys of config.json that must be equal in a delta and its base."""
SIZES_OF = {"multilevel": multilevel_sizes, "regionclip": regionclip_sizes}
"""Functions that compute a region encoder's config from published weights and tower, by kind."""
ROOM = 4_000_000_000
"""Upper limit of the encoders' bytes on disk."""
UNKNOWN, BEGIN, END, PAD = "<unk>", "<s>", "</s>", "[PAD]"


@dataclass(frozen=True)
class PublishedCheckpoints:
    """Folders of the published parts, and the region encoder's file if it has one."""

    delta: Path
    base: Path
    vision: Path
    region: Path | None = None


@dataclass(frozen=True)
class ConversionResult:
    """A converted bundle with the facts that `download` reports."""

    bundle: Bundle
    reports: tuple[ParityReport, ...]
    notes: tuple[str, ...] = ()
    """Oddities of the checkpoints, for people."""


def convert_published(
    card: ModelCard,
    found: PublishedCheckpoints,
    out: Path,
    *,
    origins: Mapping[str, str],
    dtype: torch.dtype | None = None,
    any_base: bool = False,
    progress: Progress = lambda done, total: None,
) -> ConversionResult:
    """Convert a published model; continues an interrupted conversion.

    Args:
        card: The published model's card.
        found: The parts on this machine.
        out: The bundle's folder, which must not exist.
        origins: Names of the parts for the new card.
        dtype: Type of the language model's weights; None: the delta's.
        any_base: Skip `check_base`.
        progress: Called with the bytes done and in all.

    Raises:
        BundleError: The parts do not fit each other or the card.
    """
    assert card.sources is not None
    root = staging(out)
    root.mkdir(parents=True, exist_ok=True)
    delta, base = Shards(found.delta), Shards(found.base)
    plan = make_plan(delta, base, card.sources.parts, dtype)
    config = language_config(found)
    if not any_base:
        check_base(delta, base, plan)
    tokenizer, notes = published_tokenizer(found, card.sources, plan)
    check_disk(root, ROOM if (root / "llm").is_dir() else ROOM + plan.size)
    journal = ConversionLog.open(root / JOURNAL, fingerprint(delta, base, dtype=dtype))
    stream(delta, base, plan, root / "llm", journal, progress)
    runtime = write_config(root / "llm", config, plan, tokenizer)
    tokenizer.save(str(root / "llm" / "tokenizer.json"))
    with quiet_transformers():
        vision, region, reports = write_encoders(card, found, delta, plan, root)
    write_card(root, card_table(card, vision, runtime, origins), vision, region)
    check_written(root, journal)
    (root / JOURNAL).unlink()
    open_bundle(root)
    move_bundle(root, out)
    shutil.rmtree(root, ignore_errors=True)
    return ConversionResult(open_bundle(out), tuple(reports), tuple(notes))


def language_config(found: PublishedCheckpoints) -> dict[str, Any]:
    """Merge the config.json of delta and base; the delta's values have precedence.

    Raises:
        BundleError: The two state different sizes, or a size is missing.
    """
    tables = {}
    for folder in (found.delta, found.base):
        file = folder / "config.json"
        try:
            tables[folder] = read_object(file)
        except FileNotFoundError:
            tables[folder] = {}
    delta, base = tables[found.delta], tables[found.base]
    for key in SIZES:
        if key in delta and key in base and delta[key] != base[key]:
            raise BundleError(
                f"{found.base}: is the wrong base: its {key} is {base[key]}, that of "
                f"{found.delta} is {delta[key]}"
            )
    config = {**base, **delta}
    for key in ("hidden_size", "num_attention_heads", "rms_norm_eps"):
        if key not in config:
            raise BundleError(f"{found.delta}: its config.json lacks {key}")
    return config


def write_config(
    folder: Path, config: Mapping[str, Any], plan: MergePlan, tokenizer: Tokenizer
) -> str:
    """Write config.json and generation_config.json of a LLaMA; the runtime for the card.

    Sizes come from the weights and ids from the tokenizer; the ids published by PVIT are wrong.

    Raises:
        BundleError: The weights are not those of a LLaMA.
    """
    shapes = {name: entry.shape for name, entry in plan.language.items()}
    rows, width = shapes["model.embed_tokens.weight"]
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    pad = tokenizer.token_to_id(PAD)
    ids = {
        "bos_token_id": tokenizer.token_to_id(BEGIN),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(UNKNOWN) if pad is None else pad,
    }
    heads = config["num_attention_heads"]
    table = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "hidden_act": "silu",
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_theta": 10000.0,
        "max_position_embeddings": config.get("max_position_embeddings", 2048),
        "tie_word_embeddings": False,
        "dtype": str(plan.language["model.norm.weight"].dtype).removeprefix("torch."),
        **ids,
    }
    runtime = runtime_of(table, shapes)
    if runtime != "native":
        raise BundleError(f"{folder}: the weights are not those of a LLaMA that is known")
    for name, content in (("config.json", table), ("generation_config.json", ids)):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return str(runtime)


def published_tokenizer(
    found: PublishedCheckpoints, sources: Sources, plan: MergePlan
) -> tuple[Tokenizer, list[str]]:
    """Build the tokenizer of the model's training; also notes about oddities.

    Reads the delta's `tokenizer.model` and `added_tokens.json`, or else the base's file and the
    card's tokens.

    Raises:
        BundleError: There is no tokenizer, or an id has no embedding.
    """
    notes = []
    files = [folder / MODEL_FILE for folder in (found.delta, found.base)]
    there = [file for file in files if file.is_file()]
    if not there:
        raise BundleError(f"{found.delta}: has no {MODEL_FILE}, nor has the base {found.base}")
    if len(there) == 2 and there[0].read_bytes() != there[1].read_bytes():
        notes.append(f"{there[1]} differs from {there[0]}: is this the right base?")
    listed = read_added_tokens(found.delta) if there[0] == files[0] else ()
    tokenizer = legacy_llama_tokenizer(there[0], listed or sources.added)
    rows = plan.language["model.embed_tokens.weight"].shape[0]
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > rows:
        raise BundleError(
            f"{there[0]}: has {size} tokens with those that are added, the model has {rows} "
            "embeddings; the two are not of one model"
        )
    if size < rows:
        notes.append(f"{there[0]}: has {size} tokens, the model {rows} embeddings")
    return tokenizer, notes


def write_encoders(
    card: ModelCard, found: PublishedCheckpoints, delta: Shards, plan: MergePlan, root: Path
) -> tuple[TowerVision, RegionModule, list[ParityReport]]:
    """Write graphs and torch weights of the encoders, one after the other to save memory.

    The returned modules are on torch's meta device.
    """
    width = plan.language["model.norm.weight"].shape[0]
    vision = build_vision(card, found.vision, read_encoder_weights(delta, plan, "vision."), width)
    reports = [export_vision(vision, root / VISION_GRAPH)]
    save_weights("vision", vision, root / "vision.safetensors")
    vision.to("meta")
    weights = read_encoder_weights(delta, plan, "region.")
    region = build_region(card, found.region, weights, vision, width)
    del weights
    reports.append(export_region(region, root / REGION_GRAPH))
    save_weights("region", region, root / "region.safetensors")
    region.to("meta")
    for report in reports:
        report.check()
    join([root / "vision.safetensors", root / "region.safetensors"], root / WEIGHTS)
    return vision, region, reports


def save_weights(part: str, module: nn.Module, path: Path) -> None:
    """Write one encoder's weights by a bundle's names; exact ones as float16 (see `smallest`)."""
    state = {n: v for n, v in module.state_dict().items() if not n.endswith(COUNTERS)}
    entries = {
        f"{part}.{n}": TensorEntry(tuple(v.shape), smallest(v).dtype) for n, v in state.items()
    }
    write_safetensors(path, entries, ((f"{part}.{n}", smallest(v)) for n, v in state.items()))


def build_vision(
    card: ModelCard, folder: Path, projector: Mapping[str, Tensor], width: int
) -> TowerVision:
    """Build the vision encoder from a tower's folder and the delta's projector."""
    config, weights = read_tower(folder)
    settings = {k: v for k, v in card.architecture["vision"].items() if k != "kind"}
    table = {**settings, "tower": tower_table(config), "hidden_size": width}
    vision = TowerVision(from_table(TowerConfig, table, f"card of {card.name}"))
    vision.load_tower(weights)
    load_state(vision, {**{f"tower.{n}": v for n, v in vision.tower.state_dict().items()},
                        **projector}, "the delta's projector")  # fmt: skip
    return vision


def build_region(
    card: ModelCard,
    file: Path | None,
    weights: Mapping[str, Tensor],
    vision: TowerVision,
    width: int,
) -> RegionModule:
    """Build the region encoder of the card's kind in the sizes of its published weights."""
    settings = dict(card.architecture["region"])
    kind = settings.pop("kind")
    state = {**weights, **(read_regionclip(file).tensors if file else {})}
    try:
        settings |= SIZES_OF[kind](state, vision)
    except KeyError as error:
        raise BundleError(f"weights of the region encoder: {error} is missing") from error
    config, definition = REGION[kind]
    shape: Any = from_table(config, {**settings, "hidden_size": width}, f"card of {card.name}")
    with no_init_weights():  # all are replaced, and untouched memory is not allocated
        module: Any = definition(shape)
    load_state(module, state, "weights of the region encoder")
    assert isinstance(module, RegionModule)
    return module


def card_table(
    card: ModelCard, vision: TowerVision, runtime: str, origins: Mapping[str, str]
) -> dict[str, Any]:
    """Return the tables of the new bundle's card: the published model's without [sources]."""
    path = shipped_folder() / card.name / CARD
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    table = {key: value for key, value in table.items() if key not in (*FOUND, "sources")}
    table["image"]["size"] = vision.side
    table["vision"]["image_tokens"] = vision.image_tokens
    table["language"]["runtime"] = runtime
    table["provenance"] |= origins
    return table


def check_written(root: Path, journal: ConversionLog) -> None:
    """BundleError if a shard on disk, by the card's new digests, is not what was written."""
    table = tomllib.loads((root / CARD).read_text(encoding="utf-8"))
    found = {Path(entry["path"]).name: entry["sha256"] for entry in table["files"]}
    wrong = [name for name, sha256 in journal.finished.items() if found.get(name) != sha256]
    if wrong:
        raise BundleError(
            f"{root / 'llm' / wrong[0]}: reads back differently from what was written; run again, "
            "and if this recurs have the disk checked"
        )


def load_state(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights by name; BundleError if one is missing, unknown or of another size."""
    try:
        missing, unknown = module.load_state_dict(dict(state), strict=False, assign=True)
    except RuntimeError as error:  # sizes
        raise BundleError(f"{what}: {' '.join(str(error).split())}") from error
    if missing or unknown:
        raise BundleError(f"{what}: missing {sorted(missing)}, unknown {sorted(unknown)}")
