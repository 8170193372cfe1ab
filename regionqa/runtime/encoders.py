"""A bundle's graphs in ONNX Runtime, checked against the card when opened."""

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
    """The vision encoder's outputs for one image."""

    image_tokens: Floats
    """(T, H) float32."""
    levels: tuple[Floats, ...]
    """Feature maps (1, C, h, w) float32, one per level of the card."""


class VisionEncoder:
    """Encodes images to image tokens and feature maps."""

    def __init__(self, bundle: Bundle, device: Device, half: bool = False) -> None:
        """Open the bundle's vision graph.

        Args:
            bundle: The bundle.
            device: Where to run the graph.
            half: Compute in float16; inputs and outputs stay float32.

        Raises:
            BundleError: Names or shapes of the graph differ from the card.
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
        """Encode images.

        Args:
            pixel_values: (B, 3, S, S) float32.

        Returns:
            One result per image.

        Raises:
            BundleError: A value overflows float16.
        """
        tokens, *levels = self._session.run(self._outputs, {"pixel_values": pixel_values})
        if self._half:
            _check_finite(self._graph, tokens, *levels)
        return [
            EncodedImage(tokens[i], tuple(level[i : i + 1] for level in levels))
            for i in range(len(tokens))
        ]


class RegionEncoder:
    """Encodes boxes to region tokens, from feature maps or from pixels of its own."""

    def __init__(self, bundle: Bundle, device: Device, half: bool = False) -> None:
        """Open the bundle's region graph.

        Args:
            bundle: The bundle.
            device: Where to run the graph.
            half: Compute in float16; inputs and outputs stay float32.

        Raises:
            BundleError: There is no region graph, or its names or shapes differ from the card.
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
        """Encode boxes of one image.

        Args:
            sources: The vision encoder's feature maps, (1, C, h, w) each; or, if the card has
                [region.image], a single (1, 3, h, w) with the pixels.
            boxes: (N, 4) float32, xyxy in fractions of the model's input; N may be 0.

        Returns:
            Region tokens (N, K, H) float32.

        Raises:
            BundleError: A value overflows float16.
        """
        feeds = dict(zip(self._sources, sources, strict=True))
        feeds["boxes"] = boxes
        feeds["image_index"] = np.zeros(len(boxes), np.int64)  # (N,)
        tokens: Floats = self._session.run(["region_tokens"], feeds)[0]
        if self._half:
            _check_finite(self._graph, tokens)
        return tokens


class DetectorGraph:
    """Finds objects in feature maps of the vision encoder."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        """Open the bundle's detection graph.

        Args:
            bundle: The bundle.
            device: Where to run the graph.

        Raises:
            BundleError: There is no such graph, or its names or shapes differ from the card.
        """
        card = bundle.card.detector
        if card is None:
            raise BundleError(f"card of {bundle.card.name}: has no [detector]")
        self._levels = bundle.card.vision.levels
        self._session = open_session(bundle.file(card.graph), device)
        _check(self._session, card.graph, list(self._levels), ["boxes", "scores"])
        boxes, scores = self._session.get_outputs()
        _check_shape(boxes, card.graph, (None, None, 4))
        _check_shape(scores, card.graph, (None, None, len(card.classes)))

    def find(self, levels: Sequence[Floats]) -> tuple[Floats, Floats]:
        """Return boxes (P, 4) xyxy in fractions of the input, and scores (P, C), of one image.

        levels: the vision encoder's feature maps, (1, C, h, w) each.
        """
        feeds = dict(zip(self._levels, levels, strict=True))
        boxes, scores = self._session.run(["boxes", "scores"], feeds)
        return boxes[0], scores[0]


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
    """Compare height and width of the graph's input with the card, where they are not dynamic."""
    shape = tuple(value.shape)  # type: ignore[attr-defined]
    fixed = [side for side in shape[2:] if isinstance(side, int)]
    if image.fit is Fit.shortest and fixed:
        raise BundleError(
            f"{graph}: pixel_values is {shape}, but with fit {image.fit} the sides vary from "
            "image to image"
        )
    sides = (image.size if isinstance(side, int) else None for side in shape[-2:])
    _check_shape(value, graph, (None, 3, *sides))
