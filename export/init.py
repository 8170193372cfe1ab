"""Assemble an untrained bundle from a vision encoder and a causal language model.

The projector and the region encoder are new. Sizes, preprocessing, prompt template and stop tokens
are read from the checkpoints.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from regionqa.bundles.model_config import TextSizes, VisionSizes, text_sizes, vision_sizes
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.bundles.store import Bundle
from regionqa.errors import BundleError
from regionqa.export.backbones import VisionPart, new_pixel_encoder, timm_part
from regionqa.export.bundle import write_bundle
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.multilevel import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.modules.tower import (
    TOWERS,
    ProjectorKind,
    TowerConfig,
    TowerVision,
    tower_table,
)
from regionqa.export.onnx.verify import ParityReport
from regionqa.export.sources.chat_templates import (
    PromptFormat,
    prompt_table,
    read_conversation,
    read_tokenizer,
)
from regionqa.export.sources.checkpoints import (
    end_ids,
    language_shapes,
    quiet_transformers,
    read_language,
    read_text_config,
    read_tower,
    runtime_of,
)
from regionqa.export.sources.image_processors import image_table
from regionqa.export.sources.timm_checkpoints import TimmCheckpoint
from regionqa.images.preprocessing import Fit
from regionqa.options import RegionSource

LEVELS = 4
"""Number of hidden states for a region encoder that reads levels, if the tower has so many."""
LONGEST_ANSWER = 512
ROOM = 16
"""Minimum number of positions for a question."""
SEED = 0
"""Seed of new weights, so that the same parts give the same bundle."""


@dataclass(frozen=True)
class BundleParts:
    """The parts of a new bundle."""

    vision: VisionModule
    region: RegionModule | None
    region_table: Mapping[str, Any]
    """The card's [region]; empty without a region encoder."""
    language: PreTrainedModel | Path
    sizes: TextSizes
    conversation: PromptFormat
    image: Mapping[str, Any]
    """The card's [image]."""
    region_input: RegionInput
    untrained: tuple[str, ...] = ()
    """Names of the parts with random weights."""
    notes: tuple[str, ...] = ()
    """Differences to the checkpoint's own processing, for people."""


@dataclass(frozen=True)
class InitResult:
    """A new bundle with the facts that `init` reports."""

    bundle: Bundle
    reports: tuple[ParityReport, ...]
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Number of weights by part."""
    untrained: tuple[str, ...] = ()
    """Names of the parts with random weights, which must be trained."""
    notes: tuple[str, ...] = ()
    """Differences to the checkpoint's own processing, for people."""


def init_bundle(
    vision: Path | TimmCheckpoint,
    language: Path,
    out: Path,
    *,
    name: str | None = None,
    region_input: RegionInput = RegionInput.features,
    region_source: RegionSource = RegionSource.levels,
    fit: Fit = Fit.squash,
    projector: ProjectorKind = ProjectorKind.mlp2x_gelu,
    origins: tuple[str, str] | None = None,
) -> InitResult:
    """Write an untrained bundle from checkpoints of a vision encoder and a causal language model.

    Args:
        vision: Folder of a vision tower, or a timm backbone.
        language: Folder of the language model.
        out: The new bundle's folder.
        name: The model's name; None: the folder's.
        region_input: How the language model gets a region.
        region_source: Input of the new region encoder.
        fit: How an image becomes a square. (A tower's own processor may crop regions away.)
        projector: Kind of the new projector.
        origins: Names of the two checkpoints for the card; None: their folders' names.

    Raises:
        BundleError: A folder does not hold what it should.
    """
    with quiet_transformers(), new_weights():
        text = read_text_config(language)
        sizes, tokenizer = text_sizes(text), read_tokenizer(language)
        source = region_source if region_input is RegionInput.features else None
        if isinstance(vision, TimmCheckpoint):
            part = timm_part(vision, source, sizes.hidden_size, fit, projector)
        else:
            part = tower_part(vision, source, sizes.hidden_size, fit, projector)
        parts = BundleParts(
            vision=part.vision,
            region=part.region,
            region_table=part.region_table,
            language=read_language(language),
            sizes=sizes,
            conversation=read_conversation(language, tokenizer, end_ids(language, text), None),
            image=part.image,
            region_input=region_input,
            untrained=("projector", *(["region encoder"] if part.region else [])),
            notes=part.notes,
        )
        first, second = origins or (vision.name, language.name)
        provenance = {"vision": first, "language": second}
        if part.licence:
            provenance["vision_licence"] = part.licence
        return assemble(parts, out, name or out.name, f"{first} and {second}", provenance)


