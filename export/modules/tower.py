"""A published vision tower (CLIP, SigLIP) with the projector of LLaVA (arXiv 2310.03744).

The tower is transformers' module without the layers after the last one that is read. One hidden
state, mapped by the projector, gives the image tokens; further ones are maps for a region encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.activations import ACT2FN
from transformers.initialization import no_init_weights

from regionqa.bundles.model_config import VisionSizes, vision_sizes
from regionqa.errors import BundleError
from regionqa.export.modules.base import VisionModule


@dataclass(frozen=True)
class TowerKind:
    """Properties of a tower that its config does not state."""

    first_tokens: int
    """Number of tokens before the patches."""
    after: tuple[str, ...]
    """Modules after the last layer, which do not affect hidden states and are left out."""


LAYERS = "encoder.layers."
"""Prefix of the layers' weights in all kinds of towers."""
TOWERS: Mapping[str, TowerKind] = {
    "clip_vision_model": TowerKind(first_tokens=1, after=("post_layernorm",)),
    "siglip_vision_model": TowerKind(first_tokens=0, after=("post_layernorm", "head")),
}
"""Supported towers by transformers' `model_type`."""
NOTES = ("transformers_version", "dtype", "torch_dtype", "architectures", "_name_or_path")
"""Keys of a transformers config that do not affect the tower."""


class ProjectorKind(StrEnum):
    """The module that maps the tower's features into the language model."""

    linear = "linear"
    """One linear layer (LLaVA 1, GPT4RoI)."""
    mlp2x_gelu = "mlp2x_gelu"
    """Two linear layers with an activation between them (LLaVA 1.5)."""


@dataclass(frozen=True)
class TowerConfig:
    """Shape of a `TowerVision`. ValueError for an unknown tower, or a layer it does not have."""

    tower: Mapping[str, Any]
    """The tower's transformers config: `model_type` and values that are not defaults."""
    hidden_size: int
    """Width of the language model's embeddings."""
    feature_layer: int = -2
    """The hidden state that becomes image tokens. 0 is the input of the first layer, k the output
    of layer k; negative ones count from the last."""
    drop_class_token: bool = True
    """Whether its first token is left out."""
    levels: tuple[int, ...] = ()
    """Hidden states that the region encoder reads as maps, shallowest first."""
    projector: ProjectorKind = ProjectorKind.mlp2x_gelu
    """Kind of the projector."""
    activation: str = "gelu"
    """Activation of a two-layer projector, by transformers' name."""
    bias: bool = True
    """Whether the projector's layers have a bias."""

    def __post_init__(self) -> None:
        kind = self.tower.get("model_type")
        if kind not in TOWERS:
            raise ValueError(f"tower: model_type is {kind!r}; known are {', '.join(TOWERS)}")
        layers = vision_sizes(self.transformers).layers
        for index in (self.feature_layer, *self.levels):
            if not -layers - 1 <= index <= layers:
                raise ValueError(f"tower: it has {layers} layers, no hidden state {index}")
        if self.activation not in ACT2FN:
            raise ValueError(f"projector: the activation {self.activation!r} is unknown")

    @property
    def transformers(self) -> Any:
        """The tower's config as a transformers object."""
        try:
            return AutoConfig.for_model(**self.tower)
        except Exception as error:  # of several libraries, some of them plain
            raise ValueError(f"tower: {' '.join(str(error).split())}") from error

    @property
    def sizes(self) -> VisionSizes:
        """Sizes of the complete tower."""
        return vision_sizes(self.transformers)

    def position(self, index: int) -> int:
        """Return the index of a hidden state counted from the first."""
        return index if index >= 0 else self.sizes.layers + 1 + index


