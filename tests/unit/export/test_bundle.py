"""Bundles written and read: parity of graphs with torch, precision, errors."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torchvision.ops import roi_align

from helpers.graph_cache import GraphCache
from recipes.starter.decoder import new_language_model
from regionqa.bundles.store import Bundle, open_bundle
from regionqa.errors import BundleError, ExportError
from regionqa.export import bundle as bundle_module
from regionqa.export.bundle import read_encoders, write_bundle
from regionqa.export.modules.multilevel import (
    FusionConv,
    MultiLevelConfig,
    MultiLevelRegionEncoder,
    coordinate_grid,
)
from regionqa.export.modules.resnet import ResNetConfig, ResNetVision
from regionqa.export.onnx import verify
from regionqa.export.onnx.export import (
    export_region,
    export_vision,
    replace_weights,
    round_to_float16,
)
from regionqa.export.onnx.files import read_model, save_model
from regionqa.export.onnx.interface import RegionGraph, level_names
from regionqa.export.onnx.verify import (
    TOLERANCE,
    ParityReport,
    compare,
    region_case,
    relative_difference,
    rng_normal,
)

SMALL = ResNetConfig(
    input_size=64, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), token_grid=1, hidden_size=16
)


def small_encoders() -> tuple[ResNetVision, MultiLevelRegionEncoder]:
    """Untrained encoders without layers initialized to zero."""
    torch.manual_seed(0)
    vision = ResNetVision(SMALL)
    for module in vision.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    channels, sides, _ = zip(*vision.level_shapes, strict=True)
    config = MultiLevelConfig(64, channels, sides, width=16, groups=4, hidden_size=16)
    return vision, MultiLevelRegionEncoder(config)


def test_starter_graphs_equal_torch(starter: Bundle) -> None:
    vision, region = read_encoders(starter)
    assert region is not None
    size = vision.input_size
    pixels = {f"{n}": {"pixel_values": rng_normal((n, 3, size, size), n)} for n in (1, 2)}
    regions = {f"{b}, {n}": region_case(region, b, n, seed=b + n) for b, n in ((1, 0), (2, 9))}
    names = ["image_tokens", *level_names(len(vision.level_shapes))]
    reports = [
        compare(vision, starter.root / "vision.onnx", names, pixels),
        compare(RegionGraph(region), starter.root / "region.onnx", ["region_tokens"], regions),
    ]
    assert max(report.difference for report in reports) <= TOLERANCE


def test_bundle_round_trip(tmp_path: Path, starter: Bundle) -> None:
    vision, region = small_encoders()
    language = new_language_model(1600, 16, context=64, stop=1)
    card = small_card(starter)
    tokenizer = starter.root / "llm" / "tokenizer.json"
    bundle, reports = write_bundle(tmp_path / "mine", card, vision, region, language, tokenizer)
    assert {report.graph for report in reports} == {"vision.onnx", "region.onnx"}
    assert bundle.broken_files() == []
    assert len({path.stat().st_mode for path in bundle.root.rglob("*.*")}) == 1, "others may read"
    assert {spec.path for spec in bundle.card.files} >= {
        "vision.onnx", "region.onnx", "encoders.safetensors", "llm/model.safetensors",
    }  # fmt: skip
    again = read_encoders(bundle)
    for module, back in zip((vision, region), again, strict=True):
        assert back is not None
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, back.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def small_card(starter: Bundle) -> dict[str, object]:
    """Tables of a card for the small encoders."""
    prompt = starter.card.prompt
    return {
        "name": "small",
        "summary": "for tests",
        "image": {
            "size": 64, "fit": "squash", "resample": "bilinear",
            "mean": [0.5] * 3, "std": [0.5] * 3,
        },
        "vision": {"graph": "vision.onnx", "image_tokens": 1},
        "region": {"graph": "region.onnx", "tokens": 1},
        "language": {
            "folder": "llm", "runtime": "native", "context": 64,
            "max_new_tokens": 8, "stop": ["</s>"],
        },
        "prompt": {
            "template": prompt.template,
            "region": prompt.region,
            "image_question": "?",
            "region_question": "?",
        },
    }  # fmt: skip


def test_different_graph_is_not_written(
    tmp_path: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = ParityReport("region.onnx", 2 * TOLERANCE, ("1 image",))
    monkeypatch.setattr(bundle_module, "export_region", lambda *_: off)
    vision, region = small_encoders()
    language = new_language_model(1600, 16, context=64, stop=1)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "old").write_text("kept")
    with pytest.raises(ExportError, match=r"region\.onnx: differs from torch by 2\.0e-04"):
        write_bundle(
            folder, small_card(starter), vision, region, language,
            starter.root / "llm" / "tokenizer.json",
        )  # fmt: skip
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "old"]


def test_changed_weight_is_detected(tmp_path: Path) -> None:
    vision, _ = small_encoders()
    export_vision(vision, tmp_path / "vision.onnx").check()
    case = {"one": {"pixel_values": rng_normal((1, 3, 64, 64), 5)}}
    names = ["image_tokens", *level_names(3)]
    with torch.no_grad():
        vision.projector.bias.add_(0.01)
    report = compare(vision, tmp_path / "vision.onnx", names, case)
    assert report.difference > TOLERANCE
    with pytest.raises(ExportError):
        report.check()


class Cancelling(nn.Module):
    """A difference of large, nearly equal numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.full((), 3e4))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.large) - self.large


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (0.03, False)])
def test_tolerance_of_unstable_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: float, passes: bool
) -> None:
    module, x = Cancelling(), rng_normal((1, 64), 0)
    precise = x + np.float32(off)
    monkeypatch.setattr(verify, "run_graph", lambda *_: [[precise]])
    graph = tmp_path / "x.onnx"
    graph.touch()
    report = compare(module, graph, ["y"], {"one": {"x": x}})
    assert report.difference > TOLERANCE
    assert 1e-4 < report.rounding < 2e-3
    assert module.large.dtype == torch.float32
    if passes:
        report.check()
    else:
        with pytest.raises(ExportError):
            report.check()


