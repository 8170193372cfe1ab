"""Points and masks to regions of an image.

import regionqa

segmenter = regionqa.load_segmenter("sam2.1-tiny")
region = segmenter.select("cat.jpg", [(120, 80)])
"""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from regionqa.errors import BoxError, ItemError
from regionqa.images.reading import InputImage, image_from_memory, open_image
from regionqa.masks import Mask
from regionqa.options import DeviceChoice, VisionRuntime
from regionqa.regions import Box, Region, WrittenBox
from regionqa.runtime.devices import choose_device
from regionqa.segmentation.base import Segmenter, SegmenterInfo, open_segmenter
from regionqa.segmentation.options import ClickedPoint, Points, points_text


class PointSegmenter:
    """Finds regions at points; may be used from several threads."""

    def __init__(self, segmenter: Segmenter, kept: int = 1) -> None:
        """kept: number of images whose encoding is kept for further points."""
        self._segmenter, self._kept = segmenter, kept
        self._encoded: WeakKeyDictionary[InputImage, Any] = WeakKeyDictionary()
        self._lock = Lock()

    @property
    def info(self) -> SegmenterInfo:
        """The segmenter's properties."""
        return self._segmenter.info

    def find(self, image: InputImage, points: Points) -> Region:
        """Find the region that points lie on: its mask, and the box around it.

        Args:
            image: An opened image.
            points: Points in its pixels, of which one at least is inside the region.

        Raises:
            ItemError: A point lies outside the image, nothing is found, or the image cannot be
                used.
        """
        size = (image.width, image.height)
        for point in points:
            if not (0 <= point.x < size[0] and 0 <= point.y < size[1]):
                raise BoxError(
                    f"{image.name}: point {point.x:g},{point.y:g} lies outside the image, which is "
                    f"{size[0]} x {size[1]} pixels"
                )
        with self._lock:
            found = self._segmenter.segment(self._encoding(image), size, points)
        mask = Mask.of_array(found.inside)
        if mask.bounds is None:
            raise ItemError(
                f"{image.name}: {self.info.name} finds nothing at {points_text(points)}; put the "
                "point on the object, or give further points"
            )
        return mask_region(mask)

    def _encoding(self, image: InputImage) -> Any:
        if image not in self._encoded:
            while len(self._encoded) >= self._kept:
                self._encoded.pop(next(iter(self._encoded)))
            self._encoded[image] = self._segmenter.encode(image.load())
        return self._encoded[image]

    def select(
        self,
        image: "str | Path | Image.Image | np.ndarray[Any, Any]",
        inside: Sequence[tuple[float, float]],
        outside: Sequence[tuple[float, float]] = (),
    ) -> Region:
        """Find the region that points lie on.

        Args:
            image: A file, a Pillow image, or a uint8 array (height, width, 3) in RGB.
            inside: Points on the region, x and y in pixels of the image as displayed; one at least.
            outside: Points that do not belong to it.

        Raises:
            ItemError: As for `find`, or there is no point inside.
        """
        opened = open_image(image) if isinstance(image, str | Path) else image_from_memory(image)
        if not inside:
            raise BoxError(f"{opened.name}: no point inside the region; give one at least")
        points = [ClickedPoint(float(x), float(y)) for x, y in inside]
        points += [ClickedPoint(float(x), float(y), inside=False) for x, y in outside]
        return self.find(opened, tuple(points))


def load_segmenter(
    model: str | Path = "",
    *,
    device: DeviceChoice | str = DeviceChoice.auto,
    vision_runtime: VisionRuntime | str = VisionRuntime.auto,
    kept: int = 1,
) -> PointSegmenter:
    """Load a segmenter.

    Args:
        model: A name in the package (docs/guide/masks.md), a folder, or OWNER/NAME on the Hub;
            empty: the first of the named ones that is downloaded.
        device: "auto", "cpu" or "cuda".
        vision_runtime: "onnx", "torch", or "auto": ONNX Runtime if the segmenter was exported.
        kept: Number of images whose encoding is kept for further points.

    Raises:
        BundleError: There is no such segmenter, or its files are not sound.
        DeviceError: `device` is "cuda" and CUDA cannot be used.
        DownloadError: The segmenter is on the Hub and cannot be fetched.
    """
    chosen = choose_device(str(device))
    return PointSegmenter(open_segmenter(str(model), chosen, VisionRuntime(vision_runtime)), kept)


def mask_region(mask: Mask) -> Region:
    """Return the region of a mask that is not empty: the mask, and the box around it."""
    assert mask.bounds is not None
    return Region(Box(*map(float, mask.bounds)), mask=mask)


class MarkedRegions:
    """The regions that a command marks on every image: boxes, points, masks, in this order."""

    def __init__(
        self,
        boxes: Sequence[WrittenBox],
        points: Sequence[Points],
        masks: Sequence[Mask],
        segmenter: PointSegmenter | None,
    ) -> None:
        """segmenter: finds what points lie on; None if there are none."""
        self._boxes, self._points = tuple(boxes), tuple(points)
        self._masks, self._segmenter = tuple(masks), segmenter
        self._last: tuple[InputImage, tuple[WrittenBox, ...]] | None = None

    def of(self, image: InputImage) -> tuple[WrittenBox, ...]:
        """Return the regions of an image; those of the last image are kept.

        Raises:
            ItemError: A point lies outside the image, or on nothing; or the image cannot be used.
        """
        if self._last is None or self._last[0] is not image:
            found = []
            for points in self._points:
                assert self._segmenter is not None
                found.append(self._segmenter.find(image, points))
            regions = (*found, *map(mask_region, self._masks))
            self._last = image, (*self._boxes, *map(WrittenBox.of, regions))
        return self._last[1]

    def finish(self, *, each: bool) -> None:
        """Do nothing: every region that is marked is asked about."""
