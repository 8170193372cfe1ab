"""Detection: the boxes of a detector against labelled boxes, by COCO's average precision.

    evaluate_detector("rtdetrv2-r18", Path("instances.json"), Path("photos")).average_precision

Precision and recall are computed by faster-coco-eval, a port of COCO's own evaluation.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regionqa.boxes.files import BoxFile, read_boxes
from regionqa.boxes.images import ImageFolders
from regionqa.boxes.remarks import LeftOut, summarise_remarks
from regionqa.boxes.sizes import SizeCheck
from regionqa.data.english import counted
from regionqa.detection.base import DetectorInfo, open_found
from regionqa.detection.cards import Vocabulary, find_detector
from regionqa.detection.detector import ObjectDetector
from regionqa.detection.options import DetectionOptions, listed
from regionqa.errors import BoxError, DataError, ItemError
from regionqa.evaluation.report import Table
from regionqa.images.reading import InputImage, open_image
from regionqa.options import RuntimeOptions
from regionqa.regions import Region, WrittenBox
from regionqa.runtime.devices import choose_device

MOST_BOXES = 100
"""Boxes per image that count, as in COCO."""
UNLABELLED = "boxes without a label"

Precisions = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledImage:
    """An image with its true boxes, or why it cannot be used."""

    name: str
    image: InputImage | None = None
    regions: tuple[Region, ...] = ()
    """Inside the image; every one has a label."""
    crowds: tuple[bool, ...] = ()
    """Whether each is around a group of objects, which neither counts nor harms."""
    error: ItemError | None = None


@dataclass(frozen=True)
class DetectionResult:
    """How well a detector finds labelled objects. Shares are in percent; NaN: undefined."""

    info: DetectorInfo
    revision: str
    images: int
    boxes: int
    """True boxes, without crowds."""
    average_precision_50: float
    """mAP@50: mean over classes of the average precision at an intersection over union of 0.5."""
    average_precision: float
    """mAP@50:95: its mean over ten thresholds from 0.5 to 0.95."""
    average_recall: float
    """Mean over classes and thresholds of the recall of at most 100 boxes per image."""
    classes: Mapping[str, tuple[float, int]]
    """Average precision at 0.5, and number of true boxes, by class."""
    failed: tuple[str, ...] = ()
    """Why images could not be used, a line each."""
    remarks: tuple[str, ...] = ()
    """What was left out, a line each."""
    settings: Mapping[str, object] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Return the tables to print."""
        header = ("", "value", "of")
        rows = [
            ("mAP@50", _percent(self.average_precision_50), f"{self.boxes:,}"),
            ("mAP@50:95", _percent(self.average_precision), f"{self.boxes:,}"),
            ("average recall", _percent(self.average_recall), f"{self.boxes:,}"),
        ]
        classes = sorted(self.classes.items(), key=lambda item: (-item[1][1], item[0]))
        title = f"detection: {self.info.name} {self.revision} on {self.info.device}"
        return [
            Table(title, header, tuple(rows)),
            Table(
                "AP@50 by class",
                header,
                tuple((name, _percent(value), f"{count:,}") for name, (value, count) in classes),
            ),
        ]

    def document(self) -> dict[str, object]:
        """Return everything as JSON holds it."""
        return {
            "task": "detection",
            "model": self.info.name,
            "revision": self.revision,
            "device": self.info.device,
            "settings": dict(self.settings),
            "images": self.images,
            "boxes": self.boxes,
            "failed": len(self.failed),
            "mAP@50": _number(self.average_precision_50),
            "mAP@50:95": _number(self.average_precision),
            "average_recall": _number(self.average_recall),
            "classes": {
                name: {"AP@50": _number(value), "boxes": count}
                for name, (value, count) in sorted(self.classes.items())
            },
        }


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f} %"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)


