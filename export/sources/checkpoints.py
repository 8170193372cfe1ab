"""Read checkpoints in transformers' format; every failure is a BundleError."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from regionqa.bundles.card import LanguageRuntime
from regionqa.errors import BundleError, message_of
from regionqa.export.bundle import language_files
from regionqa.export.modules.tower import tower_table
from regionqa.language.decoders import LlamaDecoder
from regionqa.schema import read_object


def read_tower(folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read config and weights of a vision tower, or of the vision tower of a CLIP or SigLIP."""
    config = read_config(folder)
    config = getattr(config, "vision_config", None) or config
    tower_table(config)  # raises for other models
    model = load_model(AutoModel, folder, config=config, dtype=torch.float32)
    return config, model.state_dict()


def read_text_config(folder: Path) -> Any:
    """Read the config of a causal language model; BundleError if it is another model."""
    config = read_config(folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BundleError(
            f"{folder}: a model of type {config.model_type!r} is no causal language model"
        )
    return config


def read_language(folder: Path) -> PreTrainedModel | Path:
    """Find a causal language model's folder to copy; load the model if it has .bin files only."""
    if any(path.suffix == ".safetensors" for path in language_files(folder)):
        return folder
    model: PreTrainedModel = load_model(AutoModelForCausalLM, folder, dtype="auto")
    return model


def read_config(folder: Path) -> Any:
    """Read the transformers config in a folder; BundleError if there is none, or it is unknown."""
    if not (folder / "config.json").is_file():
        raise BundleError(f"{folder}: is no checkpoint in transformers' format: no config.json")
    try:
        # None, the default, would ask at the terminal whether to run code of the checkpoint
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # many kinds
        reason = message_of(error)
        raise BundleError(f"{folder}: transformers does not know its config: {reason}") from error


def load_model(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a model in evaluation mode; BundleError if it is unreadable or incomplete."""
    try:
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # many kinds
        reason = message_of(error)
        raise BundleError(f"{folder}: transformers cannot load it: {reason}") from error
    if report["missing_keys"]:  # transformers would initialize them randomly
        raise BundleError(f"{folder}: {min(report['missing_keys'])} is missing")
    return model.eval()


def end_ids(folder: Path, config: Any) -> list[int]:
    """Read the ids of the end tokens in the checkpoint's generation config, or else its config."""
    found = getattr(config, "eos_token_id", None)
    file = folder / "generation_config.json"
    if file.is_file():
        found = read_object(file).get("eos_token_id") or found
    ids = as_list(found)
    if not all(isinstance(each, int) for each in ids):
        raise BundleError(f"{folder}: eos_token_id is {found!r}, not a whole number or several")
    return ids


def as_list(ids: int | list[int] | None) -> list[int]:
    """Normalize one id, several or none to a list."""
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def language_shapes(
    language: PreTrainedModel | Path,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the shapes of a language model's weights, and its config."""
    if isinstance(language, PreTrainedModel):
        weights = dict(language.named_parameters())  # tied weights appear once
        return {name: tuple(weight.shape) for name, weight in weights.items()}, (
            language.config.to_dict()
        )
    shapes = {}
    for file in language_files(language):
        if file.suffix != ".safetensors":
            continue
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes, read_object(language / "config.json")


def runtime_of(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> LanguageRuntime:
    """Return the native decoder if it supports the config and every weight, else transformers."""
    weights = {
        name.removeprefix("model."): torch.empty(shape, device="meta")
        for name, shape in shapes.items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    try:
        LlamaDecoder(dict(config), weights)
    except (ValueError, KeyError, TypeError):
        return LanguageRuntime.transformers
    return LanguageRuntime.native


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress transformers' progress bars and reports; relevant ones become errors here."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
