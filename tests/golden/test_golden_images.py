"""Preprocessing of images and boxes by the cards of the golden sets' models."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from helpers.golden_weights import GoldenSet, gpt4roi_image, pvit_image
from regionqa.bundles.card import ModelCard, read_card
from regionqa.bundles.store import shipped_folder
from regionqa.images.preprocessing import Fit
from regionqa.images.resampling import Resample
from regionqa.regions import Box


def card(name: str) -> ModelCard:
    """The card of a published model."""
    return read_card(shipped_folder() / name / "card.toml")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("way", "resample"), [("app", Resample.bicubic_bilinear), ("mmdet", Resample.points)]
)
def test_gpt4roi_pixel_values(
    way: str, resample: Resample, number: int, gpt4roi: GoldenSet
) -> None:
    arrays = gpt4roi.arrays("d_preprocess.npz")
    height, width = map(int, arrays[f"image{number}_hw"])
    image = gpt4roi_image(f"input:image_u8_{number}", height, width, gpt4roi.salt)
    rules = replace(card("gpt4roi-7b").image, resample=resample)
    values = rules.pixel_values(Image.fromarray(image))
    expected = arrays[f"image{number}_{way}_pixel_stride4"]
    assert np.allclose(values[:, ::4, ::4], expected, atol=1e-5)
    between = arrays[f"image{number}_after_processor_shape"]
    assert rules.size == min(between[1:])
    box = arrays[f"image{number}_mmdet_box_in"]
    placed = rules.placement(width, height).to_model(Box(*map(float, box)))
    assert placed == pytest.approx(arrays[f"image{number}_mmdet_box_norm"], abs=1e-6)


def test_gpt4roi_boxes_equal_the_demo() -> None:
    rules = card("gpt4roi-7b").image
    assert (rules.resample, rules.fit) == (Resample.bicubic_bilinear, Fit.squash)


def main_image(region: dict[str, NDArray[np.generic]], salt: str) -> NDArray[np.uint8]:
    """PVIT's image; its sides follow from its boxes, which are given twice."""
    permille, pixels = region["boxes_permille"], region["boxes_px"]
    row = int(np.argmax(permille[:, 2]))
    width = round(float(pixels[row, 2] * 1000 / permille[row, 2]))
    height = round(float(pixels[row, 3] * 1000 / permille[row, 3]))
    return pvit_image("main", height, width, salt)


def test_pvit_region_pixels(pvit: GoldenSet) -> None:
    region = pvit.arrays("region.npz")
    image = Image.fromarray(main_image(region, pvit.salt))
    rules = card("pvit-7b").region.image  # type: ignore[union-attr]
    assert rules is not None
    values = rules.pixel_values(image)
    assert values.shape == tuple(region["image_shape"])
    assert np.allclose(values[:, ::40, ::41], region["image_sample"], atol=1e-6)
    assert np.allclose(values.mean((1, 2), np.float64), region["image_mean"], atol=1e-5)
    assert np.allclose(values.std((1, 2), np.float64), region["image_std"], atol=1e-5)
    placement = rules.placement(*image.size)
    sides = np.tile(placement.input_size, 2)
    boxes = np.array([placement.to_model(Box(*map(float, box))) for box in region["boxes_px"]])
    assert np.allclose(boxes * sides, region["boxes_resized"], atol=1e-3)
    splice = pvit.arrays("splice.npz")
    assert np.allclose(boxes, splice["boxes_normalised"], atol=1e-6)


def test_pvit_region_image_sides_are_integers(pvit: GoldenSet) -> None:
    rules = card("pvit-7b").region.image  # type: ignore[union-attr]
    assert rules is not None
    for height, width, down, across in pvit.json("text.json")["resize_h_w_newh_neww"]:
        assert rules.placement(width, height).input_size == (across, down)


@pytest.mark.parametrize("file", ["small.npz", "e2e.npz"])
def test_pvit_pixel_values(file: str, pvit: GoldenSet) -> None:
    arrays = pvit.arrays(file)
    rules = card("pvit-7b").image
    image = Image.fromarray(main_image(pvit.arrays("region.npz"), pvit.salt))
    values = rules.pixel_values(image)
    mean, std = (np.array(triple).reshape(3, 1, 1) for triple in (rules.mean, rules.std))
    levels = np.rint((values * std + mean) * 255).transpose(1, 2, 0)
    assert np.array_equal(levels, arrays["clip_u8"])
    assert np.allclose(values[:, ::8, ::8], arrays["clip_sample"], atol=1e-6)
    assert np.allclose(values.mean((1, 2), np.float64), arrays["clip_mean"], atol=1e-5)
