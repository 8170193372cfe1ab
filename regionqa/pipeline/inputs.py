"""Items of a command line to a stream of requests.

`make_requests` opens the images of items (`regionqa.pipeline.items`), looks up their boxes and sets
their questions. A fault of one item becomes the error of its request; the stream continues.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from regionqa.boxes.files import BoxFile
from regionqa.boxes.lookup import is_same_file
from regionqa.boxes.sizes import SizeCheck
from regionqa.data.english import counted
from regionqa.data.fields import check_text
from regionqa.errors import ItemError
from regionqa.images.reading import InputImage, open_image
from regionqa.language.references import inline_regions, question_text
from regionqa.pipeline.items import InputItem
from regionqa.regions import Region, WrittenBox, clip_all
from regionqa.requests import Request

if TYPE_CHECKING:
    from regionqa.detection.detector import ObjectDetector
    from regionqa.segmentation.marks import MarkedRegions


@dataclass(frozen=True)
class AskSettings:
    """Questions and boxes for items that have none of their own."""

    question: str | None = None
    """Question about the whole image, or about its regions."""
    region_question: str | None = None
    """Question about a single region, if `each`; None: `question`."""
    boxes: tuple[WrittenBox, ...] = ()
    """Boxes on every image; empty: the whole image."""
    marks: "MarkedRegions | None" = None
    """Regions on every image that are marked otherwise too; None: they are `boxes`."""
    detector: "ObjectDetector | None" = None
    """What finds the boxes of images; None: they are given, or there are none."""
    boxfile: BoxFile | None = None
    """Boxes by image; an image that it does not list is an error."""
    scale_boxes: bool = False
    """Whether boxes of `boxfile` are scaled from the sizes that it states to those of images."""
    fade: float = 0.0
    """Share by which crops are grey outside of their regions' masks."""
    each: bool = False
    """One request per region instead of one per image. An image that `boxfile` lists without any
    box then has no request."""


class ImageBoxes(Protocol):
    """Where the boxes of images come from."""

    def of(self, image: InputImage) -> tuple[WrittenBox, ...]:
        """Return the boxes of an image; ItemError if there is a fault."""

    def finish(self, *, each: bool) -> None:
        """Warn about what was found for all images together.

        each: whether images without boxes have no request.
        """


def make_requests(
    items: Iterable[InputItem],
    settings: AskSettings,
    warn: Callable[[str], None],
    find_image: Callable[[str], InputImage] | None = None,
) -> Iterator[Request]:
    """Make the requests of items, in their order, each before the next item is read.

    Consecutive items of the same image share one `InputImage`, so that it is encoded once. An
    item's own boxes and question take precedence over those of `settings`. Boxes are clipped to
    the image. An item at fault becomes a request with an error; with `settings.each`, a malformed
    box fails alone.

    Args:
        items: Items of `find_images`.
        settings: Questions and boxes for items without their own.
        warn: Called with a line for each box that is clipped.
        find_image: Opens the image of a name; None: `open_image`.
    """
    open_cached = lru_cache(maxsize=1)(find_image or open_image)
    boxes_of: ImageBoxes | None = settings.marks
    if settings.detector is not None:
        boxes_of = DetectedBoxes(settings.detector, warn, each=settings.each)
    if settings.boxfile is not None:
        boxes_of = FileBoxes(settings.boxfile, warn, scale=settings.scale_boxes)
    for item in items:
        image = None
        try:
            if item.error is not None:
                raise item.error
            image = open_cached(item.image)
            _check_size(item, image)
            item = _with_inline(item, settings)
            groups = _groups(item, settings, image, boxes_of)
        except ItemError as error:
            yield replace(_bare(item, settings), source=image, error=error)
        else:
            for boxes in groups:
                yield _request(item, settings, image, boxes, warn)
    if boxes_of is not None:
        boxes_of.finish(each=settings.each)


def _request(
    item: InputItem,
    settings: AskSettings,
    image: InputImage,
    boxes: tuple[WrittenBox, ...],
    warn: Callable[[str], None],
) -> Request:
    """Make one request about all these boxes, or about the whole image if there are none."""
    request = replace(_bare(item, settings, alone=settings.each and bool(boxes)), source=image)
    question = request.question
    try:
        if not question:
            raise ItemError(f'{item.image}: no question; give one, or a "question" in its line')
        check_text(question, item.image)
        regions, warnings = _place(boxes, image)
    except ItemError as error:
        return replace(request, error=error)
    for warning in warnings:
        warn(f"{item.image}: {warning}")
    return replace(request, regions=regions)


