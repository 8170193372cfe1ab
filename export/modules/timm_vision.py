"""A backbone of timm with feature maps: image tokens from its last map, levels from any.

timm names the architectures and defines their layers; weights come from its checkpoints.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from regionqa.errors import BundleError, message_of
from regionqa.export.modules.base import VisionModule
from regionqa.export.modules.folding import fold_batch_norm
from regionqa.export.modules.tower import ProjectorKind, new_projector


@dataclass(frozen=True)
class TimmConfig:
    """Shape of a `TimmVision`. ValueError for an unknown architecture, or sizes that do not fit."""

    name: str
    """Architecture, by timm's name without a tag, such as tf_efficientnet_lite2."""
    input_size: int
    """Side of the square input, in pixels."""
    hidden_size: int
    """Width of the language model's embeddings."""
    levels: tuple[int, ...] = ()
    """Maps that the region encoder reads, shallowest first, as indices of timm's `feature_info`;
    negative ones count from the last."""
    top: bool = False
    """Whether the map after the last convolution is read, where the architecture has one: image
    tokens come from it, and it is the last level, if there are levels."""
    norm: bool = False
    """Whether the backbone's last normalization is applied to every map (transformers)."""
    pixels: int = 0
    """The first level is the input averaged over squares of so many pixels; 0: it is no level."""
    token_grid: int = 4
    """Rows and columns to which the last map is averaged; each cell is an image token."""
    token_width: int = 0
    """Width of a layer with ReLU between cells and projector; 0: none."""
    scene_token: bool = False
    """Whether a first token is the mean of the last map, through a layer of its own."""
    projector: ProjectorKind = ProjectorKind.linear
    """Kind of the projector."""
    folded: bool = False
    """Whether batch normalization is part of the convolutions; see `TimmVision.folded`."""

    def __post_init__(self) -> None:
        if not timm.is_model(self.name):
            raise ValueError(f"name: timm {timm.__version__} has no architecture {self.name!r}")
        if self.token_grid < 1:
            raise ValueError(f"token_grid is {self.token_grid}, not at least 1")
        if self.pixels and self.input_size % self.pixels:
            raise ValueError(f"pixels {self.pixels} does not divide input_size {self.input_size}")
        if self.pixels and not self.levels:
            raise ValueError("pixels: has no effect without levels")

    @property
    def maps_read(self) -> int:
        """Number of the backbone's maps that are levels, if there are levels."""
        return len(self.levels) + self.top


class TimmBackbone(nn.Module):
    """Some of a timm model's maps; modules that they do not depend on are left out.

    Always in evaluation mode: batch normalization keeps its statistics, in training too.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.model = create_model(config)
        if not hasattr(self.model, "forward_intermediates"):
            raise BundleError(f"timm's {config.name}: has no feature maps")
        count = len(map_table(self.model))
        self.levels = [level + count if level < 0 else level for level in config.levels]
        if self.levels != sorted({level for level in self.levels if 0 <= level < count}):
            raise BundleError(
                f"timm's {config.name}: levels are {list(config.levels)}; it has maps 0 to "
                f"{count - 1}, to be named once each, shallowest first"
            )
        self.indices = self.levels or [count - 1]
        if not config.top and self.indices[-1] != count - 1:
            self.indices = [*self.indices, count - 1]
        self.eval()
        self.shapes = self._trace()

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> maps (B, C, h, w), shallowest first, the last one for image tokens."""
        top = self.config.top
        found = self.model.forward_intermediates(
            pixel_values,
            indices=self.indices,
            norm=self.config.norm,
            output_fmt="NCHW",
            intermediates_only=not top,
        )
        if not top:
            return list(found)
        last, maps = found
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            last = last.permute(0, 3, 1, 2)
        return [*maps, last]

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Load the weights of a complete timm model by name.

        Weights of modules that are left out, such as the classifier, are ignored.

        Raises:
            BundleError: A weight is missing, unknown or of another shape.
        """
        own = {n: value.float() for n, value in weights.items() if n.split(".")[0] not in self.cut}
        try:
            missing, unknown = self.model.load_state_dict(own, strict=False)
        except RuntimeError as error:  # shapes
            raise BundleError(f"timm's {self.config.name}: {message_of(error)}") from error
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unknown:
            raise BundleError(
                f"timm's {self.config.name}: weights do not fit: missing {missing[:3]} "
                f"({len(missing)}), unknown {unknown[:3]} ({len(unknown)})"
            )

    def _trace(self) -> tuple[tuple[int, int, int], ...]:
        """Return the maps' (C, h, w), and leave out children of the model that they do not need."""
        weights = {
            name: value.detach().to("meta").requires_grad_()
            for name, value in self.named_parameters()
        }
        buffers = {name: value.to("meta") for name, value in self.named_buffers()}
        side = self.config.input_size
        image = torch.empty(1, 3, side, side, device="meta")
        try:
            with torch.enable_grad():
                maps = functional_call(self, {**weights, **buffers}, (image,))
                total = torch.stack([each.sum() for each in maps]).sum()
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        except Exception as error:  # timm asserts what it expects of an image's size
            raise BundleError(
                f"timm's {self.config.name} at {side} pixels: {message_of(error)}"
            ) from error
        if any(each.ndim != 4 for each in maps):
            raise BundleError(
                f"timm's {self.config.name}: top: its last output is no map; leave top out"
            )
        has_weights = {name.split(".")[1] for name in weights}
        needed = {
            name.split(".")[1]
            for name, gradient in zip(weights, gradients, strict=True)
            if gradient is not None
        }
        children = dict(self.model.named_children())
        for name in has_weights - needed:
            if name in children:
                setattr(self.model, name, nn.Identity())
        # also what timm has left out, such as the classifier
        self.cut = {name for name, each in self.model.named_children() if not each.state_dict()}
        if self.config.folded:
            fold_batch_norm(self.model)
        return tuple((each.shape[1], each.shape[2], each.shape[3]) for each in maps)


