"""Resampling methods against the libraries the models were trained with."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regionqa.errors import BundleError
from regionqa.images.preprocessing import Fit, Preprocessing
from regionqa.images.resampling import LONGEST, Resample, resize


def noise(width: int, height: int) -> Image.Image:
    """An image without any smoothness."""
    levels = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(levels)


@pytest.mark.parametrize("height", [32, 45])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40), (200, 13), (20, 31)])
def test_two_step_resampling_equals_pillow_and_torch(size: tuple[int, int], height: int) -> None:
    image = noise(*size)
    short = min(size)
    between = image.resize((int(32 * size[0] / short), int(32 * size[1] / short)), 3)
    values = torch.from_numpy(np.array(between, np.float32)).permute(2, 0, 1)
    expected = torch.nn.functional.interpolate(
        values[None], size=(height, 32), mode="bilinear", align_corners=False
    )[0]
    found = resize(image, (32, height), Resample.bicubic_bilinear)
    assert found.shape == (height, 32, 3)
    assert np.allclose(found, expected.permute(1, 2, 0), atol=1e-3)


def test_second_step_has_no_antialiasing() -> None:
    stripes = np.zeros((32, 128, 3), np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255  # what lies between two neighbours, at a quarter
    image = Image.fromarray(stripes)
    assert resize(image, (32, 32), Resample.bicubic_bilinear).min() == 255
    assert resize(image, (32, 32), Resample.points).min() == 255
    assert resize(image, (32, 32), Resample.bilinear)[:, 8:24].max() < 200


@pytest.mark.parametrize("turned", [False, True])
def test_long_strip_in_little_memory(turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int] = []
    pillow = Image.Image.resize

    def resizing(self: Image.Image, size: tuple[int, int], *rest: Any) -> Image.Image:
        sides.extend(size)
        return pillow(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", resizing)
    strip = np.zeros((2, 5000, 3), np.uint8)
    strip[:, 2500:] = 255
    image = Image.fromarray(strip.transpose(1, 0, 2) if turned else strip)
    for resample in (Resample.bicubic_bilinear, Resample.points):
        found = resize(image, (8, 8), resample)
        found = found.transpose(1, 0, 2) if turned else found
        assert (found[:, :3] == 0).all()
        assert (found[:, 5:] == 255).all()
    assert max(sides) == 8 * LONGEST


@pytest.mark.parametrize("turned", [False, True])
def test_bilinear_points_by_hand(turned: bool) -> None:
    """Halfway between neighbours, then a quarter and three quarters; borders are repeated."""
    row = np.array([100, 0, 200, 40], np.uint8).reshape(1, 4, 1).repeat(3, 2)
    image = Image.fromarray(row.transpose(1, 0, 2) if turned else row)
    for count, expected in ((2, [50, 120]), (8, [100, 75, 25, 50, 150, 160, 80, 40])):
        size = (1, count) if turned else (count, 1)
        assert resize(image, size, Resample.points)[..., 0].ravel().tolist() == expected
    same = noise(9, 7)
    assert np.array_equal(resize(same, (9, 7), Resample.points), np.asarray(same))


@pytest.mark.parametrize("resample", [Resample.bicubic_bilinear, Resample.points])
@pytest.mark.parametrize("fit", [fit for fit in Fit if fit is not Fit.squash])
def test_methods_that_require_squash(fit: Fit, resample: Resample) -> None:
    longest = 64 if fit is Fit.shortest else None
    with pytest.raises(BundleError, match=f"{resample} works with fit squash, and with no other"):
        Preprocessing(32, fit, resample, (0, 0, 0), (1, 1, 1), longest)
    Preprocessing(32, Fit.squash, resample, (0, 0, 0), (1, 1, 1))
