"""Export a segmenter by transformers' own exporter, and compare it.

The encoder, which is run once per image, and the decoder, which is run for every region, become a
graph each.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regionqa.export.networks import check_parts, write_part
from regionqa.export.vlm.vision import SIZES, ModuleCall, example_image, keep_export
from regionqa.runtime.devices import Device
from regionqa.segmentation.checkpoint import (
    DECODER,
    ENCODER,
    FEATURES,
    OUTPUTS,
    OnnxSegmenter,
    SegmenterProcessor,
    decode_points,
    encode_image,
    load_segmenter_network,
)
from regionqa.segmentation.options import ClickedPoint, Points
from regionqa.vlm.vision_exports import VisionExport

PLACES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0.5, 0.5),),
    ((0.25, 0.3), (0.6, 0.7), (0.9, 0.1)),
    ((0.1, 0.9), (0.8, 0.4)),
)
"""Points in the images that are compared, in fractions; their numbers differ, so that none is fixed
in the graph."""


class EncoderModule(nn.Module):
    """A segmenter's encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return the features of an image (1, 3, H, W)."""
        return encode_image(self.model, pixel_values)


class DecoderModule(nn.Module):
    """A segmenter's decoder, with the encoding of points."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(
        self,
        features_0: Tensor,
        features_1: Tensor,
        features_2: Tensor,
        points: Tensor,
        point_labels: Tensor,
    ) -> dict[str, Tensor]:
        """Return masks and scores; see `decode_points`."""
        features = dict(zip(FEATURES, (features_0, features_1, features_2), strict=True))
        return decode_points(self.model, features, points, point_labels)


def export_segmenter(
    name: str, checkpoint: Path, *, again: bool = False
) -> tuple[VisionExport, bool]:
    """Export the networks of a segmenter, unless that was done before.

    Args:
        name: The segmenter's name, for messages.
        checkpoint: Folder of its files.
        again: Replace an export that can be used.

    Returns:
        The export, and whether it is new.

    Raises:
        ExportError: It cannot be exported, or differs from torch; nothing is kept.
        BundleError: The checkpoint cannot be loaded.
    """
    return keep_export(checkpoint, partial(_write_export, name, checkpoint), again=again)


def _write_export(name: str, checkpoint: Path, folder: Path) -> None:
    """Write the graphs and the manifest to a folder."""
    processor = SegmenterProcessor(checkpoint)
    model = load_segmenter_network(checkpoint)
    encoder, decoder = EncoderModule(model).eval(), DecoderModule(model).eval()
    encoded, decoded = [], []
    for size, places in zip(SIZES, PLACES, strict=True):
        inputs = processor.prepare(example_image(size))
        with torch.inference_mode():
            features = encoder(**inputs)
        encoded.append(ModuleCall(encoder, inputs, {}))
        placed = processor.place(example_points(places, size), size)
        decoded.append(ModuleCall(decoder, {**features, **placed}, {}))
    parts = (write_part(name, ENCODER, encoded, folder), write_part(name, DECODER, decoded, folder))
    checks = [
        (size, len(places), partial(difference, first, second))
        for size, places, first, second in zip(SIZES, PLACES, encoded, decoded, strict=True)
    ]
    check_parts(name, checkpoint, parts, checks, folder)


def example_points(places: tuple[tuple[float, float], ...], size: tuple[int, int]) -> Points:
    """Return points in an image of this size, all but the first outside of the region."""
    return tuple(
        ClickedPoint(x * size[0], y * size[1], inside=number == 0)
        for number, (x, y) in enumerate(places)
    )


def difference(encoded: ModuleCall, decoded: ModuleCall, export: VisionExport) -> float:
    """Return the largest difference of masks and scores from torch, relative to the largest.

    The graphs are run after each other, as for an image; those of torch were too.
    """
    networks = OnnxSegmenter(export, Device.cpu)
    points = {name: value for name, value in decoded.arguments.items() if name not in FEATURES}
    with torch.inference_mode():
        expected = decoded.module(**decoded.arguments)
    found = networks.decode(networks.encode(encoded.arguments), points)
    largest = 0.0
    for name in OUTPUTS:
        scale = expected[name].abs().max().item() or 1.0
        gap = (expected[name] - found[name]).abs().max().item() / scale
        if not gap <= largest:  # or not a number
            largest = gap
    return largest
