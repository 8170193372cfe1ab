"""Detection heads of bundles: objects in the vision encoder's maps, in ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from regionqa.bundles.store import CARD, Bundle, holds_vlm, open_bundle
from regionqa.detection.base import DetectorInfo, ScoredBoxes
from regionqa.detection.cards import FoundDetector, Vocabulary, detector_cards
from regionqa.errors import BundleError, UsageError
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.runtime.encoders import DetectorGraph, VisionEncoder

CANDIDATES = 1000
"""Boxes of an image from which the overlapping ones are left out: those of the highest scores. As
in RetinaNet (Lin et al. 2017) and its successors."""


def open_detector(found: FoundDetector, device: Device, runtime: VisionRuntime) -> "BundleDetector":
    """Load a model's detection head; see `regionqa.detection.base.open_found`."""
    assert found.folder is not None
    folder = found.folder
    if holds_vlm(folder) or not (folder / CARD).is_file():
        raise no_head(found.name)
    bundle = open_bundle(folder)
    if bundle.card.detector is None:
        raise no_head(found.name)
    if runtime is not VisionRuntime.auto:
        raise UsageError(
            f"--vision-runtime: has no effect on the detection head of {found.name}, which runs "
            "in ONNX Runtime; leave it out"
        )
    return BundleDetector(bundle, device)


def no_head(name: str) -> BundleError:
    """Return the error for a model that finds no objects."""
    return BundleError(
        f"{name}: is a model without a detector; known are {', '.join(detector_cards())}"
    )


class BundleDetector:
    """The detection head of a bundle."""

    def __init__(self, bundle: Bundle, device: Device) -> None:
        """Open the graphs; BundleError or DeviceError if that fails."""
        card = bundle.card.detector
        assert card is not None
        self._image = bundle.card.image
        self._vision = VisionEncoder(bundle, device)
        self._head = DetectorGraph(bundle, device)
        self.info = DetectorInfo(
            bundle.card.name,
            bundle.card.revision,
            Vocabulary.fixed,
            card.classes,
            card.min_score,
            card.nms,
            device.value,
            "onnx: on the model's own vision encoder",
        )

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """See `Detector.check_phrases`; a fixed list of classes takes none."""

    def detect(self, image: Image.Image, phrases: Sequence[str], min_score: float) -> ScoredBoxes:
        """See `Detector.detect`; the `CANDIDATES` boxes of the highest scores, of any class."""
        (encoded,) = self._vision.encode(self._image.pixel_values(image)[np.newaxis])
        boxes, scores = self._head.find(encoded.levels)  # (P, 4), (P, C)
        rows, classes = np.nonzero(scores > min_score)
        best = np.argsort(-scores[rows, classes], kind="stable")[:CANDIDATES]
        rows, classes = rows[best], classes[best]
        names = self.info.classes
        return ScoredBoxes(
            self._image.placement(*image.size).to_pixels(boxes[rows].astype(np.float64)),
            scores[rows, classes].astype(np.float64),
            tuple(classes.tolist()),
            tuple(names[number] for number in classes),
        )
