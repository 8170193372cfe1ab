"""Bundles with a detection head: written, read, checked, trained further."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from helpers.tiny_models import (
    CLASSES,
    WITH_HEAD,
    tiny_card,
    tiny_head,
    tiny_language,
    tiny_region,
    tiny_vision,
)
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.errors import BundleError
from regionqa.export.bundle import DETECTOR_GRAPH, WEIGHTS, read_detector, write_bundle
from regionqa.export.publish import check_bundle, model_page
from regionqa.runtime.devices import Device
from regionqa.runtime.encoders import DetectorGraph

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]


def test_the_head_is_read_from_its_graph(tiny: Tiny) -> None:
    bundle = tiny(WITH_HEAD)
    head, written = read_detector(bundle), tiny_head(tiny_vision())
    assert head is not None and not head.training
    for name, value in written.state_dict().items():
        assert torch.equal(head.state_dict()[name], value)
    assert read_detector(tiny("levels")) is None
    assert DETECTOR_GRAPH in [spec.path for spec in bundle.card.files]
    size = sum(spec.size for spec in bundle.card.files if spec.path == WEIGHTS)
    assert size == next(s.size for s in tiny("levels").card.files if s.path == WEIGHTS)


@pytest.mark.parametrize("row", ["levels", WITH_HEAD])
def test_head_and_table_are_given_together(row: str, tmp_path: Path) -> None:
    vision = tiny_vision()
    head = tiny_head(vision) if row == "levels" else None
    with pytest.raises(ValueError, match="are given together"):
        write_bundle(
            tmp_path / "x", tiny_card(row), vision, tiny_region(row, vision), tiny_language(20),
            tmp_path / "none", detector=head,
        )  # fmt: skip


def test_publishing_compares_the_head_with_torch(tiny: Tiny, tmp_path: Path) -> None:
    bundle = tiny(WITH_HEAD)
    assert [report.graph for report in check_bundle(bundle)][-1] == DETECTOR_GRAPH
    assert "regionqa caption image.jpg --boxes auto --model me/x" in model_page(bundle, "me/x")
    assert "--boxes auto" not in model_page(tiny("levels"), "me/x")
    copy = Bundle(bundle.card, shutil.copytree(bundle.root, tmp_path / "copy"))
    with (copy.root / DETECTOR_GRAPH).open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match=r"differs from its card in detector\.onnx"):
        check_bundle(copy)


def test_a_graph_of_another_shape_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    bundle = tiny(WITH_HEAD)
    card = bundle.card
    assert card.detector is not None
    fewer = replace(card, detector=replace(card.detector, classes=CLASSES[:2]))
    with pytest.raises(BundleError, match=r"detector.onnx: scores is \(.*the card expects"):
        DetectorGraph(Bundle(fewer, bundle.root), Device.cpu)
    swapped = replace(card, detector=replace(card.detector, graph="region.onnx"))
    with pytest.raises(BundleError, match=r"region.onnx: the card expects \['level0', 'level1'\]"):
        DetectorGraph(Bundle(swapped, bundle.root), Device.cpu)
    with pytest.raises(BundleError, match=r"has no \[detector\]"):
        DetectorGraph(tiny("levels"), Device.cpu)
    table = dict(card.architecture)
    table["detector"] = {**table["detector"], "width": 16}
    with pytest.raises(BundleError, match=r"detector\.onnx: .*size mismatch"):
        read_detector(Bundle(replace(card, architecture=table), bundle.root))
    table["detector"] = {**table["detector"], "kind": "anchors"}
    with pytest.raises(BundleError, match=r"architecture\.detector: kind 'anchors' has"):
        read_detector(Bundle(replace(card, architecture=table), bundle.root))


def test_a_model_trained_further_keeps_its_head(
    regionqa: "Command", tiny: Tiny, things: Path, tmp_path: Path, graphs: object
) -> None:
    base, out = tiny(WITH_HEAD), tmp_path / "mine"
    ran = regionqa(
        "finetune", "--data", things, "--model", base.root, "--out", out, "--steps", 1,
        "--batch", 2, "--device", "cpu",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    mine = open_bundle(out)
    assert mine.card.detector == base.card.detector
    assert mine.file(DETECTOR_GRAPH).read_bytes() == base.file(DETECTOR_GRAPH).read_bytes()
    assert read_detector(mine) is not None
