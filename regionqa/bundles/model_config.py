"""Sizes in transformers configs by one set of names, through optimum's normalised configs.

optimum, which loads torch, is imported inside the functions, so that listing models does not wait.
"""

from dataclasses import dataclass
from typing import Any

from regionqa.errors import BundleError

UNLIMITED_CONTEXT = 2048
"""Context of a language model whose config has no `max_position_embeddings` (ALiBi)."""


@dataclass(frozen=True)
class TextSizes:
    """Sizes of a causal language model."""

    hidden_size: int
    """Width of the embeddings."""
    vocabulary: int
    """Rows of the embeddings."""
    layers: int
    context: int
    """Positions of the model's training."""
    inner: int = 0
    """Inner width of a layer's feed-forward part."""
    key_width: int = 0
    """Width of a layer's keys (and of its values); shared heads count once."""


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
    """Sizes in a transformers config; BundleError if it is not a language model's."""
    from optimum.utils import NormalizedTextConfig

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
    """Sizes in a transformers config; BundleError if it is not a vision tower's."""
    from optimum.utils import NormalizedVisionConfig

    sizes = normalised_config(config, NormalizedVisionConfig)
    return VisionSizes(
        number(sizes, "hidden_size"),
        number(sizes, "num_hidden_layers"),
        number(sizes, "image_size"),
        number(sizes, "patch_size"),
    )


def normalised_config(config: Any, fallback: type) -> Any:
    """Return the config under optimum's names; `fallback` is used for types unknown to optimum."""
    from optimum.utils import NormalizedConfigManager

    try:
        kind = NormalizedConfigManager.get_normalized_config_class(config.model_type)
    except KeyError:
        kind = fallback
    return kind(config)


def number(sizes: Any, name: str, default: int | None = None) -> int:
    """Return one size; two equal sides count as one number."""
    value = getattr(sizes, name, default)
    if value is None:
        value = default
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        kind = sizes.config.model_type
        raise BundleError(f"a model of type {kind!r}: {name} is {value!r}, expected one number")
    return value
