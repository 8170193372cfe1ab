"""SAM 2 on tiny random checkpoints: masks are those of transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.segmentation.segmenters import WRITERS, write_sam2
from helpers.vlm.photos import noise
from regionqa.errors import BoxError, BundleError
from regionqa.images.reading import image_from_memory
from regionqa.options import VisionRuntime
from regionqa.runtime.devices import Device
from regionqa.segmentation.base import (
    FAMILIES,
    OTHERS,
    find_segmenter,
    open_segmenter,
    segmenter_cards,
)
from regionqa.segmentation.checkpoint import MaskChoice
from regionqa.segmentation.marks import load_segmenter
from regionqa.segmentation.options import ClickedPoint, Points

ONE = (ClickedPoint(30, 40),)
SEVERAL = (ClickedPoint(30, 40), ClickedPoint(61.5, 20), ClickedPoint(100, 80, inside=False))


def transformers_mask(folder: Path, image: Image.Image, points: Points) -> Any:
    """The mask that transformers finds, as its documentation says; (height, width)."""
    from transformers import Sam2Config, Sam2Model, Sam2Processor

    processor = Sam2Processor.from_pretrained(folder)
    config = Sam2Config.from_pretrained(folder)
    model = Sam2Model.from_pretrained(folder, config=config).eval()
    inputs = processor(
        images=image,
        input_points=[[[[point.x, point.y] for point in points]]],
        input_labels=[[[int(point.inside) for point in points]]],
        return_tensors="pt",
    )
    with torch.inference_mode():
        outputs = model(
            pixel_values=inputs["pixel_values"], input_points=inputs["input_points"],
            input_labels=inputs["input_labels"], multimask_output=len(points) == 1,
        )  # fmt: skip
    (masks,) = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])
    return masks[0, outputs.iou_scores[0, 0].argmax()].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = WRITERS[family](tmp_path / family)
    assert json.loads((folder / "config.json").read_text())["model_type"] == family
    segmenter = load_segmenter(folder, device="cpu")
    assert segmenter.info.runtime.startswith("torch: the segmenter was not exported to ONNX yet")
    for number, size in enumerate([(120, 90), (70, 200)]):
        image = noise(*size, number)
        for points in (ONE, SEVERAL):
            kept = tuple(point for point in points if point.x < size[0])
            expected = transformers_mask(folder, image.load(), kept)
            assert 0 < expected.sum() < expected.size  # or it would agree by chance
            region = segmenter.find(image, kept)
            assert region.mask is not None and region.mask.bounds is not None
            assert np.array_equal(region.mask.array(), expected)
            assert region.box.xyxy == region.mask.bounds


def test_one_point_takes_the_best_and_several_the_single_mask() -> None:
    masks = torch.full((4, 8, 8), 5.0)
    scores = torch.tensor([0.1, 0.2, 0.9, 0.3])
    choice = MaskChoice(dynamic=True, delta=0.05, threshold=0.98)
    assert choice.best(masks, scores, several=False) == 2
    assert choice.best(masks, scores, several=True) == 0
    masks[0, :4] = 0.01  # near its edge everywhere: unstable
    assert choice.best(masks, scores, several=True) == 2
    assert MaskChoice(False, 0.05, 0.98).best(masks, scores, several=True) == 0
    masks[0] = -5.0  # empty: transformers takes it for stable
    assert choice.best(masks, scores, several=True) == 0


def test_an_image_is_encoded_once(tiny_segmenter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_segmenter(tiny_segmenter, device="cpu")
    encoded: list[Image.Image] = []
    encode = segmenter._segmenter.encode

    def counted(image: Image.Image) -> Any:
        encoded.append(image)
        return encode(image)

    monkeypatch.setattr(segmenter._segmenter, "encode", counted)
    first, second = noise(60, 50, 1), noise(50, 60, 2)
    for image in (first, first, second, second, first):
        segmenter.find(image, (ClickedPoint(20, 20),))
    assert len(encoded) == 3  # the first again after the second has taken its place


def test_points_in_python(tiny_segmenter: Path) -> None:
    segmenter = load_segmenter(tiny_segmenter, device="cpu")
    pixels = noise(120, 90, 0).load()
    region = segmenter.select(np.asarray(pixels), [(30, 40), (61.5, 20)], [(100, 80)])
    assert region == segmenter.find(image_from_memory(pixels), SEVERAL)
    with pytest.raises(BoxError, match="no point inside the region"):
        segmenter.select(pixels, [], [(1, 1)])
    with pytest.raises(BoxError, match="point 120,40 lies outside the image, which is 120 x 90"):
        segmenter.select(pixels, [(120, 40)])


def test_segmenters_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert {card.family for card in segmenter_cards().values()} == {"sam2_video"}
    names = [*segmenter_cards()]
    assert names == ["sam2.1-tiny", "sam2.1-small", "sam2.1-base-plus", "sam2.1-large"]
    with pytest.raises(BundleError, match=r"sam2-tiny: no such segmenter; did you mean sam2\.1-ti"):
        find_segmenter("sam2-tiny")
    (tmp_path / "config.json").write_text('{"model_type": "sam"}')
    with pytest.raises(BundleError, match="says model_type 'sam', which is no segmenter that is"):
        find_segmenter(str(tmp_path))
    folder = write_sam2(tmp_path / "sam2")
    (folder / "processor_config.json").unlink()
    with pytest.raises(BundleError, match="transformers cannot load its processor"):
        open_segmenter(str(folder), Device.cpu, VisionRuntime.auto)
    assert OTHERS == {}


def test_a_checkpoint_without_a_weight_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_sam2(tmp_path / "sam2")
    weights = load_file(folder / "model.safetensors")
    del weights["mask_decoder.iou_token.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleError, match=r"mask_decoder\.iou_token\.weight is missing; get it"):
        load_segmenter(folder, device="cpu")