def evaluate_detector(
    model: str,
    boxes: Path,
    images: Path | None = None,
    *,
    runtime: RuntimeOptions | None = None,
    limit: int | None = None,
    scale_boxes: bool = False,
    track: Callable[[Iterable[LabelledImage]], Iterable[LabelledImage]] = iter,
) -> DetectionResult:
    """Compare a detector's boxes with labelled ones.

    A detector with an open vocabulary looks for the classes of the file.

    Args:
        model: As for `regionqa.load_detector`.
        boxes: A file or folder of boxes with labels, in any format that `read_boxes` reads.
        images: The folder of the images; None: the boxes' folder.
        runtime: Device, and whether ONNX Runtime or torch is used.
        limit: Number of images, the first ones; None: all.
        scale_boxes: Whether boxes are scaled from the sizes that the file states.
        track: Passes the images on, counted.

    Raises:
        DataError: There are no labelled boxes, or no image could be used.
        RegionQAError: The detector cannot be loaded, or the file not be read.
    """
    runtime = runtime or RuntimeOptions()
    boxfile = read_boxes(boxes)
    folder = images or (boxes if boxes.is_dir() else boxes.parent)
    left_out, sizes = list[LeftOut](), SizeCheck(boxfile.source, scale_boxes)
    truth = list(islice(labelled_images(boxfile, folder, left_out, sizes), limit))
    names = sorted({region.label or "" for each in truth for region in each.regions})
    if not names:
        raise DataError(f"{boxes}: no image with a labelled box could be used")
    detector = _detector(model, names, runtime)
    found, failed = _detect(detector, track(truth))
    if not any(each.regions for each, _ in found):
        raise DataError(f"{boxes}: no image could be used; the first: {failed[0]}")
    unknown = [
        name for name in names if detector.info.classes and name not in detector.info.classes
    ]
    remarks = [*boxfile.remarks, *(f"{boxes}: {line}" for line in summarise_remarks(left_out))]
    remarks += sizes.summary
    if unknown:
        remarks.append(
            f"{detector.info.name} does not know {counted(len(unknown), 'class')} of {boxes}, "
            f"whose boxes count as not found: {listed(unknown)}"
        )
    return score_detections(
        found, names, detector, failed=failed, remarks=remarks,
        settings={"boxes": str(boxes), "limit": limit, "most_boxes": MOST_BOXES},
    )  # fmt: skip


def _detect(
    detector: ObjectDetector, images: Iterable[LabelledImage]
) -> tuple[list[tuple[LabelledImage, tuple[Region, ...]]], list[str]]:
    """Return images with the boxes detected in them, and why others failed."""
    found, failed = list[tuple[LabelledImage, tuple[Region, ...]]](), list[str]()
    for each in images:
        try:
            if each.error is not None or each.image is None:
                raise each.error or ItemError(f"{each.name}: cannot be used")
            found.append((each, detector.find(each.image).regions))
        except ItemError as error:
            failed.append(str(error))
    return found, failed


def _detector(model: str, names: Sequence[str], runtime: RuntimeOptions) -> ObjectDetector:
    """Load a detector that keeps every box, and looks for the classes if it takes words."""
    opened = open_found(find_detector(model), choose_device(runtime.device), runtime.vision_runtime)
    find = tuple(names) if opened.info.vocabulary is Vocabulary.open else ()
    options = DetectionOptions(find=find, min_score=0.0, max_boxes=MOST_BOXES)
    return ObjectDetector(opened, options)


def labelled_images(
    boxfile: BoxFile, folder: Path, left_out: list[LeftOut], sizes: SizeCheck
) -> Iterator[LabelledImage]:
    """Yield the images of a file with their boxes, in its order.

    Args:
        boxfile: Boxes with labels.
        folder: The folder of the images.
        left_out: Gets what is left out: boxes without a label.
        sizes: Compares images with the sizes that the file states.
    """
    folders = ImageFolders(boxfile.source, [folder], deep=True)
    for entry in boxfile.entries:
        if entry.name is None:
            continue
        try:
            image = open_image(folders.find(entry))
            size = (image.width, image.height)
            written = sizes.fit(entry, entry.name, size)
            kept = [box for box in written if box.label]
            left_out += [LeftOut(entry.name, UNLABELLED)] * (len(written) - len(kept))
            regions = tuple(_placed(box, size) for box in kept)
        except ItemError as error:
            yield LabelledImage(entry.name, error=error)
            continue
        yield LabelledImage(entry.name, image, regions, tuple(box.is_crowd for box in kept))


