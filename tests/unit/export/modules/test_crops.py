"""The starter's region encoder: crops, vectors, graph."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers.graph_cache import GraphCache
from regionqa.export.modules.crops import (
    CropConfig,
    CropRegionEncoder,
    box_mask,
    crop_windows,
    grown,
    within,
)
from regionqa.export.modules.positions import PLACES
from regionqa.export.modules.registry import architecture_table
from regionqa.export.modules.resnet import BasicBlock
from regionqa.export.onnx.interface import RegionGraph
from regionqa.export.onnx.verify import TOLERANCE, compare

SMALL = CropConfig(
    widths=(8, 8, 16, 24), depths=(1, 1, 1, 1), side=32, region_width=20, hidden_size=16
)


@pytest.fixture(scope="module")
def small() -> CropRegionEncoder:
    torch.manual_seed(0)
    return CropRegionEncoder(SMALL).eval()


@pytest.fixture(scope="module")
def whole(small: CropRegionEncoder) -> CropRegionEncoder:
    """A trained encoder, put before another language model, for images of any size."""
    torch.manual_seed(0)
    return CropRegionEncoder.with_new_projector(small, hidden_size=32, input_size=None)


@pytest.fixture(scope="module")
def graph(
    whole: CropRegionEncoder, tmp_path_factory: pytest.TempPathFactory, graphs: GraphCache
) -> Path:
    path = tmp_path_factory.mktemp("graph") / "region.onnx"
    report = graphs.export_region(whole, path)
    report.check()
    assert "1 images with 0 regions" in report.cases
    return path


def a_case(height: int, width: int, images: int, regions: int) -> dict[str, Any]:
    rng = np.random.default_rng(height + regions)
    corners = np.sort(rng.uniform(-0.1, 1.1, (regions, 2, 2)), axis=1)  # (N, 2, 2)
    return {
        "pixel_values": rng.standard_normal((images, 3, height, width), np.float32),
        "boxes": corners.reshape(regions, 4).astype(np.float32),
        "image_index": rng.integers(0, images, regions),
    }


def test_crop_equals_pillow_resize() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()
    windows = torch.tensor([[0, 0, 320, 240], [10.3, 20.2, 200.7, 190.1], [3.2, 5.1, 20.0, 9.0]])
    cuts = crop_windows(image.expand(3, -1, -1, -1), windows, 48)
    for window, crop in zip(windows, cuts, strict=True):
        resized = Image.fromarray(pixels).resize(
            (48, 48), Image.Resampling.BILINEAR, box=tuple(window.tolist())
        )
        assert np.abs(crop.permute(1, 2, 0).numpy() - np.asarray(resized)).max() <= 1.01  # rounding


def test_mask_covers_the_box() -> None:
    boxes = torch.tensor([[20.0, 10.0, 40.0, 50.0], [0.0, 0.0, 8.0, 8.0]])
    windows = torch.tensor([[10.0, 0.0, 50.0, 60.0], [0.0, 0.0, 8.0, 8.0]])
    mask = box_mask(windows, boxes, 16)
    assert mask.shape == (2, 1, 16, 16)
    shares = ((mask + 1) / 2).mean((1, 2, 3))
    assert shares[0].item() == pytest.approx(20 * 40 / (40 * 60), abs=1e-3)
    assert torch.equal(mask[1], torch.ones(1, 16, 16))
    assert mask[0, 0, 0, 0] == -1 and mask[0, 0, 8, 8] == 1


def test_windows_of_narrow_boxes() -> None:
    slim = grown(torch.tensor([[100.0, 50.0, 110.0, 150.0]]), 2.0, 0.4)
    assert slim.tolist() == [[65.0, 0.0, 145.0, 200.0]]
    outside = torch.tensor([[-50.0, -50.0, 30.0, 30.0], [400.0, 400.0, 500.0, 500.0]])
    assert within(outside, 100, 80).tolist() == [[0, 0, 30, 30], [98, 78, 100, 80]]


@pytest.mark.parametrize("regions", [0, 1, 5])
@pytest.mark.parametrize("size", [(160, 266), (97, 33), (18, 333), (64, 64), (3, 1)])
def test_graph_equals_torch_at_any_size(
    whole: CropRegionEncoder, graph: Path, size: tuple[int, int], regions: int
) -> None:
    cases = {str(images): a_case(*size, images, regions) for images in (1, 2)}
    report = compare(RegionGraph(whole), graph, ["region_tokens"], cases)
    assert report.difference <= TOLERANCE


@torch.no_grad()
def test_vector_depends_on_box_and_surroundings_only(small: CropRegionEncoder) -> None:
    torch.manual_seed(1)
    image = torch.randn(1, 3, 120, 160)
    box, index = torch.tensor([[0.1, 0.1, 0.25, 0.3]]), torch.zeros(1, dtype=torch.int64)
    before = small.region_vectors([image], box, index)
    assert before.shape == (1, SMALL.vector_width)
    far, near, inside = image.clone(), image.clone(), image.clone()
    far[..., 60:, 80:] = 0  # beyond thrice the box
    near[..., 42:50, :] = 0
    inside[..., 20:30, 20:30] = 0
    colours = slice(-3 * SMALL.colour_grid**2, None)
    assert torch.allclose(small.region_vectors([far], box, index), before, atol=1e-6)
    changed = small.region_vectors([near], box, index)
    assert not torch.allclose(changed, before, atol=1e-4)
    assert torch.allclose(changed[:, colours], before[:, colours], atol=1e-6)
    changed = small.region_vectors([inside], box, index)
    assert not torch.allclose(changed[:, colours], before[:, colours], atol=1e-2)


@torch.no_grad()
def test_position_part_of_a_vector_can_be_replaced(small: CropRegionEncoder) -> None:
    torch.manual_seed(2)
    image, index = torch.randn(1, 3, 60, 80), torch.zeros(1, dtype=torch.int64)
    here, there = torch.tensor([[0.1, 0.1, 0.4, 0.5]]), torch.tensor([[0.5, 0.2, 0.9, 0.9]])
    before, elsewhere = (small.region_vectors([image], box, index) for box in (here, there))
    moved = small.moved(before, there)
    places = slice(SMALL.region_width, SMALL.region_width + PLACES)
    assert torch.equal(moved[:, places], elsewhere[:, places])
    assert torch.equal(moved[:, : places.start], before[:, : places.start])
    assert torch.equal(moved[:, places.stop :], before[:, places.stop :])


@torch.no_grad()
def test_images_and_boxes_of_a_batch_are_independent(small: CropRegionEncoder) -> None:
    case = {name: torch.from_numpy(value) for name, value in a_case(80, 100, 3, 6).items()}
    together = small([case["pixel_values"]], case["boxes"], case["image_index"])
    assert together.shape == (6, 1, 16)
    for row in range(6):
        image = case["pixel_values"][case["image_index"][row]][None]
        alone = small([image], case["boxes"][row : row + 1], torch.zeros(1, dtype=torch.int64))
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_architecture_table(small: CropRegionEncoder) -> None:
    table = architecture_table(small)
    assert (table["kind"], table["side"], "input_size" in table) == ("cuts", 32, False)


@pytest.mark.parametrize("place_width", [0, 8])
def test_project_uses_the_projector_only(place_width: int) -> None:
    region = CropRegionEncoder(replace(SMALL, place_width=place_width))
    ones, box = torch.ones(1, SMALL.vector_width), torch.tensor([[0.1, 0.2, 0.5, 0.9]])
    gradients = torch.autograd.grad(
        region.project(ones, box).sum(), list(region.parameters()), allow_unused=True
    )
    used = {
        name.partition(".")[0]
        for (name, _), gradient in zip(region.named_parameters(), gradients, strict=True)
        if gradient is not None
    }
    parts = {name: region.get_submodule(name) for name in region.projector_parts}
    assert used == {name for name, part in parts.items() if list(part.parameters())}
    assert ("place" in used) is bool(place_width)


@torch.no_grad()
def test_position_distinguishes_similar_boxes() -> None:
    torch.manual_seed(0)
    region = CropRegionEncoder(replace(SMALL, place_width=8))
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.3], [0.6, 0.1, 0.8, 0.3], [0.1, 0.1, 0.3, 0.3]])
    first, second, third = region.project(torch.zeros(3, SMALL.vector_width), boxes)[:, 0]
    assert (first - second).abs().max() > 1e-3
    assert torch.allclose(first, third, atol=1e-6)


def test_odd_sides_are_averaged() -> None:
    shortcut = BasicBlock(8, 8, stride=2).shortcut
    assert isinstance(shortcut, nn.Sequential)
    row = torch.tensor([1.0, 3.0, 7.0]).reshape(1, 1, 1, 3)
    assert shortcut[0](row).flatten().tolist() == [2, 7]
    even = torch.randn(1, 1, 4, 6)
    assert torch.equal(shortcut[0](even), nn.functional.avg_pool2d(even, 2))
