"""A detector with its options: the regions of an image, or `supervision.Detections`.

import regionqa

detector = regionqa.load_detector("rtdetrv2-r18", min_score=0.4)
print(detector.detect("cat.jpg"))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from regionqa.detection.base import Detector, Floats, ScoredBoxes, open_found
from regionqa.detection.cards import Vocabulary, cards_of, find_detector
from regionqa.detection.options import DetectionOptions, listed
from regionqa.errors import BundleError, UsageError
from regionqa.images.reading import InputImage, image_from_memory, open_image
from regionqa.language.answer_schemas import short_digest
from regionqa.options import DeviceChoice, VisionRuntime
from regionqa.regions import Box, Region
from regionqa.runtime.devices import choose_device

if TYPE_CHECKING:
    from supervision import Detections

BOX_DIGITS, SCORE_DIGITS = 2, 4
"""Decimals that are kept, so that every box format and command has the same boxes."""


@dataclass(frozen=True)
class FoundObjects:
    """What a detector found in an image, of highest score first."""

    boxes: Floats
    """(N, 4) xyxy in pixels of the image, inside it."""
    scores: Floats
    """(N,)"""
    classes: tuple[int, ...]
    """(N,) index of each box's class, or of its phrase."""
    labels: tuple[str, ...]
    """(N,) its name."""
    empty: int = 0
    """Number of boxes that are left out because they have no area inside the image."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """Boxes, labels and scores."""
        rows = zip(self.boxes.tolist(), self.labels, self.scores.tolist(), strict=True)
        return tuple(Region(Box(*box), label, score) for box, label, score in rows)


class ObjectDetector:
    """Finds objects in images."""

    empty: int
    """Number of boxes so far that were left out because they have no area inside their image."""

    def __init__(self, detector: Detector, options: DetectionOptions) -> None:
        """Check the options against the detector.

        Raises:
            UsageError: It cannot look for the phrases, or does not know a class.
        """
        self._detector, self._options = detector, options
        self.info = info = detector.info
        self.empty = 0
        is_open = info.vocabulary is Vocabulary.open
        if options.phrases and not is_open:
            names = " or ".join(card.name for card in cards_of(Vocabulary.open))
            raise UsageError(
                f"--find: {info.name} knows {len(info.classes)} classes and no others (--only "
                f"chooses among them); use a detector with an open vocabulary, such as {names}"
            )
        if is_open and not options.phrases:
            raise UsageError(
                f'{info.name}: finds what is described in words; add --find, like --find "red cup"'
            )
        if is_open and options.classes:
            raise UsageError(f"--only: {info.name} has no classes of its own; use --find")
        check_classes(info.name, options.classes, info.classes)
        detector.check_phrases(options.phrases)

    @property
    def revision(self) -> str:
        """Identifies the detector's weights and the options that boxes depend on."""
        used = self._options
        chosen = (used.phrases, used.min_score, used.max_boxes, used.classes, used.nms)
        return f"{self.info.revision}+{short_digest(repr(chosen))}"

    def find(self, image: InputImage) -> FoundObjects:
        """Find the objects of an image; ImageError if it cannot be used."""
        options, info = self._options, self.info
        least = info.min_score if options.min_score is None else options.min_score
        nms = info.nms if options.nms is None else options.nms
        found = self._detector.detect(image.load(), options.phrases, least)
        objects = select(
            found, (image.width, image.height), options.classes, nms, options.max_boxes
        )
        self.empty += objects.empty
        return objects

    def detect(self, image: "str | Path | Image.Image | np.ndarray[Any, Any]") -> "Detections":
        """Find the objects of an image.

        Args:
            image: A file, a Pillow image, or a uint8 array (height, width, 3) in RGB.

        Returns:
            `xyxy` (N, 4) in pixels of the image as displayed, `confidence` (N,), `class_id` (N,)
            and `data["class_name"]` (N,), of highest confidence first.

        Raises:
            ImageError: The image cannot be read or used.
            UsageError: The package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise UsageError(
                "detect needs supervision, which is not installed: pip install 'regionqa[detect]'"
            ) from None
        opened = open_image(image) if isinstance(image, str | Path) else image_from_memory(image)
        found = self.find(opened)
        return Detections(
            xyxy=found.boxes.astype(np.float32),
            confidence=found.scores.astype(np.float32),
            class_id=np.array(found.classes, np.int64),
            data={"class_name": np.array(found.labels, dtype=np.str_)},
        )


def load_detector(
    model: str | Path = "",
    options: DetectionOptions | None = None,
    *,
    device: DeviceChoice | str = DeviceChoice.auto,
    vision_runtime: VisionRuntime | str = VisionRuntime.auto,
    asked: str | None = None,
    **values: Any,
) -> ObjectDetector:
    """Load an object detector.

    Args:
        model: A name in the package (docs/guide/detect.md), a folder, or OWNER/NAME on the Hub;
            empty: the detection head of `asked`, or the first of the named ones that is
            downloaded.
        options: What is looked for, and which boxes are kept.
        device: "auto", "cpu" or "cuda".
        vision_runtime: "onnx", "torch", or "auto": ONNX Runtime if the detector was exported.
        asked: The model whose own detection head is the default; None: the default model's, empty:
            none.
        values: Fields of `DetectionOptions`; they replace those of `options`.

    Raises:
        UsageError: An option is unknown, or the detector does not have it.
        BundleError: There is no such detector, or its files are not sound.
        DeviceError: `device` is "cuda" and CUDA cannot be used.
        DownloadError: The detector is on the Hub and cannot be fetched.
    """
    chosen = (options or DetectionOptions()).replace(**values)
    found = find_detector(str(model), open_vocabulary=bool(chosen.phrases), asked=asked)
    detector = open_found(found, choose_device(str(device)), VisionRuntime(vision_runtime))
    return ObjectDetector(detector, chosen)


def check_classes(name: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise UsageError for a class that a detector does not know."""
    for each in wanted:
        if each not in known:
            near = get_close_matches(each.lower(), known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"--only {each}: {hint}{name} knows {listed(known)}")


