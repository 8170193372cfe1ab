"""Placement and pixel values of preprocessed images."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.image_files import noise, photo
from regionqa.errors import BoxError, BundleError
from regionqa.images.preprocessing import EncoderPreprocessing, Fit, Placement, Preprocessing
from regionqa.images.resampling import Resample
from regionqa.regions import Box

WHITE = (255, 255, 255)


# Placement

SIDES = st.integers(1, 5000)
UNCUT = [fit for fit in Fit if fit is not Fit.crop]
"""Ways in which the whole image is seen."""


@st.composite
def placements(draw: st.DrawFn, fits: Sequence[Fit] = tuple(Fit)) -> Placement:
    """A placement of any image."""
    size, fit = draw(st.integers(1, 1024)), draw(st.sampled_from(fits))
    longest = size + draw(st.integers(0, 2000)) if fit is Fit.shortest else None
    return Placement(draw(SIDES), draw(SIDES), size, fit, longest)


@st.composite
def placed_boxes(draw: st.DrawFn, fits: Sequence[Fit] = tuple(Fit)) -> tuple[Placement, Box]:
    """A placement and a box inside its image."""
    placement = draw(placements(fits))
    corners: list[tuple[float, float]] = []
    for side in (placement.width, placement.height):
        start = draw(st.floats(0, side - 0.5))
        corners.append((start, draw(st.floats(start + 0.25, side))))
    (x0, x1), (y0, y1) = corners
    return placement, Box(x0, y0, x1, y1)


@given(placed_boxes(UNCUT))
def test_placement_round_trip(case: tuple[Placement, Box]) -> None:
    placement, box = case
    there = placement.to_model(box)
    assert all(0 <= value <= 1 for value in there)
    assert there[0] < there[2] and there[1] < there[3]
    assert placement.to_image(there).xyxy == pytest.approx(box.xyxy, rel=1e-6, abs=1e-6)


@given(placed_boxes([Fit.crop]))
def test_crop_placement_round_trip_of_visible_part(case: tuple[Placement, Box]) -> None:
    placement, box = case
    there = placement.to_model(box)
    assert all(0 <= value <= 1 for value in there)
    window = placement.to_image((0, 0, 1, 1))
    x0, y0 = max(box.x0, window.x0), max(box.y0, window.y0)
    x1, y1 = min(box.x1, window.x1), min(box.y1, window.y1)
    if x1 - x0 > 1e-3 and y1 - y0 > 1e-3:
        back = placement.to_image(there).xyxy
        assert back == pytest.approx((x0, y0, x1, y1), rel=1e-6, abs=1e-6)
    elif x1 < x0 - 1e-3 or y1 < y0 - 1e-3:  # wholly outside
        assert there[0] == there[2] in (0, 1) or there[1] == there[3] in (0, 1)
        with pytest.raises(BoxError, match="has no area"):
            placement.to_image(there)


@given(placed_boxes(), st.floats(0.01, 1))
def test_placement_is_monotonic(case: tuple[Placement, Box], part: float) -> None:
    placement, box = case
    smaller = Box(
        box.x0, box.y0, box.x0 + max(part * box.width, 0.01), box.y0 + max(part * box.height, 0.01)
    )
    outer, inner = placement.to_model(box), placement.to_model(smaller)
    assert inner[:2] == outer[:2]
    assert inner[2] <= outer[2] and inner[3] <= outer[3]


@given(placements())
def test_placement_of_the_whole_image(placement: Placement) -> None:
    across, down = placement.resized
    wide, high = placement.input_size
    whole = placement.to_model(Box(0, 0, placement.width, placement.height))
    if placement.fit is Fit.pad:
        assert whole == (0, 0, across / placement.size, down / placement.size)
        assert max(across, down) == placement.size
    else:
        assert whole == (0, 0, 1, 1)
    if placement.fit is Fit.shortest:
        assert (wide, high) == (across, down)
        assert placement.longest and max(wide, high) <= placement.longest
        assert min(wide, high) <= placement.size
        assert placement.size == min(wide, high) or placement.longest == max(wide, high)
    else:
        assert wide == high == placement.size


def test_padding_is_right_and_below() -> None:
    assert Placement(200, 100, 50, Fit.pad).to_model(Box(100, 50, 200, 100)) == (0.5, 0.25, 1, 0.5)
    assert Placement(100, 200, 50, Fit.pad).to_model(Box(50, 100, 100, 200)) == (0.25, 0.5, 0.5, 1)


def test_crop_is_centred() -> None:
    wide, high = Placement(200, 100, 50, Fit.crop), Placement(100, 200, 50, Fit.crop)
    assert wide.to_model(Box(50, 0, 100, 100)) == (0, 0, 0.5, 1)
    assert high.to_model(Box(0, 100, 50, 200)) == (0, 0.5, 0.5, 1), "cut where the model is blind"
    assert wide.to_model(Box(0, 10, 40, 60)) == (0, 0.1, 0, 0.6), "no width, at the left border"
    assert wide.to_model(Box(160, 10, 190, 60)) == (1, 0.1, 1, 0.6)
    # the other side is rounded down, and so is the crop's corner
    odd = Placement(640, 481, 224, Fit.crop)
    assert (odd.resized, odd.offset) == ((298, 224), (37, 0))
    assert Placement(100, 103, 100, Fit.crop).offset == (0, 1)


@pytest.mark.parametrize(
    ("height", "width", "down", "across"),
    [
        # shorter side 800, longer at most 1333: what PVIT's own resizing gave
        (480, 640, 800, 1067),
        (640, 480, 1067, 800),
        (427, 640, 800, 1199),
        (333, 500, 800, 1201),
        (224, 224, 800, 800),
        (200, 900, 296, 1333),
        (900, 200, 1333, 296),
        (3000, 4000, 800, 1067),
        (800, 1333, 800, 1333),
        (801, 1335, 800, 1333),
        (100, 167, 798, 1333),
        (64, 49, 1045, 800),
        # half a pixel is rounded up, as in detectron2: 832.5
        (320, 333, 800, 833),
    ],
)
def test_shortest_fit_is_limited_by_longest(
    height: int, width: int, down: int, across: int
) -> None:
    placement = Placement(width, height, 800, Fit.shortest, 1333)
    assert placement.resized == placement.input_size == (across, down)


def test_shortest_rounds_half_a_pixel_up() -> None:
    """10 x 40 at most 10 long: 2.5 x 10."""
    assert Placement(16, 4, 10, Fit.shortest, 10).resized == (10, 3)


def test_shortest_gives_one_pixel_at_least() -> None:
    assert Placement(5, 5, 1, Fit.shortest, 1).resized == (1, 1)
    assert Placement(5, 500, 10, Fit.shortest, 20).resized == (1, 20)


# Preprocessing

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.2, 0.1)


def preprocessing(size: int, fit: Fit, resample: Resample = Resample.bilinear) -> Preprocessing:
    longest = 2 * size if fit is Fit.shortest else None
    return Preprocessing(size, fit, resample, MEAN, STD, longest)


def test_pixel_values_by_hand() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    image.putpixel((1, 0), (0, 255, 0))
    values = preprocessing(2, Fit.squash).pixel_values(image)
    assert values.shape == (3, 2, 2)
    assert values.dtype == np.float32
    assert values[:, 0, 0] == pytest.approx([(1 - 0.5) / 0.5, -0.25 / 0.2, (0.2 - 0.125) / 0.1])
    assert values[:, 0, 1] == pytest.approx([-0.5 / 0.5, (1 - 0.25) / 0.2, -0.125 / 0.1])


@pytest.mark.parametrize("resample", [Resample.bicubic, Resample.bilinear])
@pytest.mark.parametrize(
    ("size", "covered"), [((80, 20), (32, 8)), ((20, 80), (8, 32)), ((5000, 1), (32, 1))]
)
def test_pad_pixel_values(
    size: tuple[int, int], covered: tuple[int, int], resample: Resample
) -> None:
    image = photo(*size)
    values = preprocessing(32, Fit.pad, resample).pixel_values(image)
    across, down = covered
    resized = image.resize(covered, Image.Resampling[resample.name.upper()])
    expected = (np.asarray(resized) / 255 - MEAN) / STD
    assert np.allclose(values[:, :down, :across], expected.transpose(2, 0, 1), atol=1e-5)
    assert not values[:, down:].any() and not values[:, :, across:].any()


def test_squash_pixel_values() -> None:
    values = preprocessing(16, Fit.squash).pixel_values(Image.new("RGB", (80, 20), WHITE))
    assert np.allclose(values, np.reshape((1 - np.array(MEAN)) / STD, (3, 1, 1)))


@pytest.mark.parametrize("resample", [Resample.bicubic, Resample.bilinear])
@pytest.mark.parametrize("size", [(40, 24), (24, 40), (30, 30), (5000, 1), (3, 400)])
def test_shortest_pixel_values(size: tuple[int, int], resample: Resample) -> None:
    model = preprocessing(32, Fit.shortest, resample)
    image = photo(*size)
    values = model.pixel_values(image)
    across, down = model.placement(*size).input_size
    assert values.shape == (3, down, across)
    resized = image.resize((across, down), Image.Resampling[resample.name.upper()])
    expected = (np.asarray(resized) / 255 - MEAN) / STD
    assert np.allclose(values, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40), (200, 13), (20, 31)])
def test_crop_equals_clip_processor(size: tuple[int, int]) -> None:
    from transformers.image_processing_backends import PilBackend

    image = noise(*size)
    values = preprocessing(32, Fit.crop, Resample.bicubic).pixel_values(image)
    expected = PilBackend(
        do_resize=True, size={"shortest_edge": 32}, default_to_square=False,
        resample=Image.Resampling.BICUBIC, do_center_crop=True, crop_size=32,
        do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=MEAN, image_std=STD,
    )(image)["pixel_values"][0]  # fmt: skip
    assert np.allclose(values, expected, atol=1e-4)


def test_long_strip_is_never_resized_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("regionqa.images.preprocessing.resize")
    strip = np.zeros((2, 5000, 3), np.uint8)
    strip[:, 2500:] = 255
    values = preprocessing(32, Fit.crop).pixel_values(Image.fromarray(strip))
    black, white = (np.reshape((level - np.array(MEAN)) / STD, (3, 1)) for level in (0, 1))
    assert np.allclose(values[:, :, 0], black)
    assert np.allclose(values[:, :, -1], white)
    assert np.allclose(values.mean((1, 2), keepdims=True)[0], (black + white)[0] / 2, atol=1e-3)


def test_placement_maps_boxes_as_pixels() -> None:
    box = Box(40, 20, 80, 60)
    image = Image.new("RGB", (160, 80), "black")
    image.paste(WHITE, (40, 20, 80, 60))
    for fit in Fit:
        model = preprocessing(40, fit)
        placement = model.placement(*image.size)
        across, down = placement.input_size
        sides = (across, down, across, down)
        placed = zip(placement.to_model(box), sides, strict=True)
        x0, y0, x1, y1 = (round(value * side) for value, side in placed)
        values = model.pixel_values(image)[0]
        assert values[y0:y1, x0:x1].mean() > 0.8
        values[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = -1
        assert values.max() <= 0  # black is -1, and the padding 0


@pytest.mark.parametrize(
    ("size", "mean", "std"),
    [(0, MEAN, STD), (8, (0.5,), STD), (8, MEAN, (0.5, 0.5)), (8, MEAN, (0.5, 0.0, 0.5))],
)
def test_invalid_preprocessing(size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(BundleError, match=r"^\[image\] "):
        Preprocessing(size, Fit.pad, Resample.bicubic, mean, std)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fit", "longest", "message"),
    [
        (Fit.shortest, None, "fit is shortest and longest is None"),
        (Fit.pad, 64, "fit is pad and longest is 64; longest is given with fit shortest"),
        (Fit.shortest, 31, "longest is 31, below size, 32"),
    ],
)
def test_longest_requires_shortest(fit: Fit, longest: int | None, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Preprocessing(32, fit, Resample.bicubic, MEAN, STD, longest)


def test_longest_may_equal_size() -> None:
    model = Preprocessing(32, Fit.shortest, Resample.bicubic, MEAN, STD, 32)
    assert model.pixel_values(photo(64, 32)).shape == (3, 16, 32)
    assert model.placement(64, 32) == Placement(64, 32, 32, Fit.shortest, 32)


def test_region_encoder_preprocessing() -> None:
    """Its own, by its own rule, where it reads pixels; else those of the vision encoder."""
    image, box = photo(80, 40), Box(20, 0, 60, 40)
    vision = preprocessing(16, Fit.crop)
    own = EncoderPreprocessing(vision, preprocessing(8, Fit.shortest))
    shared = EncoderPreprocessing(vision)
    for encoders in (own, shared):
        assert np.array_equal(encoders.pixel_values(image), vision.pixel_values(image)[None])
    pixels = own.region_pixels(image)
    assert pixels is not None and pixels.shape == (1, 3, 8, 16)
    assert shared.region_pixels(image) is None
    assert own.boxes([box, Box(0, 0, 8, 4)], 80, 40) == [(0.25, 0, 0.75, 1), (0, 0, 0.1, 0.1)]
    assert shared.boxes([box], 80, 40) == [(0, 0, 1, 1)]
