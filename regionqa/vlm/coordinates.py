"""Boxes as the numbers that a model was trained to read."""

from collections.abc import Callable
from math import floor

from regionqa.regions import Box
from regionqa.vlm.card import CoordinateOrder, CoordinatesWay, CoordinateUnit

Size = tuple[int, int]
"""Width and height in pixels."""
ResizedSize = Callable[[Size], Size]
"""Returns the size to which a model's image processor resizes an image of some size."""

FRACTIONS = (CoordinateUnit.fraction, CoordinateUnit.square_fraction)
"""Units whose numbers are no whole ones."""


def write_box(way: CoordinatesWay, box: Box, size: Size, resized: ResizedSize) -> str:
    """Write the four numbers of a box.

    Args:
        way: The model's convention.
        box: The box, in pixels of the image as displayed.
        size: Width and height of the image as displayed.
        resized: Size of the image as the model sees it; called for pixels of it only.
    """
    x0, y0, x1, y1 = numbers(way, box, size, resized)
    ordered = (y0, x0, y1, x1) if way.order is CoordinateOrder.yxyx else (x0, y0, x1, y1)
    return way.box.format(*(_written(way, number) for number in ordered))


def numbers(
    way: CoordinatesWay, box: Box, size: Size, resized: ResizedSize
) -> tuple[float, float, float, float]:
    """Return a box as xyxy in the unit of a way, rounded as it is written.

    A box that is too small for the unit is written one step wide: of two equal numbers a model
    would read an empty box.
    """
    x0, y0, x1, y1, across, down = _scaled(way, box, size, resized)
    step = 10**-way.decimals if way.unit in FRACTIONS else 1
    x0, x1 = _apart(x0, x1, step, across)
    y0, y1 = _apart(y0, y1, step, down)
    return (x0, y0, x1, y1)


def _scaled(
    way: CoordinatesWay, box: Box, size: Size, resized: ResizedSize
) -> tuple[float, float, float, float, float, float]:
    """Return a rounded box in the unit of a way, and the largest numbers across and down."""
    width, height = size
    match way.unit:
        case CoordinateUnit.fraction:
            shares = (box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)
            return *_rounded(shares, way.decimals), 1, 1
        case CoordinateUnit.square_fraction:
            side = max(width, height)
            left, top = (side - width) // 2, (side - height) // 2
            shares = (
                (box.x0 + left) / side,
                (box.y0 + top) / side,
                (box.x1 + left) / side,
                (box.y1 + top) / side,
            )
            return *_rounded(shares, way.decimals), 1, 1
        case CoordinateUnit.bins:
            most = way.bins - 1
            x0, x1 = (min(floor(x * way.bins / width), most) for x in (box.x0, box.x1))
            y0, y1 = (min(floor(y * way.bins / height), most) for y in (box.y0, box.y1))
            return (x0, y0, x1, y1, most, most)
        case CoordinateUnit.thousand:
            across, down = 1000, 1000
        case CoordinateUnit.resized_pixels:
            across, down = resized(size)
        case CoordinateUnit.pixels:
            across, down = size
    return (
        round(box.x0 * across / width),
        round(box.y0 * down / height),
        round(box.x1 * across / width),
        round(box.y1 * down / height),
        across,
        down,
    )


def _rounded(
    values: tuple[float, float, float, float], decimals: int
) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(value, decimals) for value in values)
    return (x0, y0, x1, y1)


def _apart(low: float, high: float, step: float, most: float) -> tuple[float, float]:
    """Move two equal numbers one step apart, within 0 and the largest number."""
    if high > low:
        return low, high
    return (low, low + step) if low + step <= most else (low - step, low)


def read_numbers(
    unit: CoordinateUnit,
    values: tuple[float, float, float, float],
    size: Size,
    resized: ResizedSize,
    bins: int = 1000,
) -> tuple[float, float, float, float]:
    """Return xyxy in pixels of the image that numbers in a unit stand for; need not lie inside.

    Args:
        unit: Unit of the numbers.
        values: The numbers, xyxy.
        size: Width and height of the image as displayed.
        resized: Size of the image as the model sees it.
        bins: Number of bins, with the unit `bins`.
    """
    width, height = size
    x0, y0, x1, y1 = values
    if unit is CoordinateUnit.square_fraction:
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        return (x0 * side - left, y0 * side - top, x1 * side - left, y1 * side - top)
    match unit:
        case CoordinateUnit.fraction:
            across, down = 1, 1
        case CoordinateUnit.thousand:
            across, down = 1000, 1000
        case CoordinateUnit.bins:
            across, down = bins, bins
        case CoordinateUnit.resized_pixels:
            across, down = resized(size)
        case CoordinateUnit.pixels:
            across, down = size
    x, y = width / across, height / down
    return (x0 * x, y0 * y, x1 * x, y1 * y)


def _written(way: CoordinatesWay, number: float) -> str:
    if way.unit in FRACTIONS:
        return f"{number:.{way.decimals}f}"
    return f"{int(number):0{way.digits}d}"
