"""Object detectors in ONNX Runtime against torch, and exports that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from helpers.detection.detectors import OPEN, WRITERS
from helpers.vlm.exports import use_home
from helpers.vlm.photos import noise
from regionqa.detection.cards import family_of
from regionqa.detection.detector import load_detector
from regionqa.errors import BundleError, ExportError
from regionqa.export import detectors
from regionqa.export.detectors import compare_outputs, export_detector
from regionqa.vlm.vision_exports import export_folder

EXPORTED = [family for family in WRITERS if getattr(family_of(family), "onnx", False)]
SIZES = ((200, 120), (90, 170), (400, 300))


def check_boxes(folder: Path) -> None:
    """Compare the boxes of both runtimes for images of several sizes."""
    find = ("red cup", "a cat") if folder.name in OPEN else ()
    in_torch, in_onnx = (
        load_detector(folder, vision_runtime=runtime, device="cpu", find=find, min_score=0.0)
        for runtime in ("torch", "onnx")
    )
    assert in_torch.info.runtime.startswith("torch") and in_onnx.info.runtime.startswith("onnx")
    for number, size in enumerate(SIZES):
        image = noise(*size, number)
        expected, found = in_torch.find(image), in_onnx.find(image)
        assert len(expected.scores) > 3
        assert found.scores == pytest.approx(expected.scores, abs=1e-3)
        assert found.labels == expected.labels
        assert found.boxes == pytest.approx(expected.boxes, abs=0.1)


def test_boxes_equal_those_of_torch(
    tiny_detector: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other families are compared by the slow test below."""
    use_home(monkeypatch, tmp_path)
    folder = tiny_detector("yolos")
    export, new = export_detector("tiny", folder)
    assert new and export.manifest.difference <= 1e-4
    assert not export_detector("tiny", folder)[1]
    check_boxes(folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_every_family_is_exported_and_finds_what_torch_finds(
    family: str,
    tiny_detector: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use_home(monkeypatch, tmp_path)
    folder = tiny_detector(family)
    export_detector(family, folder)
    check_boxes(folder)


def test_a_family_that_is_not_exported_runs_in_torch(
    tiny_detector: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_home(monkeypatch, tmp_path)
    with pytest.raises(ExportError, match="are not exported; it runs in torch"):
        export_detector("tiny", tiny_detector("grounding-dino"))


def test_a_graph_that_differs_is_not_kept(
    tiny_detector: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_home(monkeypatch, tmp_path)
    folder = tiny_detector("yolos")
    monkeypatch.setattr(detectors, "compare_outputs", lambda *_: 0.5)
    with pytest.raises(ExportError, match="differs from torch by 5e-01 for an image of 224 x 224"):
        export_detector("tiny", folder)
    assert not export_folder(folder).exists()
    with pytest.raises(BundleError, match="the detector was not exported to ONNX yet; run:"):
        load_detector(folder, vision_runtime="onnx", device="cpu")


def test_outputs_are_compared_without_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, 3, generator=generator)
    boxes = torch.rand(1, 6, 4, generator=generator)
    order = torch.tensor([1, 0, 2, 3, 5, 4])
    expected = {"logits": logits, "pred_boxes": boxes}
    shuffled = {"logits": logits[:, order], "pred_boxes": boxes[:, order]}
    assert compare_outputs(expected, shuffled) == 0
    moved = {**shuffled, "pred_boxes": boxes[:, order] + 0.01}
    assert compare_outputs(expected, moved) == pytest.approx(0.01, abs=1e-4)
    mixed = {**expected, "pred_boxes": boxes[:, order]}  # scores of one, boxes of another
    assert compare_outputs(expected, mixed) > 0.01
    fewer = {name: value[:, :5] for name, value in expected.items()}
    assert compare_outputs(expected, fewer) == float("inf")
