"""Points as they are typed."""

import pytest

from regionqa.errors import UsageError
from regionqa.segmentation.options import ClickedPoint, MarkOptions, points_text

A, B = ClickedPoint(120, 80), ClickedPoint(200, 90.5)
OUT, ZERO = ClickedPoint(150, 40, inside=False), ClickedPoint(0, 0, inside=False)


@pytest.mark.parametrize(
    ("texts", "regions"),
    [
        ((), ()),
        (("120,80",), ((A,),)),
        (("120,80", "200,90.5"), ((A,), (B,))),
        (("120,80 200,90.5 -150,40",), ((A, B, OUT),)),
        ((" 120,80;200,90.5;-150,40 ",), ((A, B, OUT),)),
        (("-150,40 120,80",), ((OUT, A),)),
        (("120,80", "-150,40", "-0,0", "200,90.5"), ((A, OUT, ZERO), (B,))),
    ],
)
def test_regions_of_points(texts: tuple[str, ...], regions: object) -> None:
    options = MarkOptions(point=texts)
    assert options.points == regions
    assert options.given == len(options.points)
    assert MarkOptions(point=tuple(map(points_text, options.points))).points == regions


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("120",), "point '120': is not two numbers, like --point 120,80"),
        (("120,80,5",), "is not two numbers"),
        (("a,b",), "is not two numbers"),
        (("",), "is not two numbers"),
        (("nan,1",), "both coordinates must be finite"),
        (("120,80 1e999,1",), "both coordinates must be finite"),
        (("-150,40", "120,80"), "-150,40: lies outside of a region, as its - says"),
    ],
)
def test_malformed_points(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=f"--point: .*{message}"):
        MarkOptions(point=texts)
