"""A segmenter in ONNX Runtime against torch, and exports that are refused."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from helpers.vlm.exports import use_home
from helpers.vlm.photos import noise
from regionqa.errors import BundleError, ExportError
from regionqa.export.networks import check_parts
from regionqa.segmentation.marks import load_segmenter
from regionqa.segmentation.options import parse_points
from regionqa.vlm.vision_exports import MANIFEST, open_export

if TYPE_CHECKING:
    from conftest import Command


def test_masks_equal_those_of_torch(
    regionqa: "Command", tiny_segmenter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_home(monkeypatch, tmp_path)
    with pytest.raises(BundleError, match="the segmenter was not exported to ONNX yet; run: reg"):
        load_segmenter(tiny_segmenter, vision_runtime="onnx", device="cpu")
    exported = regionqa("export", tiny_segmenter)
    assert exported.status == 0, exported.err
    assert exported.err.count("segmenter sam2: differs from torch by") == 3
    export = open_export(tiny_segmenter)
    assert [part.name for part in export.manifest.parts] == ["encoder", "decoder"]
    assert [check.tokens for check in export.manifest.checks] == [1, 3, 2]
    assert export.manifest.difference <= 1e-4
    in_torch, in_onnx = (
        load_segmenter(tiny_segmenter, vision_runtime=runtime, device="cpu")
        for runtime in ("torch", "auto")
    )
    assert in_torch.info.runtime.startswith("torch") and in_onnx.info.runtime.startswith("onnx")
    for number, size in enumerate([(120, 90), (300, 40)]):
        image = noise(*size, number)
        for text in ("30,20", "30,20 -90,30", "-1,1 30,20 60,20 90,30 -100,35"):
            points = parse_points(text)
            expected, found = (each.find(image, points).mask for each in (in_torch, in_onnx))
            assert expected is not None and found is not None
            differing = np.count_nonzero(expected.array() != found.array())
            assert 0 < expected.area < size[0] * size[1]
            assert differing <= 1e-3 * size[0] * size[1]  # pixels on the very edge, by rounding


def test_networks_that_differ_are_refused(tiny_segmenter: Path, tmp_path: Path) -> None:
    check = ((224, 224), 1, lambda export: 0.5)
    with pytest.raises(ExportError, match="differs from torch by 5e-01 for an image of 224 x 224"):
        check_parts("tiny", tiny_segmenter, (), [check], tmp_path)
    assert not (tmp_path / MANIFEST).exists()
    check_parts("tiny", tiny_segmenter, (), [((224, 224), 1, lambda export: 0.0)], tmp_path)
    assert (tmp_path / MANIFEST).exists()