class FileBoxes:
    """The boxes of a box file for images, each entry for a single one."""

    def __init__(self, file: BoxFile, warn: Callable[[str], None], *, scale: bool = False) -> None:
        """scale: whether boxes are scaled from the sizes that the file states."""
        self._file = file
        self._warn = warn
        self._sizes = SizeCheck(file.source, scale, warn)
        self._used: dict[int, InputImage] = {}
        self._empty: list[str] = []
        self._elsewhere: list[str] = []

    def of(self, image: InputImage) -> tuple[WrittenBox, ...]:
        """Return the boxes of an image.

        Raises:
            ItemError: The file has none, or they are another image's as well, or malformed.
        """
        entry = self._file.entry_for(image.name)
        if entry is None:
            raise ItemError(self._file.why_not(image.name))
        if entry.boxes and entry.name is not None:
            other = self._used.setdefault(id(entry), image)
            if other.source != image.source and not is_same_file(other.source, image.source):
                raise ItemError(
                    f"{image.name}: {self._file.source} has the same boxes ({entry.name}) for "
                    f"this image and {other.name}, and they can be right for one of the two only; "
                    "write the image's folder into the file"
                )
            own = self._file.own_image(entry)
            if own is not None and not is_same_file(own, image.source):
                self._elsewhere.append(image.name)
                if len(self._elsewhere) == 1:
                    self._warn(
                        f"{self._file.source}: its boxes of {entry.name} are taken for "
                        f"{image.name}, but beside the file is another image, {own}; make sure "
                        "that they were drawn on the former"
                    )
        boxes = self._sizes.fit(entry, image.name, (image.width, image.height))
        if not boxes:
            self._empty.append(image.name)
        return boxes

    def finish(self, *, each: bool) -> None:
        """See `ImageBoxes.finish`."""
        self._sizes.finish()
        if len(self._elsewhere) > 1:
            self._warn(
                f"{self._file.source}: {len(self._elsewhere):,} images in all are others than "
                "those beside the file"
            )
        if each and self._empty:
            self._warn(
                f"{self._file.source}: has no boxes for {counted(len(self._empty), 'image')}, so "
                f"nothing was asked about them; the first is {self._empty[0]}"
            )


class DetectedBoxes:
    """The boxes that a detector finds in images; those of the last image are kept."""

    def __init__(
        self, detector: "ObjectDetector", warn: Callable[[str], None], *, each: bool
    ) -> None:
        """each: whether an image without boxes has no request; otherwise it is an error."""
        self._detector, self._warn, self._each = detector, warn, each
        self._last: tuple[InputImage, tuple[WrittenBox, ...]] | None = None
        self._empty: list[str] = []

    def of(self, image: InputImage) -> tuple[WrittenBox, ...]:
        """Return the boxes of an image; ItemError if it cannot be used, or must have some."""
        if self._last is None or self._last[0] is not image:
            regions = self._detector.find(image).regions
            self._last = image, tuple(map(WrittenBox.of, regions))
            if not regions:
                self._empty.append(image.name)
        boxes = self._last[1]
        if not boxes and not self._each:
            raise ItemError(
                f"{image.name}: {self._detector.info.name} found nothing to ask about; lower "
                "--min-score, or leave the boxes out to ask about the whole image"
            )
        return boxes

    def finish(self, *, each: bool) -> None:
        """See `ImageBoxes.finish`."""
        name = self._detector.info.name
        if each and self._empty:
            self._warn(
                f"{name}: found nothing in {counted(len(self._empty), 'image')}, so nothing was "
                f"asked about them; the first is {self._empty[0]}; --min-score finds more"
            )
        if self._detector.empty:
            boxes = counted(self._detector.empty, "box")
            self._warn(f"{name}: {boxes} left out, which had no area inside the image")


def _check_size(item: InputItem, image: InputImage) -> None:
    """Raise ItemError if the boxes of a line are for an image of another size."""
    if item.size not in (None, (image.width, image.height)):
        width, height = item.size or (0, 0)
        raise ItemError(
            f"{item.image}: is {image.width} x {image.height} pixels, but its line gives boxes for "
            f"{width} x {height}; scale them, or leave out width and height if they fit"
        )


def _with_inline(item: InputItem, settings: AskSettings) -> InputItem:
    """Take the regions out of a question that holds them inline; they become the item's boxes."""
    question = item.question or settings.question or ""
    (text,), inline = inline_regions([question_text(question)], with_boxes=False)
    if inline:
        command = settings.boxes or settings.boxfile or settings.detector or settings.marks
        given = command if item.boxes is None else item.boxes
        inline_regions([question], with_boxes=bool(given))
        if settings.each:
            raise ItemError(f"{item.image}: the question holds its regions; leave out --each")
        return replace(item, question=text, boxes=inline)
    return replace(item, question=text) if text != question else item


def _groups(
    item: InputItem,
    settings: AskSettings,
    image: InputImage,
    boxes_of: "ImageBoxes | None",
) -> list[tuple[WrittenBox, ...]]:
    """Return the boxes of each request to make; an empty group stands for the whole image."""
    boxes = settings.boxes if item.boxes is None else item.boxes
    if item.boxes is None and boxes_of is not None:
        boxes = boxes_of.of(image)
        if not boxes and settings.each:
            return []
    return [(box,) for box in boxes] if settings.each and boxes else [boxes]


def _place(
    boxes: tuple[WrittenBox, ...], image: InputImage
) -> tuple[tuple[Region, ...], list[str]]:
    """Clip boxes to the image; return regions in pixels, and a warning for each clipped box."""
    size = (image.width, image.height)
    return clip_all(tuple(box.resolve(*size) for box in boxes), *size)


def _bare(item: InputItem, settings: AskSettings, *, alone: bool = False) -> Request:
    """Make the request of an item without image and regions; without a question, it is empty.

    alone: whether it has a single region.
    """
    command = settings.region_question if alone else None
    question = item.question or command or settings.question or ""
    return Request(
        item.image, question, choices=item.choices, fade=settings.fade, id=item.id, meta=item.meta
    )