def _placed(written: WrittenBox, size: tuple[int, int]) -> Region:
    """Return the part of a box inside the image; BoxError if there is none."""
    region = written.resolve(*size)
    label = " ".join((written.label or "").split())
    if not label:
        raise BoxError(f"box {region.box}: its label is empty")
    return Region(region.box.clipped(*size), label)


def score_detections(
    found: Sequence[tuple[LabelledImage, Sequence[Region]]],
    names: Sequence[str],
    detector: ObjectDetector,
    *,
    failed: Sequence[str] = (),
    remarks: Sequence[str] = (),
    settings: Mapping[str, object] | None = None,
) -> DetectionResult:
    """Score detected boxes.

    Args:
        found: Images with their true boxes, and the boxes detected in them.
        names: The classes; detected boxes of other classes do not count.
        detector: What detected them.
        failed: Why images could not be used.
        remarks: What was left out.
        settings: Options, by name.
    """
    numbers = {name: number for number, name in enumerate(names, start=1)}
    truth, results = list[dict[str, Any]](), list[dict[str, Any]]()
    for image, (labelled, detected) in enumerate(found, start=1):
        for region, crowd in zip(labelled.regions, labelled.crowds, strict=True):
            record = _record(region, image, numbers)
            truth.append({**record, "id": len(truth) + 1, "iscrowd": int(crowd)})
        results += [
            {**_record(region, image, numbers), "score": region.score}
            for region in detected
            if region.label in numbers
        ]
    precision, recall = _coco(truth, results, len(found), numbers)
    counts = dict.fromkeys(names, 0)
    for labelled, _ in found:
        for region, crowd in zip(labelled.regions, labelled.crowds, strict=True):
            counts[region.label or ""] += not crowd
    return DetectionResult(
        info=detector.info,
        revision=detector.revision,
        images=len(found),
        boxes=sum(counts.values()),
        average_precision_50=_mean(precision[0]),
        average_precision=_mean(precision),
        average_recall=_mean(recall),
        classes={
            name: (_mean(precision[0, :, number - 1]), counts[name])
            for name, number in numbers.items()
        },
        failed=tuple(failed),
        remarks=tuple(remarks),
        settings=settings or {},
    )


def _record(region: Region, image: int, numbers: Mapping[str, int]) -> dict[str, Any]:
    """Return a box as an annotation or result of COCO."""
    box = region.box
    return {
        "image_id": image,
        "category_id": numbers[region.label or ""],
        "bbox": [box.x0, box.y0, box.width, box.height],
        "area": box.width * box.height,
    }


def _coco(
    truth: list[dict[str, Any]],
    results: list[dict[str, Any]],
    images: int,
    numbers: Mapping[str, int],
) -> tuple[Precisions, Precisions]:
    """Return precision (10, 101, classes) and recall (10, classes), for boxes of every size.

    -1 stands for a class without any true box.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    annotated = COCO(
        {
            "images": [{"id": number} for number in range(1, images + 1)],
            "annotations": truth,
            "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        }
    )
    evaluation = COCOeval_faster(annotated, annotated.loadRes(results), iouType="bbox")
    evaluation.params.maxDets = [MOST_BOXES]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], np.float64)
    recall = np.asarray(evaluation.eval["recall"], np.float64)
    return precision[..., 0, 0], recall[..., 0, 0]


def _mean(values: Precisions) -> float:
    """Return the mean in percent, without classes that have no box; NaN if none has."""
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else float("nan")
