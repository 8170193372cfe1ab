"""Masks as runs and as COCO's text, against the reference implementation; polygons; mask files."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from faster_coco_eval import mask as coco
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from regionqa.errors import BoxError, ImageError
from regionqa.images.reading import read_mask
from regionqa.masks import Mask, Polygons
from regionqa.regions import Box, WrittenBox

Pixels = npt.NDArray[np.uint8]
small = arrays(
    np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 1)
)


def reference_text(pixels: Pixels) -> str:
    counts: bytes | str = coco.encode(np.asfortranarray(pixels))["counts"]
    return counts.decode() if isinstance(counts, bytes) else counts


@given(small, st.integers(1, 40))
def test_runs_are_cocos(pixels: Pixels, scale: int) -> None:
    pixels = np.kron(pixels, np.ones((scale, 1), np.uint8))
    mask = Mask.of_array(pixels)
    assert np.array_equal(mask.array(), pixels == 1)
    assert mask.area == pixels.sum()
    rle = mask.as_rle()
    assert rle == {"size": [*pixels.shape], "counts": reference_text(pixels)}
    assert Mask.parse(rle, "a test") == mask
    assert Mask.parse({"size": [*pixels.shape], "counts": [*mask.runs]}, "a test") == mask
    rows, columns = np.nonzero(pixels)
    if len(rows):
        ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert mask.bounds == ends
    else:
        assert mask.bounds is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1, 2], "the size of its mask is not"),
        ({"size": [2, 3]}, "is not run lengths"),
        ({"size": [2, 3], "counts": [5]}, "are 5 pixels, but it is 3 x 2"),
        ({"size": [2, 3], "counts": [7, -1]}, "is not run lengths"),
        ({"size": [2, 3], "counts": "\x7f"}, "is not COCO's text"),
        ({"size": [2, 3], "counts": "P"}, "is cut off"),
    ],
)
def test_malformed_masks(document: object, message: str) -> None:
    with pytest.raises(BoxError, match=message):
        Mask.parse(document, "line 1")


def test_a_rectangle_as_polygon_is_its_pixels() -> None:
    inside = Polygons((((10, 10), (20, 10), (20, 30), (10, 30)),)).resolve(80, 60)
    assert (inside.bounds, inside.area) == ((10, 10, 20, 30), 200)
    across = Polygons((((-10, 50), (90, 50), (90, 70), (-10, 70)),)).resolve(80, 60)
    assert (across.bounds, across.area) == ((0, 50, 80, 60), 800)
    two = Polygons((((0, 0), (4, 0), (4, 4), (0, 4)), ((6, 6), (9, 6), (9, 9), (6, 9))))
    assert two.resolve(10, 10).area == 16 + 9


def test_polygons_are_cocos_but_for_pixels_on_the_edge() -> None:
    angles = np.linspace(0, 2 * math.pi, 17, endpoint=False)
    radii = 60 + 40 * np.cos(5 * angles)
    corners = [
        (200 + r * math.cos(a), 150 + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)
    ]
    mask = Polygons((tuple(corners),)).resolve(400, 300).array()
    rle = coco.frPyObjects([[value for corner in corners for value in corner]], 300, 400)
    expected = coco.decode(coco.merge(rle)) == 1
    assert (mask & expected).sum() / (mask | expected).sum() > 0.99


def test_a_mask_of_another_size_is_refused() -> None:
    written = WrittenBox((1, 1, 3, 3), mask=Mask.of_array(np.eye(4)))
    region = written.resolve(4, 4)
    assert (region.box, region.mask) == (Box(1, 1, 3, 3), written.mask)
    assert WrittenBox.of(region).mask == written.mask
    with pytest.raises(BoxError, match="the mask is 4 x 4 pixels, but the image is 5 x 4"):
        written.resolve(5, 4)


def test_mask_files(tmp_path: Path) -> None:
    inside = np.zeros((6, 9), np.uint8)
    inside[1:4, 2:7] = 1
    expected = Mask.of_array(inside)
    rgb = np.zeros((6, 9, 3), np.uint8)
    rgb[..., 2] = inside
    rgba = np.full((6, 9, 4), 77, np.uint8)
    rgba[..., 3] = inside * 255
    files = {
        "one": Image.fromarray(inside), "grey": Image.fromarray(inside * 255),
        "bits": Image.fromarray(inside == 1), "colour": Image.fromarray(rgb),
        "cut": Image.fromarray(rgba), "deep": Image.fromarray(inside.astype(np.uint16) * 300),
    }  # fmt: skip
    palette = Image.fromarray(inside, "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    files["palette"] = palette  # the number counts, and not its colour
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
        assert read_mask(tmp_path / f"{name}.png") == expected, name
    Image.fromarray(inside * 255).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="a JPEG, whose compression changes masks; save it as PNG"):
        read_mask(tmp_path / "a.jpg")
    Image.new("L", (4, 4)).save(tmp_path / "empty.png")
    with pytest.raises(ImageError, match="no pixel of this mask is inside"):
        read_mask(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png"):
        read_mask(tmp_path / "text.png")