class TimmVision(VisionModule):
    """Image tokens from the last map of a timm backbone; levels from any of its maps.

    All weights are random until they are loaded.
    """

    config: TimmConfig

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = TimmBackbone(config)
        channels, *sides = self.backbone.shapes[-1]
        down, across = (averaging(side, config.token_grid) for side in sides)  # (g, h), (g, w)
        self.register_buffer("cells", torch.kron(down, across), persistent=False)  # (g * g, h * w)
        width = config.token_width or channels
        self.token = self._layer(channels)
        self.scene = self._layer(channels) if config.scene_token else nn.Identity()
        self.projector = new_projector(config.projector, width, config.hidden_size)

    def _layer(self, channels: int) -> nn.Module:
        if not self.config.token_width:
            return nn.Identity()
        return nn.Sequential(nn.Linear(channels, self.config.token_width), nn.ReLU())

    @property
    def input_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.config.input_size

    @property
    def image_tokens(self) -> int:
        """Cells of the token grid, and the scene token."""
        return self.config.token_grid**2 + self.config.scene_token

    @property
    def level_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, h, w) of the pixels and of every map that the region encoder reads."""
        if not self.config.levels:
            return ()
        pixels = self.config.pixels
        side = self.input_size // pixels if pixels else 0
        first = ((3, side, side),) if pixels else ()
        return (*first, *self.backbone.shapes[: self.config.maps_read])

    def features(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, T, C), the scene's first; and one map (B, C_l, h_l, w_l) per level."""
        maps = self.backbone(pixel_values)
        return self.tokens(self.cell_means(maps)), self.levels(pixel_values, maps)

    def cell_means(self, maps: Sequence[Tensor]) -> Tensor:
        """Means (B, T, C) of the last map: over all of it for a scene token, then in each cell."""
        last = maps[-1].flatten(2).transpose(1, 2)  # (B, h * w, C)
        means = self.get_buffer("cells").to(last.dtype) @ last  # (B, g * g, C)
        if self.config.scene_token:
            means = torch.cat([last.mean(1, keepdim=True), means], 1)
        return means

    def tokens(self, means: Tensor) -> Tensor:
        """Map the result of `cell_means` (B, T, C) to features (B, T, width)."""
        if not self.config.scene_token:
            found: Tensor = self.token(means)
            return found
        return torch.cat([self.scene(means[:, :1]), self.token(means[:, 1:])], 1)

    def levels(self, pixel_values: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, C_l, h_l, w_l) among the pixels and the backbone's maps."""
        return levels_of(self.config, pixel_values, maps)

    def folded(self) -> "TimmVision":
        """Return a copy with batch normalization folded into the convolutions (`folded`)."""
        copied = copy.deepcopy(self)
        copied.config = replace(self.config, folded=True)
        copied.backbone.config = copied.config
        fold_batch_norm(copied.backbone)
        return copied


def levels_of(config: TimmConfig, pixel_values: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Levels (B, C_l, h_l, w_l) among pixels (B, 3, S, S) and the maps of a `TimmBackbone`."""
    if not config.levels:
        return []
    first = [F.avg_pool2d(pixel_values, config.pixels)] if config.pixels else []
    return [*first, *maps[: config.maps_read]]


def create_model(config: TimmConfig) -> Any:
    """Create a timm model without weights and classifier for an input size.

    Raises:
        BundleError: timm refuses the size.
    """
    return new_model(config.name, config.input_size, num_classes=0)


def new_model(name: str, input_size: int | None = None, **settings: Any) -> Any:
    """Create a timm model; BundleError if timm refuses the settings.

    Args:
        name: Architecture, and a tag of its weights, if they are to be loaded.
        input_size: Side of the square input, for architectures that fix it when they are created;
            None: the architecture's own.
        settings: Further arguments of `timm.create_model`.
    """
    known = timm.models.get_pretrained_cfg(name)
    if input_size and known is not None and known.fixed_input_size:
        settings["img_size"] = input_size
    try:
        return timm.create_model(name, **settings)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise BundleError(f"timm's {name}: {message_of(error)}") from error


def map_table(model: Any) -> list[dict[str, Any]]:
    """Return `num_chs` and `reduction` (stride) of every map of a timm model, shallowest first."""
    known = model.feature_info  # a list, or an object that holds one
    return list(getattr(known, "info", known))


def averaging(side: int, count: int) -> Tensor:
    """Weights (count, side) that average a row of `side` values over `count` equal parts.

    A value that two parts share counts in both with its shares.
    """
    edges = torch.arange(count + 1, dtype=torch.float64) * side / count
    start, stop = edges[:-1, None], edges[1:, None]
    places = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(stop, places + 1) - torch.maximum(start, places)
    return (overlap.clamp(min=0) * count / side).float()