# -- which boxes are kept --------------------------------------------------------------------------


def select(
    found: ScoredBoxes,
    size: tuple[int, int],
    classes: Sequence[str] = (),
    nms: float = 1.0,
    most: int | None = None,
) -> FoundObjects:
    """Clip, order and thin out boxes; the same boxes in any order give the same result.

    Args:
        found: Boxes, which may reach outside the image.
        size: Width and height of the image, in pixels.
        classes: Names of the classes to keep; empty: all.
        nms: Intersection over union above which the lower of two boxes of a class is left out.
        most: Maximum number of boxes.

    Raises:
        BundleError: A coordinate or score is not a number.
    """
    if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise BundleError("the detector computes values that are no numbers; get it again")
    boxes = np.clip(found.boxes, 0, np.array([*size, *size])).round(BOX_DIGITS)
    numbers = np.array(found.classes, np.int64)
    area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    wanted = np.array([not classes or label in classes for label in found.labels], bool)
    rows = np.flatnonzero(area & wanted)
    keys = [*boxes[rows].T[::-1], numbers[rows], -found.scores[rows]]  # the last counts most
    rows = rows[np.lexsort(keys)]
    if nms < 1 and len(rows):
        rows = rows[suppressed(boxes[rows], found.scores[rows], numbers[rows], nms)]
    rows = rows[:most]
    return FoundObjects(
        boxes[rows],
        found.scores[rows].round(SCORE_DIGITS),
        tuple(numbers[rows].tolist()),
        tuple(found.labels[row] for row in rows),
        int((wanted & ~area).sum()),
    )


def suppressed(
    boxes: Floats, scores: Floats, classes: "np.ndarray[Any, np.dtype[np.int64]]", nms: float
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return the indices of the boxes that remain, in their order; they are ordered by score."""
    import torch
    from torchvision.ops import batched_nms

    kept = batched_nms(*map(torch.from_numpy, (boxes, scores, classes)), nms)
    return np.sort(kept.numpy())
