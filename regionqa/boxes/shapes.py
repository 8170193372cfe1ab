"""Shapes of annotations, and the upright boxes around them."""

import math
from collections.abc import Iterable, Sequence

from regionqa.boxes.fields import Numbers, Point, four, is_finite
from regionqa.errors import BoxError

TURNED = "rotated boxes read as the upright boxes around them"
FLAT = "polygons without area"


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
    height, width = _size(size, where)
    runs = _runs(counts, where)
    if sum(runs) != height * width:
        raise BoxError(
            f"box in {where}: the runs of its mask are {sum(runs)} pixels, "
            f"but it is {width} x {height}; export it again"
        )
    left, top, right, bottom = width, height, 0, 0
    start = 0
    for index, run in enumerate(runs):
        end = start + run
        if index % 2 and run:
            first, last = start // height, (end - 1) // height
            left, right = min(left, first), max(right, last + 1)
            if first == last:
                top, bottom = min(top, start % height), max(bottom, (end - 1) % height + 1)
            else:  # a run that leaves its column reaches the bottom of one and the top of the next
                top, bottom = 0, height
        start = end
    return four((left, top, right, bottom), where) if right else None


def _size(size: object, where: str) -> tuple[int, int]:
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(length) is int and 0 < length < 1 << 20 for length in size)
    ):
        raise BoxError(f"box in {where}: the size of its mask is not [height, width] in pixels")
    return size[0], size[1]


def _runs(counts: object, where: str) -> list[int]:
    if isinstance(counts, str):
        counts = _decoded(counts, where)
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise BoxError(f"box in {where}: its mask is not run lengths; export it again")
    return counts


def _decoded(text: str, where: str) -> list[int]:
    """Decode COCO's text: numbers of 5 bits a character, the lowest first, from the third on as
    differences to the one two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise BoxError(f"box in {where}: its mask is not COCO's text of run lengths")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise BoxError(f"box in {where}: the text of its mask is cut off")
    return runs


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


def finite(values: object, where: str) -> Iterable[float]:
    """Check a list of finite numbers from JSON; BoxError, with the place, for anything else."""
    if not isinstance(values, list):
        raise BoxError(f"box in {where}: a list of coordinates is expected")
    for value in values:
        if not is_finite(value):
            raise BoxError(f"box in {where}: a coordinate is not a finite number")
        yield float(value)
