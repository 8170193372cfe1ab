"""The vision encoder that a model is loaded with: its runtime, and the cache before it."""

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regionqa.backends.vlm.feature_cache import CachedTower, FeatureCache
from regionqa.backends.vlm.features import TorchTower, VisionTower
from regionqa.backends.vlm.graphs import OnnxTower
from regionqa.errors import DeviceError
from regionqa.options import RuntimeOptions, VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import Precision
from regionqa.vlm.card import VlmCard
from regionqa.vlm.vision_exports import choose_vision, vision_identity

log = logging.getLogger(__name__)


def load_tower(
    card: VlmCard,
    folder: Path,
    model: Any,
    options: RuntimeOptions,
    device: Device,
    precision: Precision,
) -> VisionTower:
    """Choose the runtime of a loaded model's vision encoder, and open the cache.

    Args:
        card: The model's card.
        folder: Its files.
        model: The loaded checkpoint; in ONNX Runtime, the encoder's weights are dropped from it.
        options: `vision_runtime`, `cache` and `cache_size`.
        device: Where the model runs.
        precision: Of the model.

    Raises:
        UsageError: The cache cannot be used as a folder.
        BundleError: ONNX Runtime is asked for, and there is no export.
        DeviceError: ONNX Runtime is asked for, and does not run on the device.
    """
    cache = None
    if options.cache is not None:
        cache = FeatureCache(options.cache, round(options.cache_size * 1e9))
    tower = _open_tower(card, folder, model, options.vision_runtime, device, precision)
    if cache is None:
        return tower
    identity = (vision_identity(folder), card.revision, version("transformers"), device)
    return CachedTower(tower, cache, identity, model.device, model.dtype)


def _open_tower(
    card: VlmCard,
    folder: Path,
    model: Any,
    asked: VisionRuntime,
    device: Device,
    precision: Precision,
) -> VisionTower:
    choice = choose_vision(card, folder, asked)
    log.info("vision encoder of %s: %s (%s)", card.name, choice.runtime, choice.reason)
    if choice.export is None:
        return TorchTower(model)
    try:
        return OnnxTower(model, choice.export, device, half=precision.half_encoders)
    except DeviceError as error:
        if asked is VisionRuntime.onnx:
            raise
        log.warning("the vision encoder runs in torch: %s", error)
        return TorchTower(model)
