"""RegionCLIP's network: layers against torch's, and its graph."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from helpers.golden_checkpoints import regionclip_state
from helpers.golden_weights import RegionClipSizes, pvit_maker
from helpers.graph_cache import GraphCache
from helpers.tiny_models import TINY_CLIP
from regionqa.export.modules.regionclip import (
    AttentionPool,
    Bottleneck,
    FrozenBatchNorm,
    RegionClipConfig,
    RegionClipEncoder,
)
from regionqa.export.modules.registry import REGION, architecture_table
from regionqa.export.onnx.interface import RegionGraph
from regionqa.export.onnx.verify import TOLERANCE, compare
from regionqa.schema import from_table

SIZES = RegionClipSizes(stem=8, planes=(4, 4, 8, 32), depths=(1, 1, 2, 1), cells=4, out=12)
CONFIG = TINY_CLIP


def encoder() -> RegionClipEncoder:
    """A small encoder with generated weights."""
    made = RegionClipEncoder(CONFIG).eval()
    make = pvit_maker("a salt")
    linear = {
        name: torch.from_numpy(make(name, tuple(value.shape)))
        for name, value in made.state_dict().items()
        if not name.startswith("backbone.")
    }
    made.load_state_dict({**regionclip_state(SIZES, make), **linear})
    return made


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory, graphs: GraphCache) -> Path:
    """The graph of `encoder()`, compared with it."""
    path = tmp_path_factory.mktemp("graph") / "region.onnx"
    report = graphs.export_region(encoder(), path)
    report.check()
    assert "1 images with 0 regions" in report.cases
    return path


def test_names_and_shapes_equal_the_published_ones() -> None:
    with torch.device("meta"):
        made = RegionClipEncoder(RegionClipConfig()).state_dict()
    backbone = {
        name: tuple(value.shape) for name, value in made.items() if name.startswith("backbone.")
    }
    assert backbone == RegionClipSizes().shapes()
    assert {name for name in made if name not in backbone} == {
        "prompt_projector.weight", "prompt_projector.bias", "bbox_fc.weight", "bbox_fc.bias",
    }  # fmt: skip


@torch.no_grad()
def test_frozen_norm_equals_batch_norm() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    frozen = FrozenBatchNorm(5)
    for name, value in frozen.state_dict().items():
        value.copy_(torch.rand(5) + 0.5)
        norm.state_dict()[name].copy_(value)
    x = torch.randn(2, 5, 3, 4)
    expected = norm.eval()(x)
    assert torch.allclose(frozen.train()(x), expected, atol=1e-6)
    assert not list(frozen.parameters())


@torch.no_grad()
def test_attention_pool_equals_multi_head_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(CONFIG)
    for value in pool.parameters():
        nn.init.normal_(value, std=0.5)
    x = torch.randn(3, 128, 2, 2)
    cells = x.flatten(2).permute(2, 0, 1)  # (4, N, C)
    tokens = torch.cat([cells.mean(0, keepdim=True), cells]) + pool.positional_embedding[:, None]
    parts = (pool.q_proj, pool.k_proj, pool.v_proj)
    expected, _ = F.multi_head_attention_forward(
        tokens, tokens, tokens, 128, CONFIG.heads, None,
        torch.cat([part.bias for part in parts]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    assert torch.allclose(pool(x), expected[0], atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_block_pools_both_branches(stride: int) -> None:
    block = Bottleneck(8, 4, stride, first=True).eval()
    with torch.no_grad():
        for name, value in block.named_parameters():
            value.fill_(0 if name == "conv3.weight" else 1)
        x = torch.randn(1, 8, 5, 7)
        expected = F.relu(F.avg_pool2d(x, stride).sum(1) / np.sqrt(1 + 1e-5))
        found = block(x)
    assert found.shape == (1, 16, 5 // stride, 7 // stride)
    assert torch.allclose(found[:, 3], expected, atol=1e-5)


@torch.no_grad()
def test_stage_four_depends_on_the_region_only() -> None:
    made = encoder()
    pixels = torch.randn(1, 3, 160, 200)
    box = torch.tensor([[0.1, 0.2, 0.4, 0.5]])
    alone = made([pixels], box, torch.zeros(1, dtype=torch.int64))
    changed = pixels.clone()
    changed[..., 150:] += 5  # far from the box, beyond what the first stages see
    index = torch.zeros(2, dtype=torch.int64)
    both = made([changed], torch.cat([box, torch.tensor([[0.9, 0.2, 1.0, 0.5]])]), index)
    assert torch.allclose(both[:1], alone, atol=1e-5)
    assert not torch.allclose(both[1:], alone, atol=1e-1)


@torch.no_grad()
@pytest.mark.parametrize("size", [(80, 336), (330, 70)])
def test_regions_use_roi_align(size: tuple[int, int]) -> None:
    """Step by step, with roi_align called by hand, in an image that is not square."""
    made = encoder()
    height, width = size
    rng = np.random.default_rng(height)
    pixels = torch.from_numpy(rng.standard_normal((2, 3, height, width), np.float32))
    # RoIAlign's cells are three cells of the map on the longer side, or a fraction of one
    boxes = torch.tensor([[0.05, 0.02, 0.95, 0.97], [0.5, 0.1, 0.6, 0.9], [0.2, 0.2, 0.25, 0.22]])
    index = torch.tensor([1, 0, 1])
    trunk = made.backbone.region_map(pixels)
    assert trunk.shape == (2, 32, height // 16, width // 16)
    tokens = made([pixels], boxes, index)
    assert tokens.shape == (3, 1, 32)
    for row, (box, image) in enumerate(zip(boxes, index, strict=True)):
        x0, y0, x1, y1 = box.tolist()
        corners = torch.tensor([[x0 * width, y0 * height, x1 * width, y1 * height]])
        cut = roi_align(
            trunk[image : image + 1], [corners], (4, 4), 1 / 16, sampling_ratio=0, aligned=True
        )
        vector = made.backbone.attnpool(made.backbone.layer4(cut))[0]  # type: ignore[operator]
        expected = made.prompt_projector(vector) + made.bbox_fc(box)
        assert torch.allclose(tokens[row, 0], expected, atol=1e-5)
        coarse = roi_align(trunk[image : image + 1], [corners], 4, 1 / 16, 2, aligned=True)
        if row == 0:
            assert not torch.allclose(cut, coarse, atol=1e-3), "the points of a cell adapt to it"


@pytest.mark.parametrize("regions", [0, 1, 5])
@pytest.mark.parametrize("size", [(160, 266), (97, 33), (18, 333), (64, 64)])
def test_graph_equals_torch_at_any_size(graph: Path, size: tuple[int, int], regions: int) -> None:
    rng = np.random.default_rng(size[0] + regions)
    corners = np.sort(rng.uniform(-0.1, 1.1, (regions, 2, 2)), axis=1)  # (N, 2, 2)
    cases: dict[str, Any] = {
        f"{images} images": {
            "pixel_values": rng.standard_normal((images, 3, *size), np.float32),
            "boxes": corners.reshape(regions, 4).astype(np.float32),
            "image_index": rng.integers(0, images, regions),
        }
        for images in (1, 2)
    }
    assert compare(RegionGraph(encoder()), graph, ["region_tokens"], cases).difference <= TOLERANCE


def test_project_uses_the_projector_only() -> None:
    made = encoder()
    assert sorted(made.projector_parts) == ["bbox_fc", "prompt_projector"]
    gradients = torch.autograd.grad(
        made.project(torch.ones(1, CONFIG.region_width), torch.ones(1, 4)).sum(),
        list(made.parameters()),
        allow_unused=True,
    )
    used = {
        name.partition(".")[0]
        for (name, _), gradient in zip(made.named_parameters(), gradients, strict=True)
        if gradient is not None
    }
    assert used == set(made.projector_parts)


@torch.no_grad()
def test_dynamic_sides_and_no_regions(graph: Path) -> None:
    made = encoder()
    session = onnxruntime.InferenceSession(str(graph))
    rng = np.random.default_rng(0)
    # boxes from a fraction of a cell to the whole: the points of a cell adapt to the box
    boxes = np.array([[0, 0, 1, 1], [0.4, 0.4, 0.402, 0.41], [0.3, 0.9, 1.3, 1.1]], np.float32)
    for height, width, count in ((65, 333, 3), (320, 97, 3), (200, 200, 0)):
        pixels = rng.standard_normal((1, 3, height, width), np.float32)
        index = np.zeros(count, np.int64)
        (found,) = session.run(
            None, {"pixel_values": pixels, "boxes": boxes[:count], "image_index": index}
        )
        expected = made(
            [torch.from_numpy(pixels)], torch.from_numpy(boxes[:count]), torch.from_numpy(index)
        )
        assert found.shape == (count, 1, 32)
        assert np.allclose(found, expected.numpy(), atol=1e-4)


def test_architecture_table() -> None:
    table = architecture_table(encoder())
    assert table.pop("kind") == "regionclip"
    lists = {
        key: list(value) if isinstance(value, tuple) else value for key, value in table.items()
    }
    config, _ = REGION["regionclip"]
    assert from_table(config, lists, "architecture") == CONFIG


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": (1, 1, 1)}, "four stages each"),
        ({"depths": (1, 1, 0, 1)}, "four stages each"),
        ({"roi_size": 1}, "2 or more"),
        ({"heads": 7}, "7 heads do not divide 2560 channels"),
    ],
)
def test_invalid_configs(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionClipConfig(**settings)  # type: ignore[arg-type]