def tower_part(
    folder: Path,
    source: RegionSource | None,
    hidden_size: int,
    fit: Fit,
    projector: ProjectorKind,
) -> VisionPart:
    """Create a vision encoder on a published tower, and a region encoder; as `timm_part`."""
    config, weights = read_tower(folder)
    tower = vision_sizes(config)
    image, notes = image_table(folder, tower.side, fit)
    levels, region, region_table = new_region_encoder(source, tower, hidden_size)
    encoder = TowerVision(
        TowerConfig(
            tower=tower_table(config),
            hidden_size=hidden_size,
            drop_class_token=TOWERS[config.model_type].first_tokens > 0,
            levels=levels,
            projector=projector,
        )
    )
    encoder.load_tower(weights)
    return VisionPart(encoder, region, region_table, image, tuple(notes))


def new_region_encoder(
    source: RegionSource | None, tower: VisionSizes, hidden_size: int
) -> tuple[tuple[int, ...], RegionModule | None, dict[str, Any]]:
    """Create an untrained region encoder; the tower's levels that it reads, and its [region] table.

    A further source is one more branch here. The encoder of `levels` is GPT4RoI's (section 3.2) in
    the tower's width. The encoder of `pixels` is the starter's with a new projector.

    Args:
        source: Input of the encoder; None: there is no encoder.
        tower: Sizes of the vision tower.
        hidden_size: Width of the language model's embeddings.
    """
    if source is None:
        return (), None, {}
    if source is RegionSource.pixels:
        return (), *new_pixel_encoder(hidden_size)
    indices = level_indices(tower.layers)
    levels, width = len(indices), max(16, tower.width // 16 * 16)
    config = MultiLevelConfig(
        input_size=tower.side,
        in_channels=(tower.width,) * levels,
        sizes=tuple(tower.grid * 2 ** (levels - 1 - index) for index in range(levels)),
        width=width,
        rounds=5,
        groups=width // 16,
        roi_size=14,
        position_width=width // 4,
        region_width=width,
        hidden_size=hidden_size,
        sides=(tower.grid,) * levels,
    )
    return indices, MultiLevelRegionEncoder(config), {"graph": "region.onnx", "tokens": 1}


def level_indices(layers: int) -> tuple[int, ...]:
    """Choose the hidden states for a region encoder, shallowest first.

    As in GPT4RoI, which reads 14, 17, 20 and 23 of 24, they are an eighth of the depth apart and
    end at the last but one. A tower of few layers gives fewer.
    """
    step = max(1, round(layers / 8))
    found = [layers - 1 - step * index for index in range(LEVELS)]
    return tuple(index for index in reversed(found) if index >= 1) or (max(0, layers - 1),)


def assemble(
    parts: BundleParts, out: Path, name: str, origin: str, provenance: Mapping[str, Any]
) -> InitResult:
    """Write the parts as a bundle and count them."""
    context, image_tokens = parts.sizes.context, parts.vision.image_tokens
    longest = min(LONGEST_ANSWER, context // 4)
    if image_tokens + ROOM + longest > context:
        raise BundleError(
            f"an image takes {image_tokens} tokens, and the language model reads no more than "
            f"{context}; with an answer of {longest} there is no room for a question"
        )
    check_vocabulary(parts)
    shapes, config = language_shapes(parts.language)
    state = f"untrained ({', '.join(parts.untrained)})" if parts.untrained else "as published"
    card = {
        "name": name,
        "summary": f"{origin}; {state}",
        "untrained": list(parts.untrained),
        "image": dict(parts.image),
        "vision": {"graph": "vision.onnx", "image_tokens": image_tokens},
        **({"region": dict(parts.region_table)} if parts.region else {}),
        "language": {
            "folder": "llm",
            "runtime": str(runtime_of(config, shapes)),
            "context": context,
            "max_new_tokens": longest,
            "stop": list(parts.conversation.stop),
        },
        "prompt": prompt_table(parts.conversation, parts.region_input),
        "provenance": {
            **provenance,
            "recipe": "regionqa init",
            "licence": "those of its parts, which see",
            **({"notes": list(parts.notes)} if parts.notes else {}),
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        tokenizer.write_text(parts.conversation.tokenizer, encoding="utf-8")
        bundle, reports = write_bundle(
            out, card, parts.vision, parts.region, parts.language, tokenizer
        )
    modules = {"projector": parts.vision.projector, "region encoder": parts.region}
    counts = {name: count_weights(module) for name, module in modules.items() if module is not None}
    tower = count_weights(parts.vision) - counts["projector"]
    counts = {"vision tower": tower, **counts}
    counts["language model"] = sum(prod(shape) for shape in shapes.values())
    return InitResult(bundle, tuple(reports), counts, parts.untrained, parts.notes)


def count_weights(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(weight.numel() for weight in module.parameters())


def check_vocabulary(parts: BundleParts) -> None:
    """BundleError if the tokenizer has an id without an embedding."""
    words = Tokenizer.from_str(parts.conversation.tokenizer).get_vocab(with_added_tokens=True)
    last = max(words.values(), default=0)
    if last >= parts.sizes.vocabulary:
        raise BundleError(
            f"the tokenizer's ids reach {last}, the language model has "
            f"{parts.sizes.vocabulary} embeddings"
        )


@contextmanager
def new_weights() -> Iterator[None]:
    """Seed torch for new weights, and restore the caller's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield
