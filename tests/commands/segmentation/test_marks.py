"""Regions marked by points and masks, in ask and caption."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.segmentation.segmenters import ColourSegmenter
from regionqa.masks import Mask
from regionqa.segmentation import base

if TYPE_CHECKING:
    from conftest import Command


@pytest.fixture
def segmenter(monkeypatch: pytest.MonkeyPatch) -> ColourSegmenter:
    """A segmenter of the name "colours"."""
    made = ColourSegmenter()
    monkeypatch.setattr(base, "OTHERS", {})
    base.register_segmenter("colours", lambda device, runtime: made)
    return made


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """A red ellipse and a blue triangle on white, 120 x 90 pixels."""
    image = Image.new("RGB", (120, 90), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((20, 20, 60, 70), fill="red")
    pen.polygon([(80, 10), (110, 10), (95, 60)], fill="blue")
    image.save(tmp_path / "shapes.png")
    return tmp_path / "shapes.png"


def shape(path: Path, *colours: str) -> Any:
    """The pixels of a colour, (height, width)."""
    pixels = np.asarray(Image.open(path))
    rgb = {"red": (255, 0, 0), "blue": (0, 0, 255)}
    return np.any([(pixels == rgb[colour]).all(axis=2) for colour in colours], axis=0)


def regions(line: str) -> list[dict[str, Any]]:
    return list(json.loads(line)["regions"])


def check(region: dict[str, Any], inside: Any) -> None:
    mask = Mask.parse(region["mask"], "an answer")
    assert np.array_equal(mask.array(), inside)
    assert mask.bounds is not None and region["box"] == [*mask.bounds]


def test_points_inside_a_shape_select_it(
    regionqa: "Command", toy: Path, segmenter: ColourSegmenter, shapes: Path
) -> None:
    given = ("--model", toy, "--segmenter", "colours", "--format", "jsonl")
    points = ("--point", "40,45", "--point", "95,20")
    both = regionqa("ask", shapes, "is <region1> above <region2>?", *points, *given)
    assert both.status == 0, both.err
    red, blue = regions(both.lines[0])
    check(red, shape(shapes, "red"))
    check(blue, shape(shapes, "blue"))
    assert segmenter.encoded == 1
    several = regionqa("ask", shapes, "what is this?", "--point", "40,45 95,20", *given)
    check(regions(several.lines[0])[0], shape(shapes, "red", "blue"))
    without = ("--point", "40,45 95,20", "--point", "-95,30")
    fewer = regionqa("ask", shapes, "what is this?", *without, *given)
    check(regions(fewer.lines[0])[0], shape(shapes, "red"))


def test_boxes_points_and_masks_are_numbered_in_this_order(
    regionqa: "Command", toy: Path, segmenter: ColourSegmenter, shapes: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(shape(shapes, "blue")).save(mask)
    given = ("--model", toy, "--segmenter", "colours", "--format", "jsonl")
    marks = ("--mask", mask, "--point", "40,45", "--box", "1,2,30,40")
    captions = regionqa("caption", shapes, *marks, *given)
    assert (captions.status, len(captions.lines)) == (0, 3), captions.err
    box, red, blue = (regions(line)[0] for line in captions.lines)
    assert box == {"id": 1, "box": [1, 2, 30, 40], "label": None}
    check(red, shape(shapes, "red"))
    check(blue, shape(shapes, "blue"))
    again = regionqa("caption", "-", *given[:2], "--format", "jsonl", stdin=captions.out)
    assert (again.status, again.lines) == (0, captions.lines)
    table = regionqa("caption", shapes, *marks, *given[:-1], "csv")
    assert (table.status, len(table.lines)) == (0, 4)
    assert table.err.splitlines()[-1] == (
        "regionqa: warning: 2 masks left out: CSV holds boxes only, JSON lines both"
    )


def test_a_marked_region_is_drawn(
    regionqa: "Command", toy: Path, segmenter: ColourSegmenter, shapes: Path, tmp_path: Path
) -> None:
    drawn, plain = tmp_path / "drawn.png", tmp_path / "plain.png"
    given = ("--model", toy, "what is this?")
    mask = ("--mask", red_mask(shapes))
    assert regionqa("ask", shapes, *given, *mask, "--draw", drawn).status == 0
    assert regionqa("ask", shapes, *given, "--box", "20,20,61,71", "--draw", plain).status == 0
    (first, second) = (np.asarray(Image.open(path)).astype(int) for path in (drawn, plain))
    scale = 640 / 120
    differs = np.abs(first - second).sum(axis=2) > 30
    inside, outside = (round(45 * scale), round(40 * scale)), (round(20 * scale), round(95 * scale))
    assert differs[inside] and not differs[outside]


def red_mask(shapes: Path) -> Path:
    path = shapes.with_name("red.png")
    Image.fromarray(shape(shapes, "red")).save(path)
    return path


def test_faults_of_an_image(
    regionqa: "Command", toy: Path, segmenter: ColourSegmenter, shapes: Path, tmp_path: Path
) -> None:
    """Each fails its own image; the others are answered."""
    small = tmp_path / "small.png"
    Image.new("RGB", (50, 50), "red").save(small)
    given = ("what is this?", "--model", toy, "--segmenter", "colours")
    points = regionqa("ask", small, shapes, *given, "--point", "40,60")
    assert (points.status, len(points.lines)) == (3, 1)
    assert "small.png: point 40,60 lies outside the image, which is 50 x 50 pixels" in points.err
    nothing = regionqa("ask", shapes, *given, "--point", "40,45 -41,45")
    assert nothing.status == 3
    assert "shapes.png: colours finds nothing at 40,45 -41,45; put the point on" in nothing.err
    masks = regionqa("ask", small, shapes, *given[:3], "--mask", red_mask(shapes))
    assert (masks.status, len(masks.lines)) == (3, 1)
    assert "the mask is 120 x 90 pixels, but the image is 50 x 50; give the mask" in masks.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--point", "4"), "--point: point '4': is not two numbers"),
        (("--segmenter", "colours"), "--segmenter: has no effect without --point"),
        (("--point", "4,4", "--boxes", "auto"), "--boxes: has no effect beside --point"),
        (("--mask", "missing.png"), "--mask: missing.png: no such file"),
        (
            ("--point", "4,4", "--segmenter", "nothing"),
            "nothing: no such segmenter; known are",
        ),
    ],
)
def test_refused(
    regionqa: "Command", toy: Path, shapes: Path, words: tuple[str, ...], message: str
) -> None:
    refused = regionqa("ask", shapes, "what is this?", "--model", toy, *words)
    assert refused.status in (1, 2)
    assert message in refused.err and len(refused.err.splitlines()) == 1


def test_without_a_segmenter_it_is_said_how_to_get_one(
    regionqa: "Command", toy: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from helpers.vlm.exports import use_home

    use_home(monkeypatch, tmp_path)
    none = regionqa("ask", shapes, "what is this?", "--model", toy, "--point", "4,4")
    assert none.status == 1
    assert "no segmenter is on this machine; run: regionqa download sam2.1-tiny" in none.err


def test_a_checkpoint_of_sam2_finds_regions(
    regionqa: "Command", toy: Path, shapes: Path, tiny_segmenter: Path
) -> None:
    given = ("--model", toy, "--segmenter", tiny_segmenter, "--format", "jsonl")
    found = regionqa("ask", shapes, "what is this?", "--point", "40,45 60,70 -90,20", *given)
    assert found.status == 0, found.err
    (region,) = regions(found.lines[0])
    mask = Mask.parse(region["mask"], "an answer")
    assert (mask.width, mask.height) == (120, 90) and region["box"] == [*(mask.bounds or ())]
