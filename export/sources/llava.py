"""Convert a LLaVA checkpoint in transformers' format to a bundle with the same answers.

The checkpoint is split into vision tower, projector and language model. Variants that a bundle
cannot reproduce are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration, PreTrainedModel

from regionqa.bundles.model_config import text_sizes, vision_sizes
from regionqa.bundles.prompt_rules import RegionInput
from regionqa.errors import BundleError
from regionqa.export.init import (
    BundleParts,
    InitResult,
    assemble,
    new_region_encoder,
    new_weights,
)
from regionqa.export.modules.tower import ProjectorKind, TowerConfig, TowerVision, tower_table
from regionqa.export.sources.chat_templates import check_ids, read_conversation, read_tokenizer
from regionqa.export.sources.checkpoints import as_list, load_model, quiet_transformers, read_config
from regionqa.export.sources.image_processors import image_table
from regionqa.images.preprocessing import Fit
from regionqa.options import RegionSource

OTHERS: Mapping[str, str] = {
    "llava_next": "cuts images into tiles",
    "llava_next_video": "reads videos",
    "llava_onevision": "cuts images into tiles",
    "video_llava": "reads videos",
    "vipllava": "joins several hidden states",
}
"""Variants of LLaVA, and what a bundle cannot reproduce of them."""


def llava_bundle(
    folder: Path,
    out: Path,
    *,
    name: str | None = None,
    region_input: RegionInput = RegionInput.coordinates,
    region_source: RegionSource = RegionSource.levels,
    fit: Fit | None = None,
    origin: str | None = None,
) -> InitResult:
    """Write a bundle from a `LlavaForConditionalGeneration` checkpoint in its own precision.

    Without a region the answers are those of transformers' `generate`. With `features` a new region
    encoder is added, which must be trained. `fit` None is the checkpoint's own; `origin` is the
    checkpoint's name on the card. Other arguments are those of `init_bundle`.

    Raises:
        BundleError: The checkpoint cannot be reproduced faithfully.
    """
    with quiet_transformers(), new_weights():
        config = read_config(folder)
        feature_layer = check_config(folder, config)
        tower, sizes = vision_sizes(config.vision_config), text_sizes(config.text_config)
        tokenizer = read_tokenizer(folder)
        image, notes = image_table(folder, tower.side, fit)
        source = region_source if region_input is RegionInput.features else None
        levels, region, region_table = new_region_encoder(source, tower, sizes.hidden_size)
        vision = TowerVision(
            TowerConfig(
                tower=tower_table(config.vision_config),
                hidden_size=sizes.hidden_size,
                feature_layer=feature_layer,
                drop_class_token=config.vision_feature_select_strategy == "default",
                levels=levels,
                projector=ProjectorKind.mlp2x_gelu,
                activation=config.projector_hidden_act,
                bias=config.multimodal_projector_bias,
            )
        )
        model = load_model(LlavaForConditionalGeneration, folder, dtype="auto")
        vision.load_tower(model.model.vision_tower.state_dict())
        vision.projector.load_state_dict(model.model.multi_modal_projector.state_dict())
        ends = as_list(model.generation_config.eos_token_id)
        image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
        conversation = read_conversation(folder, tokenizer, ends, image_token)
        check_ids(conversation, tokenizer, image_token)
        parts = BundleParts(
            vision=vision,
            region=region,
            region_table=region_table,
            language=language_model(model),
            sizes=sizes,
            conversation=conversation,
            image=image,
            region_input=region_input,
            untrained=("region encoder",) if region else (),
            notes=tuple(notes),
        )
        called = origin or folder.name
        return assemble(parts, out, name or out.name, called, {"checkpoint": called})


def check_config(folder: Path, config: Any) -> int:
    """Return which hidden state becomes image tokens; BundleError if the checkpoint is no LLaVA."""
    kind = config.model_type
    if kind in OTHERS:
        raise BundleError(f"{folder}: a model of type {kind!r} {OTHERS[kind]}; only LLaVA itself")
    if kind != "llava":
        raise BundleError(f"{folder}: a model of type {kind!r} is no LLaVA")
    if hasattr(config, "mm_vision_tower"):
        raise BundleError(
            f"{folder}: is in LLaVA's own format; take its conversion to transformers' format"
        )
    if getattr(config, "quantization_config", None):
        raise BundleError(f"{folder}: is quantised; take the checkpoint it was made from")
    layers = config.vision_feature_layer
    layers = layers if isinstance(layers, list | tuple) else [layers]
    if not all(isinstance(layer, int) for layer in layers):
        raise BundleError(f"{folder}: vision_feature_layer is {layers}, not a whole number")
    if len(layers) != 1:
        raise BundleError(f"{folder}: joins hidden states {layers} into one; only one can be read")
    return int(layers[0])


def language_model(model: Any) -> PreTrainedModel:
    """Return the language model of a LLaVA as a causal language model that shares its weights."""
    config = model.config.text_config
    config.tie_word_embeddings = model.config.tie_word_embeddings
    inner = model.model.language_model.state_dict()
    with torch.device("meta"):  # no memory for weights that are replaced
        causal = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    prefix = causal.base_model_prefix
    weights = {f"{prefix}.{name}": value for name, value in inner.items()}
    heads = [
        name for name, part in causal.named_modules() if part is causal.get_output_embeddings()
    ]
    weights[f"{heads[0]}.weight"] = model.lm_head.weight
    missing, unknown = causal.load_state_dict(weights, strict=False, assign=True)
    if missing or unknown:
        raise BundleError(f"the language model: missing {missing}, unknown {unknown}")
    causal.tie_weights()
    return causal.eval()
