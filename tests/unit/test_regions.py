"""Boxes: parsing, conventions, validation, clipping."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regionqa.errors import BoxError
from regionqa.regions import (
    Box,
    BoxFormat,
    BoxUnits,
    Region,
    WrittenBox,
    clip_all,
    four_numbers,
    parse_box,
)

Four = tuple[float, float, float, float]

sizes = st.integers(1, 5000)
anything = st.floats(allow_nan=True, allow_infinity=True)
conventions = st.tuples(st.sampled_from(BoxFormat), st.sampled_from(BoxUnits))


@st.composite
def boxes(draw: st.DrawFn, low: float = -10_000, high: float = 10_000) -> Box:
    """Boxes of more than one pixel each way, not necessarily inside an image."""
    x0, y0 = draw(st.floats(low, high)), draw(st.floats(low, high))
    sides = st.floats(1.01, high - low)  # 1 could be taken for fractions
    return Box(x0, y0, x0 + draw(sides), y0 + draw(sides))


def written(box: Box, form: BoxFormat, units: BoxUnits, width: int, height: int) -> WrittenBox:
    """The box as somebody would write it who uses another convention."""
    whole = {BoxUnits.fraction: 1.0, BoxUnits.permille: 1000.0}.get(units)
    across, down = (whole / width, whole / height) if whole else (1.0, 1.0)
    x0, x1, y0, y1 = box.x0 * across, box.x1 * across, box.y0 * down, box.y1 * down
    values: Four = {
        BoxFormat.xyxy: (x0, y0, x1, y1),
        BoxFormat.xywh: (x0, y0, x1 - x0, y1 - y0),
        BoxFormat.cxcywh: ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
    }[form]
    return WrittenBox(values, form, units)


# -- spellings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "10,20,200,300",
        " 10, 20, 200, 300 ",
        "10 20 200 300",
        "10;20;200;300",
        "[10, 20, 200, 300]",
        "(10,20,200,300)",
        "[[10, 20, 200, 300]]",
        "1e1,2e1,2e2,3e2",
        "10.0\t20.0\n200.0\r\n300.0",
        "+10,20,200,300",
    ],
)
def test_parse_box_separators(text: str) -> None:
    assert parse_box(text) == (10, 20, 200, 300)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "four numbers are expected, 0 values found"),
        ("10,20,200", "four numbers are expected, 3 values found, like 10,20,200,300"),
        ("1,2,3,4,5", "four numbers are expected, 5 values found"),
        ("10,,200,300", "four numbers are expected, 3 values found"),
        ("left,top,right,bottom", "is not four numbers, like 10,20,200,300"),
        ("10,20,200,300px", "is not four numbers"),
        ("10,20,200,3O0", "is not four numbers"),
        ("0x10,20,200,300", "is not four numbers"),
        ("nan,20,200,300", "every coordinate must be a finite number"),
        ("10,20,inf,300", "every coordinate must be a finite number"),
        ("10,20,200,-Infinity", "every coordinate must be a finite number"),
        ("10,20,1e999,300", "every coordinate must be a finite number"),
    ],
)
def test_parse_box_refuses_other_texts(text: str, reason: str) -> None:
    with pytest.raises(BoxError) as caught:
        parse_box(text)
    assert str(caught.value).startswith(f"box {text!r}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (None, "something else found"),
        ({"x": 1, "y": 2, "w": 3, "h": 4}, "something else found"),
        ("1234", "something else found"),
        ([1, 2, 3], "3 values found"),
        ([1, 2, 3, "4"], "4 values found"),
        ([1, 2, 3, None], "4 values found"),
        ([1, 2, 3, True], "4 values found"),
        ([[1], 2, 3, 4], "4 values found"),
        ([1, 2, 3, math.nan], "finite"),
        ([1, 2, 3, -math.inf], "finite"),
        ([1, 2, 3, 10**400], "too large"),
        ([1, 2, 3, 4j], "4 values found"),
    ],
)
def test_four_numbers_refuses_other_values(values: object, found: str) -> None:
    with pytest.raises(BoxError, match=f"^box of cat.jpg: .*{found}"):
        four_numbers(values, "of cat.jpg")


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3, 4],
        (1.0, 2.0, 3.0, 4.0),
        list(np.array([1, 2, 3, 4], np.float32)),
        list(np.array([1, 2, 3, 4], np.int64)),
        [Fraction(1), Fraction(2), 3, 4],
    ],
)
def test_four_numbers_accepts_numpy(values: object) -> None:
    numbers = four_numbers(values, "")
    assert numbers == (1, 2, 3, 4)
    assert [type(number) for number in numbers] == [float] * 4


# -- boxes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ((math.nan, 0, 10, 10), "box nan,0,10,10: every coordinate must be a finite number"),
        ((0, 0, math.inf, 10), "finite"),
        ((0, -math.inf, 10, 10), "finite"),
        ((200, 20, 10, 300), "box 200,20,10,300: right must exceed left and bottom exceed top"),
        ((10, 300, 200, 20), "or use --box-format xywh"),
        ((10, 20, 10, 300), "box 10,20,10,300: has no area"),
        ((10, 20, 200, 20), "give a width and a height above zero"),
        ((0, 0, 0, 0), "has no area"),
    ],
)
def test_invalid_boxes(corners: Four, reason: str) -> None:
    with pytest.raises(BoxError) as caught:
        Box(*corners)
    assert reason in str(caught.value)


@given(corners=st.tuples(anything, anything, anything, anything))
def test_valid_boxes_have_positive_area(corners: Four) -> None:
    x0, y0, x1, y1 = corners
    valid = all(map(math.isfinite, corners)) and x0 < x1 and y0 < y1
    try:
        box = Box(*corners)
    except BoxError:
        assert not valid
    else:
        assert valid
        assert box.xyxy == corners


def test_box_width_and_height() -> None:
    box = Box(10, 20, 30, 25)
    assert (box.width, box.height) == (20, 5)
    assert str(box) == "10,20,30,25"


# -- conventions -----------------------------------------------------------------------------------

SAME = Box(10, 20, 60, 80)  # in an image of 200 x 100
SPELLINGS: dict[tuple[BoxFormat, BoxUnits], Four] = {
    (BoxFormat.xyxy, BoxUnits.pixel): (10, 20, 60, 80),
    (BoxFormat.xywh, BoxUnits.pixel): (10, 20, 50, 60),
    (BoxFormat.cxcywh, BoxUnits.pixel): (35, 50, 50, 60),
    (BoxFormat.xyxy, BoxUnits.fraction): (0.05, 0.2, 0.3, 0.8),
    (BoxFormat.xywh, BoxUnits.fraction): (0.05, 0.2, 0.25, 0.6),
    (BoxFormat.cxcywh, BoxUnits.fraction): (0.175, 0.5, 0.25, 0.6),
    (BoxFormat.xyxy, BoxUnits.permille): (50, 200, 300, 800),
    (BoxFormat.xywh, BoxUnits.permille): (50, 200, 250, 600),
    (BoxFormat.cxcywh, BoxUnits.permille): (175, 500, 250, 600),
}


@pytest.mark.parametrize("convention", SPELLINGS)
def test_resolve_every_format_and_unit(convention: tuple[BoxFormat, BoxUnits]) -> None:
    region = WrittenBox(SPELLINGS[convention], *convention, label="cup").resolve(200, 100)
    assert region.box.xyxy == pytest.approx(SAME.xyxy)
    assert region.label == "cup"


def test_every_convention_is_tested() -> None:
    assert set(SPELLINGS) == {(form, units) for form in BoxFormat for units in BoxUnits}


@given(box=boxes(), convention=conventions, width=sizes, height=sizes)
def test_conventions_round_trip(
    box: Box, convention: tuple[BoxFormat, BoxUnits], width: int, height: int
) -> None:
    region = written(box, *convention, width, height).resolve(width, height)
    assert region.box.xyxy == pytest.approx(box.xyxy, rel=1e-9, abs=1e-6)


@given(values=st.tuples(anything, anything, anything, anything), convention=conventions)
def test_resolve_gives_a_valid_box_or_a_box_error(
    values: Four, convention: tuple[BoxFormat, BoxUnits]
) -> None:
    try:
        box = WrittenBox(values, *convention).resolve(640, 480).box
    except BoxError as error:
        assert str(error).startswith("box ")
        return
    assert all(map(math.isfinite, box.xyxy))
    assert box.x0 < box.x1
    assert box.y0 < box.y1


def test_written_region_round_trips() -> None:
    region = Region(Box(0.25, 0.5, 7, 9), "cup")
    assert WrittenBox.of(region).resolve(4, 3) == region
    assert not WrittenBox.of(region).is_crowd


@pytest.mark.parametrize("form", [BoxFormat.xywh, BoxFormat.cxcywh])
@pytest.mark.parametrize("extent", [(0, 5), (5, 0), (-5, 5), (5, -5)])
def test_zero_width_or_height(form: BoxFormat, extent: tuple[int, int]) -> None:
    with pytest.raises(BoxError, match=rf"width and height must be above zero \({form}\)"):
        WrittenBox((10, 10, *extent), form).resolve(100, 100)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ((0.1, 0.2, 0.5, 0.6), BoxFormat.xyxy),
        ((0, 0, 0.5, 1), BoxFormat.xyxy),
        ((0.1, 0.2, 0.5, 0.6), BoxFormat.xywh),
        ((0.5, 0.5, 0.25, 0.5), BoxFormat.cxcywh),
    ],
)
def test_fractions_given_as_pixels_are_refused(values: Four, form: BoxFormat) -> None:
    with pytest.raises(BoxError, match=r"smaller than one pixel.* use --box-units fraction"):
        WrittenBox(values, form).resolve(100, 100)


def test_small_pixel_boxes_are_not_taken_for_fractions() -> None:
    assert WrittenBox((0, 0, 1, 1)).resolve(100, 100).box == Box(0, 0, 1, 1)
    centred = WrittenBox((0.5, 0.5, 1, 1), BoxFormat.cxcywh)
    assert centred.resolve(100, 100).box == Box(0, 0, 1, 1)
    assert WrittenBox((5.2, 5.2, 5.4, 5.4)).resolve(100, 100).box == Box(5.2, 5.2, 5.4, 5.4)
    assert WrittenBox((0, 0, 0.5, 1)).resolve(1, 1).box == Box(0, 0, 0.5, 1)


# -- clipping --------------------------------------------------------------------------------------


def test_partly_outside_box_is_clipped_with_a_warning() -> None:
    regions = (Region(Box(10, 10, 20, 20)), Region(Box(-5, 90, 30, 130), "cup"))
    clipped, warnings = clip_all(regions, 100, 100)
    assert clipped == (regions[0], Region(Box(0, 90, 30, 100), "cup"))
    assert warnings == ["box -5,90,30,130 reaches outside 100 x 100: clipped to 0,90,30,100"]


@pytest.mark.parametrize(
    "corners",
    [(100, 10, 120, 20), (10, 50, 20, 60), (-9, 10, 0, 20), (10, -9, 20, 0), (500, 500, 600, 600)],
)
def test_box_outside_the_image_is_refused(corners: Four) -> None:
    with pytest.raises(BoxError) as caught:
        clip_all((Region(Box(*corners)),), 100, 50)
    assert f"box {Box(*corners)}: lies outside the image, which is 100 x 50 pixels" in str(
        caught.value
    )
    assert "--box-units" in str(caught.value)


def test_box_of_the_image_size_is_inside() -> None:
    whole = Region(Box(0, 0, 100, 50))
    assert clip_all((whole,), 100, 50) == ((whole,), [])


@given(several=st.lists(boxes(-300, 300), max_size=5), width=sizes, height=sizes)
def test_clipped_boxes_are_inside_and_not_larger(
    several: list[Box], width: int, height: int
) -> None:
    regions = tuple(Region(box, str(number)) for number, box in enumerate(several))
    meets = [b.x0 < width and b.y0 < height and b.x1 > 0 and b.y1 > 0 for b in several]
    try:
        clipped, warnings = clip_all(regions, width, height)
    except BoxError:
        assert not all(meets)
        return
    assert all(meets)
    for before, after in zip(regions, clipped, strict=True):
        assert after.label == before.label
        assert after.box.inside(width, height)
        assert contains(before.box, after.box)
    changed = [pair for pair in zip(regions, clipped, strict=True) if pair[0] != pair[1]]
    assert len(warnings) == len(changed)


@given(box=boxes(), width=sizes, height=sizes)
def test_clipping_keeps_what_is_inside(box: Box, width: int, height: int) -> None:
    assume(box.x0 < width and box.y0 < height and box.x1 > 0 and box.y1 > 0)
    clipped = box.clipped(width, height)
    for x, y in corners_of(Box(0, 0, width, height)):
        if box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1:
            assert (x, y) in set(corners_of(clipped))
    assert clipped.clipped(width, height) == clipped


def contains(outer: Box, inner: Box) -> bool:
    return (
        outer.x0 <= inner.x0
        and outer.y0 <= inner.y0
        and inner.x1 <= outer.x1
        and inner.y1 <= outer.y1
    )


def corners_of(box: Box) -> Iterator[tuple[float, float]]:
    for x in (box.x0, box.x1):
        for y in (box.y0, box.y1):
            yield (x, y)


# -- edges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", range(4))
def test_half_a_pixel_outside_is_clipped(side: int) -> None:
    whole = [0.0, 0.0, 100.0, 50.0]
    outside = list(whole)
    outside[side] += 0.5 if side > 1 else -0.5
    box = Box(*outside)
    assert not box.inside(100, 50)
    assert box.clipped(100, 50) == Box(*whole)
    (clipped,), (warning,) = clip_all((Region(box),), 100, 50)
    assert clipped.box == Box(*whole)
    assert warning == f"box {box} reaches outside 100 x 50: clipped to 0,0,100,50"


@pytest.mark.parametrize(
    "values",
    [(0.25, 0.5, 1.5, 1), (0.25, 0.5, 1, 1.5), (-0.5, 0.5, 1, 1), (0.5, -0.5, 1, 1)],
)
def test_box_beyond_the_unit_square_is_in_pixels(values: Four) -> None:
    assert WrittenBox(values).resolve(100, 100).box == Box(*values)


@pytest.mark.parametrize(("size", "refused"), [((2, 2), True), ((1, 2), False), ((2, 1), False)])
def test_one_pixel_image_accepts_fractions(size: tuple[int, int], refused: bool) -> None:
    half = WrittenBox((0, 0, 0.5, 1))
    if refused:
        with pytest.raises(BoxError, match="smaller than one pixel"):
            half.resolve(*size)
    else:
        assert half.resolve(*size).box == Box(0, 0, 0.5, 1)


def test_width_and_height_below_one_pixel() -> None:
    for form in (BoxFormat.xywh, BoxFormat.cxcywh):
        region = WrittenBox((40, 20, 0.5, 0.25), form).resolve(100, 100)
        assert (region.box.width, region.box.height) == (0.5, 0.25)
