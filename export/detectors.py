"""Export the network of an object detector by transformers' own exporter, and compare it.

Both runtimes then find boxes in images of several sizes; a graph that differs is not kept.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regionqa.detection.cards import Vocabulary, checkpoint_family
from regionqa.detection.checkpoint import (
    OUTPUTS,
    PART,
    DetectorProcessor,
    OnnxNetwork,
    load_detector_network,
)
from regionqa.errors import ExportError
from regionqa.export.networks import check_parts, write_part
from regionqa.export.vlm.vision import SIZES, ModuleCall, example_image, keep_export
from regionqa.runtime.devices import Device
from regionqa.vlm.vision_exports import VisionExport

PHRASES = (("red cup", "a cat"), ("the cat", "a cup", "blue car"), ("dog",))
"""What an open-vocabulary detector looks for in the images that are compared; their numbers and
lengths differ, so that neither is fixed in the graph."""


class DetectorOutputs(nn.Module):
    """A detector's network with only the outputs that boxes are made of."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return scores (1, N, C) before the sigmoid or softmax, and boxes (1, N, 4)."""
        output = self.model(**inputs, return_dict=True)
        return {name: output[name] for name in OUTPUTS}


def export_detector(
    name: str, checkpoint: Path, *, again: bool = False
) -> tuple[VisionExport, bool]:
    """Export the network of a detector, unless that was done before.

    Args:
        name: The detector's name, for messages.
        checkpoint: Folder of its files.
        again: Replace an export that can be used.

    Returns:
        The export, and whether it is new.

    Raises:
        ExportError: Its family is not exported, it cannot be, or it differs from torch; nothing is
            kept.
        BundleError: The checkpoint cannot be loaded.
    """
    if not checkpoint_family(checkpoint).onnx:
        raise ExportError(f"{name}: detectors of this family are not exported; it runs in torch")
    return keep_export(checkpoint, partial(_write_export, name, checkpoint), again=again)


def _write_export(name: str, checkpoint: Path, folder: Path) -> None:
    """Write the graph and the manifest to a folder."""
    family = checkpoint_family(checkpoint)
    processor = DetectorProcessor(checkpoint, family)
    module = DetectorOutputs(load_detector_network(checkpoint, family)).eval()
    looked_for = PHRASES if family.vocabulary is Vocabulary.open else ((),) * len(SIZES)
    calls = [
        ModuleCall(module, processor.prepare(example_image(size), phrases), {})
        for size, phrases in zip(SIZES, looked_for, strict=True)
    ]
    part = write_part(name, PART, calls, folder)
    checks = []
    for size, call in zip(SIZES, calls, strict=True):
        with torch.inference_mode():
            expected = module(**call.arguments)
        compared = partial(_difference, call, expected)
        checks.append((size, expected["pred_boxes"].shape[1], compared))
    check_parts(name, checkpoint, (part,), checks, folder)


def _difference(call: ModuleCall, expected: Mapping[str, Tensor], export: VisionExport) -> float:
    return compare_outputs(expected, OnnxNetwork(export, Device.cpu)(call.arguments))


def compare_outputs(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Return the largest difference of scores and boxes, all from 0 to 1.

    Queries that are chosen by their score come in another order where two of them are nearly
    equal, so each is compared with the one of the other runtime that is nearest.
    """
    wanted, got = rows_of(expected), rows_of(found)
    if wanted.shape != got.shape or not got.isfinite().all():
        return float("inf")
    distances = torch.cdist(wanted, got, p=float("inf"))
    return max(distances.min(side).values.max().item() for side in (0, 1))


def rows_of(outputs: Mapping[str, Tensor]) -> Tensor:
    """Return scores and box of each query, (N, C + 4)."""
    scores, boxes = (outputs[name][0].float() for name in OUTPUTS)
    return torch.cat([scores.sigmoid(), boxes], dim=-1)
