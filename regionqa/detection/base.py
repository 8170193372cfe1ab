"""The interface of a detector, and the kinds that there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionqa.backends.base import announce_fetch
from regionqa.detection.cards import BUNDLE, CHECKPOINT, FoundDetector, Vocabulary, detector_cards
from regionqa.errors import BundleError
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.vlm.checkpoints import fetch_checkpoint

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DetectorInfo:
    """What is known of a detector before it sees an image."""

    name: str
    revision: str
    """Identifies its weights."""
    vocabulary: Vocabulary
    classes: tuple[str, ...]
    """The classes that it knows; empty for an open vocabulary."""
    min_score: float
    nms: float
    """Defaults of the options of these names."""
    device: str
    runtime: str
    """Where it runs, for people: `onnx` or `torch`, and why."""


@dataclass(frozen=True)
class ScoredBoxes:
    """Boxes of one image, in any order; they may reach outside the image."""

    boxes: Floats
    """(N, 4) xyxy in pixels of the image."""
    scores: Floats
    """(N,) from 0 to 1."""
    classes: tuple[int, ...]
    """(N,) index of each box's class, or of its phrase."""
    labels: tuple[str, ...]
    """(N,) name of each box's class, or its phrase as the user wrote it."""


class Detector(Protocol):
    """Proposes boxes for an image."""

    @property
    def info(self) -> DetectorInfo:
        """The detector's properties."""

    def check_phrases(self, phrases: Sequence[str]) -> None:
        """Raise UsageError for phrases that the detector cannot look for."""

    def detect(self, image: Image.Image, phrases: Sequence[str], min_score: float) -> ScoredBoxes:
        """Find objects.

        Args:
            image: RGB, as displayed.
            phrases: What to find; empty for a detector with classes of its own.
            min_score: Boxes of this score and below are left out.

        Raises:
            ImageError: The image cannot be processed.
        """


OpenDetector = Callable[[FoundDetector, Device, VisionRuntime], Detector]
"""Loads a detector; BundleError where its files are not sound."""

KINDS: dict[str, OpenDetector | str] = {
    BUNDLE: "regionqa.detection.bundle",
    CHECKPOINT: "regionqa.detection.checkpoint",
}
"""Kind of detector -> module with a function `open_detector`, or such a function."""


def register_detector(kind: str, open_detector: OpenDetector) -> None:
    """Add a kind of detector."""
    KINDS[kind] = open_detector


def open_found(found: FoundDetector, device: Device, runtime: VisionRuntime) -> Detector:
    """Load a detector that was found; one that is published is fetched first.

    Args:
        found: The detector.
        device: Where it runs.
        runtime: ONNX Runtime, torch, or the former if it was exported.

    Raises:
        BundleError: Its files are not sound, or no module opens its kind.
        DownloadError: It is on the Hub and cannot be fetched.
        UsageError: ONNX Runtime is asked for, and the detector has no graph.
    """
    if found.kind not in KINDS:
        known = ", ".join(detector_cards())
        raise BundleError(f"{found.name}: is a {found.kind}; known are {known}")
    if found.folder is None and found.source is not None:
        if found.name in detector_cards():
            raise BundleError(
                f"{found.name}: not downloaded yet; run: regionqa download {found.name}"
            )
        folder: Path = fetch_checkpoint(found.source, announce_fetch)
        found = FoundDetector(found.name, folder, found.source, found.kind)
    opener = KINDS[found.kind]
    if isinstance(opener, str):
        opener = import_module(opener).open_detector
    return opener(found, device, runtime)
