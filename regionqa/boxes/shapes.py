"""Shapes of annotations, and the upright boxes around them."""

import math
from collections.abc import Iterable, Sequence

from regionqa.boxes.fields import Numbers, Point, four, is_finite
from regionqa.errors import BoxError
from regionqa.masks import (
    Mask,
    Polygons,
    WrittenMask,
    check_runs,
    mask_runs,
    mask_size,
    runs_bounds,
)

TURNED = "rotated boxes read as the upright boxes around them"
FLAT = "polygons without area"
FLAT_MASKS = "masks without area, not their boxes,"


def bounding(points: Sequence[Point], where: str) -> Numbers:
    """Return the smallest upright box around two or more points, xyxy in their units."""
    if len(points) < 2:
        raise BoxError(f"box in {where}: {len(points)} points span no box; give two or more")
    xs, ys = zip(*points, strict=True)
    return four((min(xs), min(ys), max(xs), max(ys)), where)


def has_area(points: Sequence[Point]) -> bool:
    """Whether points are at least three and do not all lie on one line."""
    if len(points) < 3:
        return False
    x0, y0 = points[0]
    far = max(points, key=lambda point: math.hypot(point[0] - x0, point[1] - y0))
    dx, dy = far[0] - x0, far[1] - y0
    size = math.hypot(dx, dy)
    return size > 0 and any(
        abs(dx * (y - y0) - dy * (x - x0)) > 1e-9 * size * size for x, y in points
    )


def is_upright(points: Sequence[Point]) -> bool:
    """Whether the corners of a box lie on its bounds, as far as rounding lets them."""
    xs, ys = zip(*points, strict=True)
    slack = 1e-6 * max(max(xs) - min(xs), max(ys) - min(ys))
    return all(
        min(x - min(xs), max(xs) - x) <= slack and min(y - min(ys), max(ys) - y) <= slack
        for x, y in points
    )


def turned_box(box: Numbers, degrees: float, pivot: Point) -> Numbers:
    """Turn an upright box about a point and return the upright box around it.

    Args:
        box: xyxy, in units that are the same along both axes.
        degrees: The angle; clockwise, since y points down.
        pivot: The point that stays where it is.
    """
    x0, y0, x1, y1 = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    px, py = pivot
    corners = [
        (px + (x - px) * cos - (y - py) * sin, py + (x - px) * sin + (y - py) * cos)
        for x in (x0, x1)
        for y in (y0, y1)
    ]
    xs, ys = zip(*corners, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def centre_of(box: Numbers) -> Point:
    """Return the centre of a box, xyxy."""
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def pairs(values: Sequence[float], where: str) -> list[Point]:
    """Pair a flat list of coordinates x, y, x, y; BoxError for an odd number of them."""
    if len(values) % 2:
        raise BoxError(f"box in {where}: {len(values)} coordinates make no points; give x and y")
    return list(zip(values[::2], values[1::2], strict=True))


# ---- run-length masks of COCO ----


def mask_bounds(counts: object, size: object, where: str) -> Numbers | None:
    """Return the upright box around a run-length mask, xyxy in pixels, half-open.

    Args:
        counts: Lengths of runs of zeros and ones in turn, column by column; or COCO's text of them.
        size: Height and width in pixels.
        where: The place, for messages.

    Returns:
        None if no pixel is set.

    Raises:
        BoxError: If this is no mask.
    """
    height, width = mask_size(size, where)
    runs = mask_runs(counts, where)
    check_runs(runs, width, height, where)
    bounds = runs_bounds(runs, width, height)
    return four(bounds, where) if bounds else None


def segmentation_bounds(segmentation: object, where: str) -> Numbers | None:
    """Return the upright box around COCO's `segmentation`: polygons, or a run-length mask.

    Returns:
        None if it has no area.

    Raises:
        BoxError: If it is malformed.
    """
    if isinstance(segmentation, dict):
        return mask_bounds(segmentation.get("counts"), segmentation.get("size"), where)
    if not isinstance(segmentation, list):
        raise BoxError(f"box in {where}: its segmentation is neither polygons nor a mask")
    polygons = segmentation
    if segmentation and not isinstance(segmentation[0], list):
        polygons = [segmentation]
    points: list[Point] = []
    for polygon in polygons:
        values = list(finite(polygon, where))
        points += pairs(values, where)
    return bounding(points, where) if has_area(points) else None


def segmentation_mask(segmentation: object, where: str) -> WrittenMask | None:
    """Return COCO's `segmentation`, polygons or a run-length mask; None if it has no area.

    Raises:
        BoxError: If it is malformed.
    """
    if segmentation_bounds(segmentation, where) is None:
        return None
    if isinstance(segmentation, dict):
        return Mask.parse(segmentation, where)
    assert isinstance(segmentation, list)
    nested = segmentation if isinstance(segmentation[0], list) else [segmentation]
    polygons = [tuple(pairs(list(finite(each, where)), where)) for each in nested]
    return Polygons(tuple(polygon for polygon in polygons if len(polygon) > 2))


def finite(values: object, where: str) -> Iterable[float]:
    """Check a list of finite numbers from JSON; BoxError, with the place, for anything else."""
    if not isinstance(values, list):
        raise BoxError(f"box in {where}: a list of coordinates is expected")
    for value in values:
        if not is_finite(value):
            raise BoxError(f"box in {where}: a coordinate is not a finite number")
        yield float(value)
