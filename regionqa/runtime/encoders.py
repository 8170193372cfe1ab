"""The two encoders as ONNX Runtime sessions, checked against the card when they are opened.

They take and give numpy arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regionqa.bundles.store import Bundle
from regionqa.errors import BundleError
from regionqa.images.preprocessing import Fit, Preprocessing
from regionqa.runtime.devices import Device, open_session

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncodedImage:
    """What the vision encoder made of one image.

    image_tokens: (T, H) float32. levels: one map (1, C, h, w) float32 per level of the card.
    """

    image_tokens: Floats
    levels: tuple[Floats, ...]


class VisionEncoder:
    """`pixel_values` -> `image_tokens` and feature maps."""

    def __init__(self, bundle: Bundle, device: Device, half: bool = False) -> None:
        """Open the graph; BundleError where its names or shapes are not the card's.

        half: compute in float16; what goes in and comes out is float32 all the same.
        """
        card = bundle.card.vision
        self._graph, self._half = card.graph, half
        self._session = open_session(bundle.file(card.graph), device, half=half)
        self._outputs = ["image_tokens", *card.levels]
        size = bundle.card.image.size
        _check(self._session, card.graph, ["pixel_values"], self._outputs)
        _check_shape(self._session.get_inputs()[0], card.graph, (None, 3, size, size))
        tokens = self._session.get_outputs()[0]
        _check_shape(tokens, card.graph, (None, card.image_tokens, None))
        self.hidden_size = int(tokens.shape[2])

    def encode(self, pixel_values: Floats) -> list[EncodedImage]:
        """Encode images (B, 3, S, S) float32, one result each."""
        tokens, *levels = self._session.run(self._outputs, {"pixel_values": pixel_values})
        if self._half:
            _check_finite(self._graph, tokens, *levels)
        return [
            EncodedImage(tokens[i], tuple(level[i : i + 1] for level in levels))
            for i in range(len(tokens))
        ]


class RegionEncoder:
    """Feature maps of an image, or pixels of its own, and boxes -> region tokens."""

    def __init__(self, bundle: Bundle, device: Device, half: bool = False) -> None:
        """Open the graph; BundleError where its names or shapes are not the card's.

        half: compute in float16; what goes in and comes out is float32 all the same.
        """
        card = bundle.card.region
        if card is None:
            raise BundleError(f"card of {bundle.card.name}: has no [region]")
        self._graph, self._half = card.graph, half
        self._session = open_session(bundle.file(card.graph), device, half=half)
        self._sources = ["pixel_values"] if card.image else list(bundle.card.vision.levels)
        _check(
            self._session, card.graph, [*self._sources, "boxes", "image_index"], ["region_tokens"]
        )
        if card.image:
            _check_sides(self._session.get_inputs()[0], card.graph, card.image)
        tokens = self._session.get_outputs()[0]
        _check_shape(tokens, card.graph, (None, card.tokens, None))
        self.hidden_size = int(tokens.shape[2])

    def encode(self, sources: Sequence[Floats], boxes: Floats) -> Floats:
        """Region tokens (N, K, H) of boxes (N, 4) float32 xyxy in [0, 1] of the canvas; N >= 0.

        sources: what one image gives: the vision encoder's levels, each (1, C, h, w), or, where
        the card has a [region.image], the one pixel_values (1, 3, h, w).
        """
        feeds = dict(zip(self._sources, sources, strict=True))
        feeds["boxes"] = boxes
        feeds["image_index"] = np.zeros(len(boxes), np.int64)  # (N,), all of the one image
        tokens: Floats = self._session.run(["region_tokens"], feeds)[0]
        if self._half:
            _check_finite(self._graph, tokens)
        return tokens


def _check(session: "InferenceSession", graph: str, inputs: list[str], outputs: list[str]) -> None:
    actual_inputs = [value.name for value in session.get_inputs()]
    actual_outputs = [value.name for value in session.get_outputs()]
    if actual_inputs != inputs or actual_outputs != outputs:
        raise BundleError(
            f"{graph}: the card expects {inputs} -> {outputs}, "
            f"the graph has {actual_inputs} -> {actual_outputs}"
        )


def _check_finite(graph: str, *outputs: Floats) -> None:
    if not all(np.isfinite(values).all() for values in outputs):
        raise BundleError(
            f"{graph}: its values are too large for float16; use --dtype float32, which computes "
            "the encoders in float32"
        )


def _check_shape(value: "object", graph: str, expected: tuple[int | None, ...]) -> None:
    actual = tuple(value.shape)  # type: ignore[attr-defined]
    fits = len(actual) == len(expected) and all(
        want is None or want == got for want, got in zip(expected, actual, strict=True)
    )
    if not fits:
        name = value.name  # type: ignore[attr-defined]
        raise BundleError(f"{graph}: {name} is {actual}, the card expects {expected}")


def _check_sides(value: "object", graph: str, image: Preprocessing) -> None:
    """Height and width of the graph's input may vary; where they do not, they are the card's."""
    shape = tuple(value.shape)  # type: ignore[attr-defined]
    fixed = [side for side in shape[2:] if isinstance(side, int)]
    if image.fit is Fit.shortest and fixed:
        raise BundleError(
            f"{graph}: pixel_values is {shape}, but with fit {image.fit} the sides vary from "
            "image to image"
        )
    sides = (image.size if isinstance(side, int) else None for side in shape[-2:])
    _check_shape(value, graph, (None, 3, *sides))