def test_float16_is_used_for_exact_weights_only(tmp_path: Path, graphs: GraphCache) -> None:
    vision, _ = small_encoders()
    graphs.export_vision(vision, tmp_path / "whole.onnx").check()
    round_to_float16(vision)
    graphs.export_vision(vision, tmp_path / "half.onnx").check()
    kinds = {}
    for name in ("whole", "half"):
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        large = [numpy_helper.to_array(w) for w in graph.initializer if np.prod(w.dims) >= 256]
        kinds[name] = {array.dtype for array in large if array.dtype.kind == "f"}
    assert kinds == {"whole": {np.dtype("float32")}, "half": {np.dtype("float16")}}


def test_graphs_contain_no_local_paths(starter: Bundle) -> None:
    for name in ("vision.onnx", "region.onnx"):
        content = (starter.root / name).read_bytes()
        assert b".py" not in content
        assert b"site-packages" not in content


def test_relative_difference() -> None:
    ones = np.ones((2, 2), np.float32)
    assert relative_difference(ones, ones) == 0
    hundred = np.full_like(ones, 100)
    assert relative_difference(hundred, hundred + ones) == pytest.approx(0.01)
    small = np.full_like(ones, 0.01)
    assert relative_difference(small, small + small) == pytest.approx(0.01)
    assert relative_difference(ones, ones[:1]) == float("inf")
    unknown = ones.copy()
    unknown[1, 1] = np.nan
    assert relative_difference(ones, unknown) == float("inf")
    with pytest.raises(ExportError):
        ParityReport("x", float("nan"), ()).check()


def test_unknown_or_missing_weight_is_an_error(tmp_path: Path, starter: Bundle) -> None:
    from safetensors.torch import load_file, save_file

    root = tmp_path / "copy"
    shutil.copytree(starter.root, root)
    weights = load_file(root / "encoders.safetensors")
    changed = {**weights, "vision.surprise": torch.zeros(1)}
    broken = replace(open_bundle(root).card, files=())
    save_file(changed, root / "encoders.safetensors")
    with pytest.raises(BundleError, match=r"unknown \['surprise'\]"):
        read_encoders(Bundle(broken, root))
    del weights["vision.projector.bias"]
    save_file(weights, root / "encoders.safetensors")
    with pytest.raises(BundleError, match=r"missing \['projector.bias'\]"):
        read_encoders(Bundle(broken, root))


