"""Where a model would look if it read a region in another way than the card says.

A wrong unit or order never fails: the model answers about another place. From the answers to the
probe, whose images have known things in known places, the reading that they fit is found.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from regionqa.errors import BundleError
from regionqa.evaluation.probe.images import ROTATED, ProbeItem
from regionqa.regions import Box
from regionqa.vlm.card import CoordinateOrder, CoordinatesWay, CoordinateUnit
from regionqa.vlm.coordinates import ResizedSize, numbers, read_numbers

Point = tuple[float, float]
"""x and y in pixels of the image as displayed."""


@dataclass(frozen=True)
class Reading:
    """One way in which a model may read what it is told."""

    name: str
    """What it would mean, as the end of a sentence "answers fit ..."."""
    look: Callable[[ProbeItem], Point | None]
    """Return the middle of the place that the model would look at; None: outside the image."""
    kinds: frozenset[str] | None = None
    """Kinds of images that it differs in; None: all."""

    def thing(self, item: ProbeItem) -> str | None:
        """Return what a model would see that reads so; None: it would look outside the image."""
        if self.kinds is not None and item.layout.kind not in self.kinds:
            return item.cell.thing
        point = self.look(item)
        return None if point is None else item.layout.thing_at(*point)


def other_readings(way: CoordinatesWay | None, resized: ResizedSize) -> Iterator[Reading]:
    """Yield readings other than the card's.

    Args:
        way: The card's convention, if regions are told by coordinates.
        resized: Size of an image as the model sees it.
    """
    yield Reading("the image as stored, without its EXIF rotation", unrotated, frozenset({ROTATED}))
    if way is None:
        return
    units = [unit for unit in CoordinateUnit if _is_known(unit, resized)]
    for unit in units:
        for order in CoordinateOrder:
            # of as many bins as thousandths, or nearly, the places are the same
            known = unit is not CoordinateUnit.bins or way.unit is CoordinateUnit.bins
            if known and (unit, order) != (way.unit, way.order):
                yield Reading(
                    f'unit = "{unit}" and order = "{order}"',
                    _looks_by(way, unit, order, resized),
                )


def center(box: Box) -> Point:
    """Return the middle of a box."""
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def unrotated(item: ProbeItem) -> Point:
    """Return where a box lies if the image is not turned as its EXIF orientation says.

    The stored image is turned clockwise to be displayed: its (x, y), as fractions, is displayed
    at (1 - y, x).
    """
    width, height = item.layout.size
    x, y = center(item.cell.asked)
    return width * (1 - y / height), height * (x / width)


def _is_known(unit: CoordinateUnit, resized: ResizedSize) -> bool:
    """Return whether a unit means anything for the model."""
    if unit is CoordinateUnit.resized_pixels:
        try:
            resized((480, 480))
        except BundleError:  # its processor makes tiles, or squares
            return False
    return True


def _looks_by(
    way: CoordinatesWay, unit: CoordinateUnit, order: CoordinateOrder, resized: ResizedSize
) -> Callable[[ProbeItem], Point | None]:
    def look(item: ProbeItem) -> Point | None:
        size = item.layout.size
        x0, y0, x1, y1 = numbers(way, item.cell.asked, size, resized)
        same = order is way.order
        written = (x0, y0, x1, y1) if same else (y0, x0, y1, x1)
        x0, y0, x1, y1 = read_numbers(unit, written, size, resized, way.bins)
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        return (x, y) if 0 <= x < size[0] and 0 <= y < size[1] else None

    return look
