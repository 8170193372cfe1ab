"""Vision encoders and region encoders of new bundles on timm backbones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from regionqa.bundles.store import find_bundle
from regionqa.errors import BundleError
from regionqa.export.bundle import read_encoders
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.roi import BackboneRegionEncoder, RoIConfig, RoIRegionEncoder
from regionqa.export.modules.timm_vision import TimmConfig, TimmVision, map_table, new_model
from regionqa.export.modules.tower import ProjectorKind
from regionqa.export.sources.timm_checkpoints import (
    TimmCheckpoint,
    load_timm,
    timm_image_table,
)
from regionqa.images.preprocessing import Fit
from regionqa.options import RegionSource

PIXEL_SIDE = 512
"""Side, in pixels, of the square image for a region encoder that reads pixels. PVIT's shorter side
is 800; the backbone was trained at 320."""
SHALLOWEST = 8
"""Smallest stride of the maps for a region encoder."""
EVEN_LEVELS = 4
"""Number of maps for a region encoder where all have the same stride (transformers)."""
MOST_CELLS = 16
"""Largest number of rows and columns of image tokens; LLaVA's towers have 16 to 24."""
COLOUR_PIXELS = 4
"""Side of the squares, in pixels, to which the image is averaged for the colours of regions."""


@dataclass(frozen=True)
class VisionPart:
    """A new bundle's vision encoder, and the untrained region encoder that goes with it."""

    vision: VisionModule
    region: RegionModule | None
    region_table: Mapping[str, Any]
    """The card's [region]; empty without a region encoder."""
    image: Mapping[str, Any]
    """The card's [image]."""
    notes: tuple[str, ...]
    """Differences to the checkpoint's own processing, for people."""
    licence: str | None = None
    """The licence stated for the vision encoder's weights."""


def timm_part(
    checkpoint: TimmCheckpoint,
    source: RegionSource | None,
    hidden_size: int,
    fit: Fit,
    projector: ProjectorKind,
) -> VisionPart:
    """Create a vision encoder on a timm backbone, and a region encoder of its maps or of pixels.

    Args:
        checkpoint: The backbone.
        source: Input of the region encoder; None: there is none.
        hidden_size: Width of the language model's embeddings.
        fit: How an image becomes a square.
        projector: Kind of the new projector.

    Raises:
        BundleError: The backbone has no maps, or the weights are not its own.
    """
    image, notes = timm_image_table(checkpoint, str(fit))
    vision = new_timm_vision(
        checkpoint.name, checkpoint.side, hidden_size, projector, source is RegionSource.levels
    )
    load_timm(checkpoint, vision)
    region: RegionModule | None = None
    table: dict[str, Any] = {}
    if source is RegionSource.levels:
        region, table = new_roi_encoder(vision), {"graph": "region.onnx", "tokens": 1}
    elif source is RegionSource.pixels:
        region, table = new_pixel_encoder(hidden_size)
    licence = checkpoint.settings.license
    return VisionPart(vision, region, table, image, tuple(notes), licence)


def new_timm_vision(
    name: str, input_size: int, hidden_size: int, projector: ProjectorKind, levels: bool
) -> TimmVision:
    """Create a vision encoder with random weights that reads what its backbone offers.

    A convolutional backbone gives the maps from stride 8 on and, if it ends with a wider
    convolution, the map after that; a transformer gives four maps at even depths, normalized.
    The last map becomes up to 16 x 16 image tokens.

    Args:
        name: timm's architecture.
        input_size: Side of the square input, in pixels.
        hidden_size: Width of the language model's embeddings.
        projector: Kind of the projector.
        levels: Whether a region encoder reads maps.
    """
    model = new_model(name, input_size, num_classes=0)
    maps = map_table(model)
    strides = [each["reduction"] for each in maps]
    is_even = len(set(strides)) == 1
    if is_even:
        steps = min(EVEN_LEVELS, len(maps))
        chosen = [len(maps) * step // steps - 1 for step in range(1, steps + 1)]
    else:
        chosen = [index for index, stride in enumerate(strides) if stride >= SHALLOWEST]
    config = TimmConfig(
        name, input_size, hidden_size,
        levels=tuple(chosen or [len(maps) - 1]) if levels else (),
        pixels=gcd(input_size, COLOUR_PIXELS) if levels else 0,
        token_grid=1,
        projector=projector,
    )  # fmt: skip
    wider = model.num_features != maps[-1]["num_chs"]
    vision = first_possible(
        [replace(config, top=True)] * wider + [replace(config, norm=True)] * is_even + [config]
    )
    side = min(vision.backbone.shapes[-1][1:])
    return TimmVision(replace(vision.config, token_grid=min(side, MOST_CELLS)))


def first_possible(configs: Sequence[TimmConfig]) -> TimmVision:
    """Create the first vision encoder that timm can; BundleError for the last if it can none.

    Some models end without a map, or refuse to normalize others than the last.
    """
    for config in configs[:-1]:
        try:
            return TimmVision(config)
        except BundleError:
            continue
    return TimmVision(configs[-1])


def new_roi_encoder(vision: TimmVision) -> RoIRegionEncoder:
    """Create an untrained region encoder of all levels of a vision encoder."""
    shapes = vision.level_shapes
    return RoIRegionEncoder(
        RoIConfig(
            in_channels=tuple(channels for channels, _, _ in shapes),
            sides=tuple(side for _, side, _ in shapes),
            hidden_size=vision.config.hidden_size,
            pixels=bool(vision.config.pixels),
        )
    )


def new_pixel_encoder(hidden_size: int) -> tuple[BackboneRegionEncoder, dict[str, Any]]:
    """Join the starter's backbone and region encoder, with a new projector; and a [region] table.

    hidden_size: Width of the language model's embeddings.
    """
    starter = find_bundle("starter")
    vision, trained = read_encoders(starter)
    assert isinstance(vision, TimmVision)
    assert isinstance(trained, RoIRegionEncoder)
    own = starter.card.image
    image = {
        "size": PIXEL_SIDE,
        "fit": str(own.fit),
        "resample": str(own.resample),
        "mean": list(own.mean),
        "std": list(own.std),
    }
    encoder = BackboneRegionEncoder.of(vision, trained, hidden_size, PIXEL_SIDE)
    return encoder, {"graph": "region.onnx", "tokens": encoder.tokens, "image": image}
