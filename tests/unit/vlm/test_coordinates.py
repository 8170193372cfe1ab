"""Boxes as the numbers that models read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regionqa.regions import Box
from regionqa.vlm.card import CoordinatesWay, CoordinateUnit, RegionText
from regionqa.vlm.coordinates import Size, numbers, read_numbers, write_box

SIZES = st.tuples(st.integers(2, 6000), st.integers(2, 6000))


def halved(size: Size) -> Size:
    return max(1, size[0] // 2), max(1, size[1] // 2)


def way(unit: CoordinateUnit, bins: int = 1000) -> CoordinatesWay:
    return CoordinatesWay(unit, RegionText("{box}"), bins=bins)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Box, Size]:
    """An image's size and a box inside it, often of a few pixels."""
    width, height = draw(SIZES)
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    across = draw(st.integers(1, min(width - x0, 3)) | st.integers(1, width - x0))
    down = draw(st.integers(1, min(height - y0, 3)) | st.integers(1, height - y0))
    return Box(x0, y0, x0 + across, y0 + down), (width, height)


@pytest.mark.parametrize("unit", CoordinateUnit)
@given(boxes())
def test_no_box_is_written_empty(unit: CoordinateUnit, drawn: tuple[Box, Size]) -> None:
    """Nor outside the unit, whatever the image's size."""
    box, size = drawn
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", write_box(way(unit), box, size, halved)))
    assert 0 <= x0 < x1
    assert 0 <= y0 < y1
    most = {
        CoordinateUnit.thousand: (1000, 1000),
        CoordinateUnit.bins: (999, 999),
        CoordinateUnit.pixels: size,
        CoordinateUnit.resized_pixels: halved(size),
    }.get(unit, (1, 1))
    assert x1 <= most[0]
    assert y1 <= most[1]


@pytest.mark.parametrize("unit", CoordinateUnit)
@given(boxes())
def test_what_is_written_is_read_as_the_same_place(
    unit: CoordinateUnit, drawn: tuple[Box, Size]
) -> None:
    """To a step of the unit, and to a further one where a box was too small for it."""
    box, size = drawn
    told = way(unit)
    found = read_numbers(unit, numbers(told, box, size, halved), size, halved, told.bins)
    side = max(size)
    step = {
        CoordinateUnit.thousand: side / 1000,
        CoordinateUnit.bins: side / 1000,
        CoordinateUnit.pixels: 1,
        CoordinateUnit.resized_pixels: 3,
    }.get(unit, side / 100)
    assert all(abs(a - b) <= 2 * step + 1 for a, b in zip(found, box.xyxy, strict=True))


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (CoordinateUnit.thousand, "500, 500, 501, 501"),
        (CoordinateUnit.bins, "500, 500, 501, 501"),
        (CoordinateUnit.fraction, "0.50, 0.50, 0.51, 0.51"),
        (CoordinateUnit.square_fraction, "0.50, 0.50, 0.51, 0.51"),
        (CoordinateUnit.pixels, "2000, 2000, 2001, 2001"),
    ],
)
def test_one_pixel_of_a_large_image(unit: CoordinateUnit, text: str) -> None:
    assert write_box(way(unit), Box(2000, 2000, 2001, 2001), (4000, 4000), halved) == text


def test_the_last_pixel_is_moved_inwards() -> None:
    last = Box(3999, 3999, 4000, 4000)
    assert write_box(way(CoordinateUnit.bins), last, (4000, 4000), halved) == "998, 998, 999, 999"
    assert (
        write_box(way(CoordinateUnit.fraction), last, (4000, 4000), halved)
        == "0.99, 0.99, 1.00, 1.00"
    )
