"""The interface of a segmenter, and segmenters found by name, in a folder or on the Hub."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionqa.backends.base import announce_fetch
from regionqa.bundles.store import CONFIG
from regionqa.errors import BundleError
from regionqa.files import is_folder, with_home
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.segmentation.options import Points
from regionqa.vlm.cards import model_type
from regionqa.vlm.catalogue import (
    FoundCheckpoint,
    NamedCheckpoint,
    find_published,
    first_downloaded,
    read_cards,
    unknown_name,
)
from regionqa.vlm.checkpoints import fetch_checkpoint

FAMILIES = ("sam2", "sam2_video")
"""`model_type`s of SAM 2: of its image model alone, and of its released checkpoints."""


@dataclass(frozen=True)
class SegmenterInfo:
    """What is known of a segmenter before it sees an image."""

    name: str
    revision: str
    """Identifies its weights."""
    device: str
    runtime: str
    """Where it runs, for people: `onnx` or `torch`, and why."""


@dataclass(frozen=True)
class SegmentedMask:
    """What a segmenter finds at points."""

    inside: npt.NDArray[np.bool_]
    """(height, width) of the image."""
    score: float
    """How well it expects the mask to fit: intersection over union with the object, 0 to 1."""


class Segmenter(Protocol):
    """Finds what points in an image lie on."""

    @property
    def info(self) -> SegmenterInfo:
        """The segmenter's properties."""

    def encode(self, image: Image.Image) -> Any:
        """Encode an image, RGB as displayed, once for all of its points.

        Raises:
            ImageError: The image cannot be processed.
        """

    def segment(self, encoded: Any, size: tuple[int, int], points: Points) -> SegmentedMask:
        """Find a region.

        Args:
            encoded: What `encode` returned for the image.
            size: Width and height of the image, in pixels.
            points: Points inside and outside of the region.
        """


OpenSegmenter = Callable[[Device, VisionRuntime], Segmenter]
OTHERS: dict[str, OpenSegmenter] = {}
"""Segmenters that are no checkpoints of transformers, by name."""


def register_segmenter(name: str, open_segmenter: OpenSegmenter) -> None:
    """Add a segmenter of another kind, which is found by this name."""
    OTHERS[name] = open_segmenter


class FoundSegmenter(FoundCheckpoint):
    """A segmenter that was found."""


@cache
def segmenter_cards() -> dict[str, NamedCheckpoint]:
    """Return the segmenters that have a name in the package, by rank."""
    cards = sorted(read_cards("segmenters"), key=lambda card: card.rank)
    return {card.name: card for card in cards}


def segmenter_checkpoint(name: str, revision: str | None = None) -> FoundSegmenter | None:
    """Find a segmenter that is a checkpoint of transformers; None for anything else.

    The arguments and errors are those of `find_published`.
    """
    found = find_published(name, segmenter_cards(), FAMILIES.__contains__, revision)
    return None if found is None else _as_segmenter(found)


def find_segmenter(name: str) -> FoundSegmenter:
    """Find a segmenter; nothing but a config is fetched.

    Args:
        name: A name in the package, a folder, or OWNER/NAME on the Hub; empty: the first of the
            named ones that is downloaded.

    Raises:
        BundleError: There is none, or it is no segmenter.
        DownloadError: It is not on this machine, and the Hub cannot be asked.
    """
    if not name:
        return _as_segmenter(first_downloaded(list(segmenter_cards().values()), "segmenter"))
    if found := segmenter_checkpoint(name):
        return found
    folder = with_home(Path(name))
    if is_folder(folder):
        kind = model_type(folder)
        said = f"says model_type {kind!r}" if kind else "names no model_type, or is missing"
        raise BundleError(
            f"{folder}: its {CONFIG} {said}, which is no segmenter that is known; known are "
            f"{', '.join(FAMILIES)}"
        )
    raise unknown_name(name, "segmenter", segmenter_cards())


def _as_segmenter(found: FoundCheckpoint) -> FoundSegmenter:
    return FoundSegmenter(found.name, found.folder, found.source)


def open_segmenter(name: str, device: Device, runtime: VisionRuntime) -> Segmenter:
    """Find and load a segmenter; one that is published is fetched first.

    Args:
        name: As for `find_segmenter`, or that of a registered one.
        device: Where it runs.
        runtime: ONNX Runtime, torch, or the former if it was exported.

    Raises:
        BundleError: There is none, or its files are not sound.
        DownloadError: It is on the Hub and cannot be fetched.
    """
    if name in OTHERS:
        return OTHERS[name](device, runtime)
    found = find_segmenter(name)
    folder = found.folder
    if folder is None and found.source is not None:
        if found.name in segmenter_cards():
            raise BundleError(
                f"{found.name}: not downloaded yet; run: regionqa download {found.name}"
            )
        folder = fetch_checkpoint(found.source, announce_fetch)
    assert folder is not None
    from regionqa.segmentation.checkpoint import CheckpointSegmenter

    return CheckpointSegmenter(found.name, folder, device, runtime)
