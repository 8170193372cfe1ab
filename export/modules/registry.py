"""Torch definitions by their kind on a card, in both directions.

A card's [architecture] tables have a `kind` and the fields of its config. They are read by training
and export only. A further encoder is a module with its config and one line here.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from regionqa.bundles.card import ModelCard
from regionqa.errors import BundleError
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.crops import CropConfig, CropRegionEncoder
from regionqa.export.modules.detection import DetectionConfig, DetectionHead
from regionqa.export.modules.multilevel import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.modules.regionclip import RegionClipConfig, RegionClipEncoder
from regionqa.export.modules.resnet import ResNetConfig, ResNetVision
from regionqa.export.modules.roi import (
    BackboneRegionConfig,
    BackboneRegionEncoder,
    RoIConfig,
    RoIRegionEncoder,
)
from regionqa.export.modules.timm_vision import TimmConfig, TimmVision
from regionqa.export.modules.tower import TowerConfig, TowerVision
from regionqa.schema import from_table

VISION: Mapping[str, tuple[type, type[VisionModule]]] = {
    "resnet": (ResNetConfig, ResNetVision),
    "timm": (TimmConfig, TimmVision),
    "tower": (TowerConfig, TowerVision),
}
REGION: Mapping[str, tuple[type, type[RegionModule]]] = {
    "backbone": (BackboneRegionConfig, BackboneRegionEncoder),
    "cuts": (CropConfig, CropRegionEncoder),
    "multilevel": (MultiLevelConfig, MultiLevelRegionEncoder),
    "regionclip": (RegionClipConfig, RegionClipEncoder),
    "roi": (RoIConfig, RoIRegionEncoder),
}
DETECTOR: Mapping[str, tuple[type, type[nn.Module]]] = {
    "anchor_free": (DetectionConfig, DetectionHead),
}


def build(card: ModelCard) -> tuple[VisionModule, RegionModule | None]:
    """Build the untrained encoders of a card.

    Raises:
        BundleError: The card's [architecture] is missing, or of an unknown kind.
    """
    where = f"card of {card.name}: architecture"
    vision = _build(VISION, card.architecture.get("vision"), f"{where}.vision")
    region = None
    if card.region:
        region = _build(REGION, card.architecture.get("region"), f"{where}.region")
    return vision, region


def build_detector(card: ModelCard) -> DetectionHead | None:
    """Build the untrained detection head of a card; None if it has none. Errors as of `build`."""
    if card.detector is None:
        return None
    where = f"card of {card.name}: architecture.detector"
    head: DetectionHead = _build(DETECTOR, card.architecture.get("detector"), where)
    return head


def architecture_table(module: VisionModule | RegionModule | DetectionHead) -> dict[str, Any]:
    """Return the [architecture] table of a module, from which `build` rebuilds it.

    TOML has no null: fields that are None, which is then their default, are left out.
    """
    for kind, (_, definition) in (*VISION.items(), *REGION.items(), *DETECTOR.items()):
        if type(module) is definition:
            settings = asdict(module.config).items()
            return {"kind": kind, **{name: value for name, value in settings if value is not None}}
    raise BundleError(
        f"{type(module).__name__} has no kind in modules/registry.py, so no card can name it"
    )


def _build(kinds: Mapping[str, tuple[type, type[nn.Module]]], table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise BundleError(f"{where} is missing, so the model can be asked but not trained")
    settings = dict(table)
    kind = settings.pop("kind", None)
    if kind not in kinds:
        raise BundleError(
            f"{where}: kind {kind!r} has no torch definition here, so the model can be asked but "
            f"not trained; known are {', '.join(kinds)}"
        )
    config, definition = kinds[kind]
    return definition(from_table(config, settings, where))
