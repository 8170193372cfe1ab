"""Sizes of a published model by one set of names, whatever its family calls them.

Thin over optimum's normalised configs. It knows configs, not weights.
"""

from dataclasses import dataclass
from typing import Any

from optimum.utils import NormalizedConfigManager, NormalizedTextConfig, NormalizedVisionConfig

from regionqa.errors import BundleError

UNLIMITED_CONTEXT = 2048
"""Context of a language model whose config names no longest position (ALiBi)."""


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a causal language model."""

    hidden_size: int
    """Width of the embeddings."""
    vocabulary: int
    """Rows of the embeddings."""
    layers: int
    context: int
    """Positions the model was trained for."""
    inner: int = 0
    """Width inside a layer's feed-forward part."""
    key_width: int = 0
    """Width of a layer's keys, and of its values: heads that share them count once."""


@dataclass(frozen=True)
class VisionSizes:
    """Sizes of a vision tower."""

    width: int
    """Channels of its hidden states."""
    layers: int
    side: int
    """Side of its square input, in pixels."""
    patch: int
    """Side of a patch, in pixels."""

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.patch


def text_sizes(config: Any) -> TextSizes:
    """Sizes in a transformers config; BundleError where it is no language model's."""
    sizes = normalised_config(config, NormalizedTextConfig)
    width, heads = number(sizes, "hidden_size"), number(sizes, "num_attention_heads")
    head_width = getattr(config, "head_dim", None) or width // heads
    return TextSizes(
        width,
        number(sizes, "vocab_size"),
        number(sizes, "num_layers"),
        number(sizes, "max_position_embeddings", UNLIMITED_CONTEXT),
        getattr(config, "intermediate_size", None) or 4 * width,
        number(sizes, "num_key_value_heads", heads) * head_width,
    )


def vision_sizes(config: Any) -> VisionSizes:
    """Sizes in a transformers config; BundleError where it is no vision tower's."""
    sizes = normalised_config(config, NormalizedVisionConfig)
    return VisionSizes(
        number(sizes, "hidden_size"),
        number(sizes, "num_hidden_layers"),
        number(sizes, "image_size"),
        number(sizes, "patch_size"),
    )


def normalised_config(config: Any, fallback: type) -> Any:
    """The config under optimum's names; under the fallback's where optimum has none for it."""
    try:
        kind = NormalizedConfigManager.get_normalized_config_class(config.model_type)
    except KeyError:
        kind = fallback
    return kind(config)


def number(sizes: Any, name: str, default: int | None = None) -> int:
    """One size; a pair of equal sides counts as one."""
    value = getattr(sizes, name, default)
    if value is None:
        value = default
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        kind = sizes.config.model_type
        raise BundleError(f"a model of type {kind!r}: {name} is {value!r}, one number is expected")
    return value