class LlavaProjector(nn.Module):
    """Two linear layers with an activation in between; weights have LLaVA's names."""

    def __init__(
        self, width: int, hidden_size: int, activation: str = "gelu", bias: bool = True
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden_size, bias=bias)
        self.act = ACT2FN[activation]
        self.linear_2 = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, hidden_size)."""
        tokens: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return tokens


def new_projector(
    kind: ProjectorKind, width: int, hidden_size: int, activation: str = "gelu", bias: bool = True
) -> nn.Module:
    """Create a projector (B, T, width) -> (B, T, hidden_size) with random weights."""
    if kind is ProjectorKind.linear:
        return nn.Linear(width, hidden_size, bias=bias)
    return LlavaProjector(width, hidden_size, activation, bias)


class TowerVision(VisionModule):
    """Image tokens and maps from the hidden states of a published tower.

    The tower's weights are undefined until `load_tower`; those of the projector are random.
    """

    config: TowerConfig

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        sizes, kind = config.sizes, TOWERS[config.tower["model_type"]]
        self.feature_layer = config.position(config.feature_layer)
        self.levels = tuple(config.position(level) for level in config.levels)
        self.depth = max(1, self.feature_layer, *self.levels)
        cut = config.transformers
        cut.num_hidden_layers = self.depth
        with no_init_weights():  # always loaded later; initializing them takes half a minute
            self.tower = AutoModel.from_config(cut, dtype=torch.float32)
        for name in kind.after:
            setattr(self.tower, name, nn.Identity())
        self.width, self.grid, self.side = sizes.width, sizes.grid, sizes.side
        self.first_tokens = kind.first_tokens
        self.projector = new_projector(
            config.projector, sizes.width, config.hidden_size, config.activation, config.bias
        )

    @property
    def input_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.side

    @property
    def image_tokens(self) -> int:
        """Patches, and a class token that is not dropped."""
        return self.grid**2 + self.first_tokens - self.config.drop_class_token

    @property
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, g, g) of every level."""
        return ((self.width, self.grid, self.grid),) * len(self.levels)

    def features(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return one hidden state (B, T, C), and one map (B, C, g, g) per level."""
        states = self.tower(pixel_values, output_hidden_states=True).hidden_states
        found = states[self.feature_layer]  # (B, first_tokens + g * g, C)
        if self.config.drop_class_token:
            found = found[:, 1:]  # (B, T, C)
        return found, [self._map(states[level]) for level in self.levels]

    def _map(self, state: Tensor) -> Tensor:
        """Return a hidden state (B, first_tokens + g * g, C) as a map (B, C, g, g)."""
        patches = state[:, self.first_tokens :].transpose(1, 2)  # (B, C, g * g)
        return patches.reshape(-1, self.width, self.grid, self.grid)

    def load_tower(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a complete tower by name; float32 tensors are not copied.

        Weights of modules that this tower leaves out are ignored.

        Raises:
            BundleError: A weight is missing or unknown.
        """
        kind = TOWERS[self.config.tower["model_type"]]
        own = {n: value.float() for n, value in weights.items() if not self._is_cut(n, kind)}
        missing, unknown = self.tower.load_state_dict(own, strict=False, assign=True)
        if missing or unknown:
            raise BundleError(f"weights of the vision tower: missing {missing}, unknown {unknown}")

    def _is_cut(self, name: str, kind: TowerKind) -> bool:
        """Return whether a weight belongs to a module that is left out."""
        if name.startswith(LAYERS):
            return int(name.removeprefix(LAYERS).split(".")[0]) >= self.depth
        return name.split(".")[0] in kind.after


def tower_table(config: Any) -> dict[str, Any]:
    """Reduce a transformers config to a card's table: `model_type` and non-default values.

    Raises:
        BundleError: It is not a supported tower, or a table without null cannot express it.
    """
    kind = config.model_type
    if kind not in TOWERS:
        raise BundleError(
            f"a model of type {kind!r} is not a supported vision tower; "
            "supported are CLIP and SigLIP"
        )
    whole, default = config.to_dict(), AutoConfig.for_model(kind).to_dict()
    table = {
        key: value
        for key, value in whole.items()
        if value is not None and value != default.get(key) and key not in NOTES
    }
    table = {"model_type": kind, **table}
    back = AutoConfig.for_model(**table).to_dict()
    changed = [key for key in whole if key not in NOTES and whole[key] != back.get(key)]
    if changed:
        raise BundleError(f"the vision tower's config: {changed[0]} cannot be written to a card")
    return table
