"""Features of images: the vision encoder's output, one image at a time, and joined for a batch."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

FIELDS = ("pooler_output", "deepstack_features")
"""Fields of the encoder's output that language models read."""


class VisionTower(Protocol):
    """Computes the features of one image."""

    @property
    def runtime(self) -> str:
        """Where it runs, as `doctor` reports it."""

    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        """Compute the features of one image.

        Args:
            inputs: What the checkpoint's image processor returns for it.

        Returns:
            The output of transformers' `get_image_features`, as `mm_encoder_outputs` takes it.
        """


class TorchTower:
    """The vision encoder as transformers runs it."""

    runtime = "torch"

    def __init__(self, model: Any) -> None:
        """Wrap the vision part of a loaded model."""
        self._encode = model.base_model.get_image_features
        self._known = inspect.signature(self._encode).parameters
        self._model = model

    @torch.inference_mode()
    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        """See `VisionTower.encode`."""
        known = {
            name: place(value, self._model.device, self._model.dtype)
            for name, value in inputs.items()
            if name in self._known
        }
        output = self._encode(**known, return_dict=True)
        return only_features(output, self._model.device, self._model.dtype)


def place(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move a tensor to a device; numbers with a fraction get the model's dtype."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def only_features(output: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return what the language model reads of the encoder's output, without hidden states.

    Args:
        output: Output of `get_image_features`.
        device: Where the features are needed.
        dtype: Their type.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features = BaseModelOutputWithPooling()
    for name in FIELDS:
        if (value := getattr(output, name, None)) is not None:
            features[name] = _placed(value, device, dtype)
    return features


def _placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return [_placed(each, device, dtype) for each in value]


def token_count(features: Any) -> int:
    """Return the number of language-model tokens of an image's features."""
    return sum(part.shape[:-1].numel() for part in pooled(features))


def pooled(features: Any) -> list[Tensor]:
    """Return the projected features as a list of tensors, (..., H) each."""
    output = features.pooler_output
    return [output] if isinstance(output, Tensor) else list(output)


def join(features: Sequence[Any]) -> Any:
    """Join the features of several images, in order, as those of one call with all of them.

    Fields are `pooler_output`, a tensor with the images in its first dimension or one tensor per
    image, and Qwen3-VL's `deepstack_features`, such a field per layer.
    """
    if len(features) == 1:
        return features[0]
    first = features[0]
    joined = type(first)()
    joined["pooler_output"] = _join_images([each.pooler_output for each in features])
    if getattr(first, "deepstack_features", None) is not None:
        joined["deepstack_features"] = [
            _join_images(layer)
            for layer in zip(*(f.deepstack_features for f in features), strict=True)
        ]
    return joined


def _join_images(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), dim=0)
    return [each for part in parts for each in part]