# -- the region encoder itself (GPT4RoI, section 3.2) ----------------------------------------------


def test_region_vector_is_sum_of_levels_and_position() -> None:
    """Compared with a step-by-step computation."""
    _, region = small_encoders()
    region.eval()
    case = region_case(region, images=2, regions=5, seed=1)
    levels = [torch.from_numpy(case[name]) for name in level_names(3)]
    boxes, index = torch.from_numpy(case["boxes"]), torch.from_numpy(case["image_index"])
    with torch.no_grad():
        fused = []
        for conv, level in zip(region.mlvl_fuse.input_conv, levels, strict=True):
            grid = coordinate_grid(level.shape[-1]).expand(2, -1, -1, -1)
            fused.append(conv(torch.cat([level, grid], dim=1)))
        block = region.mlvl_fuse.fuse_convs[0]
        assert isinstance(block, FusionConv)

        def fit(x: Tensor, size: int) -> Tensor:
            return nn.functional.interpolate(x, (size, size), mode="bilinear", align_corners=True)

        mixed = []
        for row, size in enumerate((8, 4, 2)):
            deeper, shallower = fused[min(row + 1, 2)], fused[max(row - 1, 0)]
            parts = [fused[row][:, :8], fit(deeper[:, 12:], size), fit(shallower[:, 8:12], size)]
            mixed.append(torch.relu(block.gn(block.conv(torch.cat(parts, dim=1)))))
        rois = torch.cat([index[:, None].float(), boxes * 64], dim=1)
        total = sum(
            conv(roi_align(level, rois, 4, size / 64, 2, aligned=True))
            for conv, level, size in zip(region.roi_align.pconvs, mixed, (8, 4, 2), strict=True)
        )
        assert isinstance(total, Tensor)
        vector = region.roi_align.flatten_linear(torch.relu(total).flatten(1))
        expected = region.roi_align.updims(vector + region.roi_align.pos_embedd(boxes))
        actual = region(levels, boxes, index)
    assert actual.shape == (5, 1, 16)
    assert torch.allclose(actual[:, 0], expected, atol=1e-5)


def test_region_graph_accepts_no_regions(tmp_path: Path, graphs: GraphCache) -> None:
    _, region = small_encoders()
    report = graphs.export_region(region, tmp_path / "region.onnx")
    report.check()
    assert "1 images with 0 regions" in report.cases


def untraceable(*_: object, **__: object) -> None:
    """In place of the exporter where nothing may be traced."""
    pytest.fail("the graph was traced")


def test_a_graph_of_the_same_architecture_gives_its_nodes(
    starter: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The starter's graphs store their weights in half precision; other weights need not."""
    monkeypatch.setattr(torch.onnx, "export", untraceable)
    vision, region = read_encoders(starter)
    assert region is not None
    before = (starter.root / "vision.onnx").read_bytes()
    for module in (vision, region):
        for weight in module.parameters():
            weight.data += 0.01 * torch.randn_like(weight)
    reports = [
        export_vision(vision, tmp_path / "vision.onnx", starter.root / "vision.onnx"),
        export_region(region, tmp_path / "region.onnx", starter.root / "region.onnx"),
    ]
    assert [report.passed for report in reports] == [True, True]
    assert (tmp_path / "vision.onnx").stat().st_size > 1.9 * len(before), "now in float32"
    assert (starter.root / "vision.onnx").read_bytes() == before


def test_a_graph_of_another_architecture_is_not_used(starter: Bundle, tmp_path: Path) -> None:
    vision, _ = small_encoders()
    assert not replace_weights(vision, starter.root / "vision.onnx", tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_a_graph_that_computes_something_else_is_traced_anew(
    tmp_path: Path, graphs: GraphCache
) -> None:
    """As one whose settings differ where its weights do not show it."""
    _, region = small_encoders()
    graphs.export_region(region, tmp_path / "region.onnx")
    model, weights = read_model(tmp_path / "region.onnx")
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Neg"
    save_model(model, weights, tmp_path / "wrong.onnx")
    report = export_region(region, tmp_path / "new.onnx", tmp_path / "wrong.onnx")
    assert report.passed
    assert "Neg" not in {node.op_type for node in onnx.load(tmp_path / "new.onnx").graph.node}
