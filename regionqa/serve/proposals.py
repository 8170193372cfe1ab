"""Regions that a client need not draw: what a point lies on, and what a detector finds."""

from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated

import msgspec
from msgspec import Meta

from regionqa.detection.base import Detector, open_found
from regionqa.detection.cards import Vocabulary, find_detector
from regionqa.detection.detector import ObjectDetector
from regionqa.detection.options import AUTO, DetectionOptions
from regionqa.options import RuntimeOptions
from regionqa.pipeline.outputs import region_fields
from regionqa.runtime.devices import choose_device
from regionqa.segmentation.marks import PointSegmenter, load_segmenter
from regionqa.segmentation.options import ClickedPoint
from regionqa.serve.bodies import HttpError
from regionqa.serve.gallery import Gallery
from regionqa.serve.options import ServeOptions

MOST_POINTS = 64
"""Points of a region."""
ENCODED = 8
"""Images whose encoding is kept for further points."""
Score = Annotated[float, Meta(ge=0, le=1, description="Score that a box must exceed.")]
Count = Annotated[int, Meta(ge=1, description="Most boxes, those of the highest score.")]
Point = Annotated[list[float], Meta(min_length=2, max_length=2)]


class PointsBody(msgspec.Struct):
    """Points on one region of an image, in its pixels."""

    image: str
    inside: Annotated[list[Point], Meta(description="x and y of points on the region.")]
    outside: Annotated[list[Point], Meta(description="Points that do not belong to it.")] = []


class DetectBody(msgspec.Struct):
    """An image in which objects are to be found."""

    image: str
    find: Annotated[
        list[str], Meta(description="What to find, in words, with a detector that takes them.")
    ] = []
    min_score: Score | None = None
    max_boxes: Count | None = None


@dataclass(frozen=True)
class Proposers:
    """What proposes regions; may be used from several threads."""

    segmenter: PointSegmenter | None = None
    detector: Detector | None = None
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def load(cls, serve: ServeOptions, runtime: RuntimeOptions) -> "Proposers":
        """Load what the options name; the errors are those of `load_segmenter` and `open_found`."""
        segmenter, detector = None, None
        if serve.segmenter is not None:
            segmenter = load_segmenter(
                "" if serve.segmenter == AUTO else serve.segmenter,
                device=runtime.device, vision_runtime=runtime.vision_runtime, kept=ENCODED,
            )  # fmt: skip
        if serve.detector is not None:
            name = "" if serve.detector == AUTO else serve.detector
            found = find_detector(name, asked="" if runtime.server else runtime.model)
            detector = open_found(found, choose_device(runtime.device), runtime.vision_runtime)
        return cls(segmenter, detector)

    def describe(self) -> dict[str, object]:
        """Return the entries of the server's status."""
        detector = self.detector
        return {
            "segmenter": self.segmenter and {"name": self.segmenter.info.name},
            "detector": detector
            and {
                "name": detector.info.name,
                "takes_words": detector.info.vocabulary is Vocabulary.open,
            },
        }

    def segment(self, gallery: Gallery, body: PointsBody) -> dict[str, object]:
        """Find the region that points lie on.

        Raises:
            HttpError: There is no segmenter, or no point inside, or there are too many.
            ItemError: There is no such image, or nothing is found.
        """
        if self.segmenter is None:
            raise HttpError(422, "no segmenter; start the server with --segmenter MODEL")
        if not body.inside or len(body.inside) + len(body.outside) > MOST_POINTS:
            raise HttpError(422, f"send 1 to {MOST_POINTS} points, one of them in 'inside'")
        points = [ClickedPoint(x, y) for x, y in body.inside]
        points += [ClickedPoint(x, y, inside=False) for x, y in body.outside]
        region = self.segmenter.find(gallery.open(body.image), tuple(points))
        return {"region": region_fields(region)}

    def detect(self, gallery: Gallery, body: DetectBody) -> dict[str, object]:
        """Find objects, those of highest score first.

        Raises:
            HttpError: There is no detector.
            UsageError: It takes words and gets none, or the other way round.
            ItemError: There is no such image, or it cannot be used.
        """
        if self.detector is None:
            raise HttpError(422, "no detector; start the server with --detector MODEL")
        image = gallery.open(body.image)
        options = DetectionOptions(
            find=tuple(body.find), min_score=body.min_score, max_boxes=body.max_boxes
        )
        with self._lock:
            found = ObjectDetector(self.detector, options).find(image)
        regions = [region_fields(each) | {"score": each.score} for each in found.regions]
        return {"regions": regions, "left_out": found.empty}
