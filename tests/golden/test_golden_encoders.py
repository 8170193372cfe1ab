"""Encoders of the golden sets, layer by layer in torch and as graphs, against the references.

The encoders are built as the conversion builds them, from published files of generated weights, at
full size. What takes seconds runs always; a whole image is slow.
"""

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

from helpers.golden_checkpoints import regionclip_state, write_clip, write_regionclip
from helpers.golden_weights import (
    ClipSizes,
    GoldenSet,
    LlamaSizes,
    RegionClipSizes,
    gpt4roi_maker,
    gpt4roi_shapes,
    pvit_image,
    pvit_maker,
    pvit_shapes,
)
from regionqa.bundles.card import ModelCard, read_card
from regionqa.bundles.store import shipped_folder
from regionqa.export.modules.multilevel import (
    MultiLevelConfig,
    MultiLevelRegionEncoder,
    coordinate_grid,
    resize_aligned,
)
from regionqa.export.modules.regionclip import RegionClipConfig, RegionClipEncoder
from regionqa.export.modules.tower import TowerConfig, TowerVision
from regionqa.export.onnx.export import write_region, write_vision
from regionqa.export.onnx.process import run_graph
from regionqa.export.sources.published import build_region, build_vision
from regionqa.regions import Box

SHARE = 1e-3
"""Largest difference as a share of the largest value, as GPT4RoI's specification suggests."""
FEATURES = 1e-4
"""The same for PVIT's vectors of regions. Its specification suggests it as a difference, for values
up to 8; but float32 itself is no better: in float64 the same network is 3e-4 from the reference."""
Arrays = Mapping[str, Any]


def difference(got: Any, want: Any) -> float:
    """Largest difference, as a share of the largest wanted value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return float(np.abs(got - want).max() / np.abs(want).max())


def card(name: str) -> ModelCard:
    """The card of a published model."""
    return read_card(shipped_folder() / name / "card.toml")


def seen(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Record inputs (`NAME.in`) and outputs (`NAME`) of modules in a table."""
    table: dict[str, Tensor] = {}

    def note(name: str, given: Any, found: Any) -> None:
        table[name], table[f"{name}.in"] = found, given[0]

    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, found, name=name: note(name, given, found))
    return table


def published(name: str, golden: GoldenSet, width: int = 4096) -> dict[str, Tensor]:
    """What the delta of a system holds beside the language model, by the bundle's names."""
    llama, clip = LlamaSizes(hidden=width, layers=0), ClipSizes()
    make, shapes = pvit_maker(golden.salt), pvit_shapes(llama, clip, RegionClipSizes())
    if name == "gpt4roi-7b":
        make, shapes = gpt4roi_maker(golden.salt), gpt4roi_shapes(llama, clip)
    sources = card(name).sources
    assert sources is not None
    return {
        own + key.removeprefix(prefix): torch.from_numpy(make(key, shape))
        for prefix, own in sources.parts.items()
        for key, shape in shapes.items()
        if key.startswith(prefix)
    }


def part(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One encoder's weights."""
    return {
        key.removeprefix(f"{name}."): value
        for key, value in weights.items()
        if key.startswith(f"{name}.")
    }


def empty_tower(name: str, golden: GoldenSet) -> TowerVision:
    """The tower without weights, for its sizes."""
    vision = golden.meta["vision_config"]
    tower = {key: vision[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                          "num_attention_heads", "patch_size")}  # fmt: skip
    settings = dict(card(name).architecture["vision"])
    del settings["kind"]
    tower["model_type"] = "clip_vision_model"
    with torch.device("meta"):
        return TowerVision(TowerConfig(tower=tower, hidden_size=4096, **settings))


# -- GPT4RoI ---------------------------------------------------------------------------------------


def level_inputs(golden: GoldenSet) -> list[Tensor]:
    """The inputs of the region encoder: four maps (2, 1024, 16, 16)."""
    make = gpt4roi_maker(golden.salt)
    tokens = (torch.from_numpy(make(f"input:level{i}", (2, 256, 1024))) for i in range(4))
    return [each.transpose(1, 2).reshape(2, 1024, 16, 16) for each in tokens]


def boxes_of(arrays: Arrays) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) of both images, and which image each is of."""
    both = arrays["boxes_img0"], arrays["boxes_img1"]
    index = [image for image, boxes in enumerate(both) for _ in boxes]
    return torch.from_numpy(np.concatenate(both)), torch.tensor(index)


@pytest.fixture(scope="module")
def roi_encoder(gpt4roi: GoldenSet) -> Iterator[MultiLevelRegionEncoder]:
    """GPT4RoI's region encoder as the conversion builds it."""
    weights = part(published("gpt4roi-7b", gpt4roi), "region")
    tower = empty_tower("gpt4roi-7b", gpt4roi)
    encoder = build_region(card("gpt4roi-7b"), None, weights, tower, 4096)
    assert isinstance(encoder, MultiLevelRegionEncoder)
    yield encoder.eval()
    gc.collect()


@torch.inference_mode()
def test_gpt4roi_position_embedding(gpt4roi: GoldenSet) -> None:
    weights = part(published_positions(gpt4roi), "roi_align")
    with torch.device("meta"):
        branch = MultiLevelRegionEncoder(
            MultiLevelConfig(224, (8,), (8,), position_width=256, region_width=1024)
        ).roi_align.pos_embedd
    branch.load_state_dict(part(weights, "pos_embedd"), assign=True)
    arrays = gpt4roi.arrays("a_region_module.npz")
    boxes, _ = boxes_of(arrays)
    assert difference(branch(boxes), arrays["dbg_pos_embed"]) < SHARE


def published_positions(golden: GoldenSet) -> dict[str, Tensor]:
    """Weights of the position branch."""
    make, prefix = gpt4roi_maker(golden.salt), "model.spi_module."
    shapes = gpt4roi_shapes(LlamaSizes(), ClipSizes())
    return {
        name.removeprefix(prefix): torch.from_numpy(make(name, shape))
        for name, shape in shapes.items()
        if "pos_embedd" in name
    }


@torch.inference_mode()
def test_gpt4roi_levels_are_resized_with_aligned_corners(gpt4roi: GoldenSet) -> None:
    arrays = gpt4roi.arrays("a_region_module.npz")
    sides = [shape[-1] for shape in arrays["dbg_upsampled_shapes"]]
    large = resize_aligned(level_inputs(gpt4roi)[0], sides[0])
    want = arrays["dbg_upsampled_level0_b0_c0_8x8"]
    assert difference(large[0, 0, :8, :8], want) < SHARE
    grid = coordinate_grid(sides[0])
    assert difference(grid[0, :, 0, :8], arrays["dbg_inputconv0_in_coordch_b0_y0_first8"]) < SHARE


@pytest.mark.slow
@torch.inference_mode()
def test_gpt4roi_region_encoder(
    roi_encoder: MultiLevelRegionEncoder, gpt4roi: GoldenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, levels = gpt4roi.arrays("a_region_module.npz"), level_inputs(gpt4roi)
    boxes, index = boxes_of(arrays)
    cut = roi_encoder.roi_align
    layers: dict[str, nn.Module] = {
        "position": cut.pos_embedd, "flat": cut.flatten_linear, "fuse": roi_encoder.mlvl_fuse,
        "first": roi_encoder.mlvl_fuse.input_conv[0], "last": roi_encoder.mlvl_fuse.input_conv[3],
        **{f"cut{level}": conv for level, conv in enumerate(cut.pconvs)},
    }  # fmt: skip
    table, rois = seen(layers), []

    def noted(level: Tensor, given: Tensor, *rest: Any, **settings: Any) -> Tensor:
        rois.append(given)
        found: Tensor = roi_align(level, given, *rest, **settings)
        return found

    monkeypatch.setattr("regionqa.export.modules.multilevel.roi_align", noted)
    tokens = roi_encoder(levels, boxes, index)
    assert difference(tokens[:, 0], arrays["region_embeddings"]) < SHARE

    sides = [tuple(level.shape[2:]) for level in table["fuse"]]
    assert sides == [tuple(shape[-2:]) for shape in arrays["dbg_upsampled_shapes"]]
    assert difference(rois[0], arrays["dbg_rois_224"]) < SHARE
    first, last = table["first"][0, :8, 5, 7], table["last"][1, :8, 5, 7]
    assert difference(first, arrays["dbg_inputconv0_b0_first8ch_y5_x7"]) < SHARE
    assert difference(last, arrays["dbg_inputconv3_b1_first8ch_y5_x7"]) < SHARE
    for level in range(4):
        fused = table["fuse"][level][1][[0, 512, 768, 1023]].diagonal(dim1=1, dim2=2)[:, :8]
        want = arrays[f"dbg_fused_level{level}_b1_ch0_512_768_1023_diag8"]
        assert difference(fused, want) < SHARE
        regions = table[f"cut{level}.in"]
        assert difference(regions[2, 0], arrays[f"dbg_roi_level{level}_roi2_ch0"]) < SHARE
    assert difference(table["flat.in"][2, :64], arrays["dbg_flatten_in_roi2_first64"]) < SHARE
    assert difference(table["flat"], arrays["dbg_flatten_linear_out"]) < SHARE
    assert difference(table["position"], arrays["dbg_pos_embed"]) < SHARE


@pytest.fixture(scope="module")
def roi_graph(
    roi_encoder: MultiLevelRegionEncoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its graph."""
    path = tmp_path_factory.mktemp("gpt4roi") / "region.onnx"
    write_region(roi_encoder, path)
    return path


@pytest.mark.slow
def test_gpt4roi_region_graph(roi_graph: Path, gpt4roi: GoldenSet) -> None:
    arrays = gpt4roi.arrays("a_region_module.npz")
    boxes, index = boxes_of(arrays)
    feeds = {f"level{i}": level.numpy() for i, level in enumerate(level_inputs(gpt4roi))}
    feeds |= {"boxes": boxes.numpy(), "image_index": index.numpy()}
    ((tokens,),) = run_graph(roi_graph, ["region_tokens"], [feeds])
    assert difference(tokens[:, 0], arrays["region_embeddings"]) < SHARE


@pytest.mark.slow
@torch.inference_mode()
def test_gpt4roi_vision_tower_and_levels(
    roi_graph: Path, gpt4roi: GoldenSet, tmp_path: Path
) -> None:
    arrays, make = gpt4roi.arrays("b_visual_prefix.npz"), gpt4roi_maker(gpt4roi.salt)
    weights = part(published("gpt4roi-7b", gpt4roi), "vision")
    folder = write_clip(tmp_path / "clip", ClipSizes(), make)
    vision = build_vision(card("gpt4roi-7b"), folder, weights, 4096).eval()
    assert vision.levels == tuple(arrays["hidden_state_indices"])
    assert vision.feature_layer == arrays["projector_hidden_state_index"]
    pixels = torch.from_numpy(make("input:pixel_values", (1, 3, 224, 224)))
    in_torch = [value.numpy() for value in vision(pixels)]
    write_vision(vision, tmp_path / "vision.onnx")
    del vision
    names = ["image_tokens", *card("gpt4roi-7b").vision.levels]
    (as_graph,) = run_graph(tmp_path / "vision.onnx", names, [{"pixel_values": pixels.numpy()}])
    for tokens, *levels in (in_torch, as_graph):
        assert difference(tokens[0, :8], arrays["projector_first8"]) < SHARE
        norms = np.linalg.norm(tokens[0], axis=1)
        assert difference(norms, arrays["projector_token_norms"]) < SHARE
        assert difference(tokens[0].mean(1), arrays["projector_token_means"]) < SHARE
        for number, level in enumerate(levels):
            patches = level[0].reshape(len(level[0]), -1).T  # (256, C), row by row
            assert difference(patches[0, :32], arrays[f"dbg_level{number}_tok0_first32"]) < SHARE
            want = arrays[f"dbg_level{number}_token_norms"]
            assert difference(np.linalg.norm(patches, axis=1), want) < SHARE
    feeds = dict(zip(names[1:], as_graph[1:], strict=True))
    feeds |= {"boxes": arrays["boxes"], "image_index": np.zeros(len(arrays["boxes"]), np.int64)}
    ((regions,),) = run_graph(roi_graph, ["region_tokens"], [feeds])
    assert difference(regions[:, 0], arrays["region_embeddings"]) < SHARE


# -- PVIT ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_encoder(pvit: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> RegionClipEncoder:
    """PVIT's region encoder as the conversion builds it, from RegionCLIP's file."""
    make = pvit_maker(pvit.salt)
    file = tmp_path_factory.mktemp("pvit") / "regionclip.pth"
    write_regionclip(file, regionclip_state(RegionClipSizes(), make))
    weights = part(published("pvit-7b", pvit), "region")
    with torch.device("meta"):
        tower = TowerVision(TowerConfig({"model_type": "clip_vision_model"}, 4096))
    encoder = build_region(card("pvit-7b"), file, weights, tower, 4096)
    assert isinstance(encoder, RegionClipEncoder)
    return encoder.eval()


def pixels_of(name: str, size: tuple[int, int], golden: GoldenSet) -> Tensor:
    """The region encoder's input (1, 3, h, w) for an image of (width, height)."""
    own = card("pvit-7b").region
    assert own is not None and own.image is not None
    image = Image.fromarray(pvit_image(name, size[1], size[0], golden.salt))
    return torch.from_numpy(own.image.pixel_values(image))[None]


def main_size(arrays: Arrays) -> tuple[int, int]:
    """Width and height of the main image, which follow from boxes in two units."""
    ratio = arrays["boxes_px"][:, 2:].max(0) * 1000 / arrays["boxes_permille"][:, 2:].max(0)
    return round(float(ratio[0])), round(float(ratio[1]))


def fractions(arrays: Arrays) -> Tensor:
    """Boxes (N, 4) as the engine gives them."""
    size = main_size(arrays)
    own = card("pvit-7b").region
    assert own is not None and own.image is not None
    placement = own.image.placement(*size)
    return torch.tensor([placement.to_model(Box(*map(float, box))) for box in arrays["boxes_px"]])


@torch.inference_mode()
def test_pvit_region_tokens(pvit: GoldenSet) -> None:
    features = torch.from_numpy(pvit.arrays("region.npz")["features"])
    small = pvit.arrays("small.npz")
    cases = {4096: pvit.arrays("splice.npz"), pvit.meta["sizes"]["small"]["hidden"]: {
        name.removeprefix("splice_"): value for name, value in small.items()
    }}  # fmt: skip
    for width, want in cases.items():
        with torch.device("meta"):
            encoder = RegionClipEncoder(RegionClipConfig(hidden_size=width))
        weights = part(published("pvit-7b", pvit, width), "region")
        encoder.load_state_dict(weights, strict=False, assign=True)
        boxes = torch.from_numpy(want["boxes_normalised"])
        projected, term = encoder.prompt_projector(features), encoder.bbox_fc(boxes)
        assert difference(projected, want["projected"][:, 0]) < FEATURES
        assert difference(term, want["box_term"][:, 0]) < FEATURES
        tokens = encoder.project(features, boxes)
        assert difference(tokens, want["region_embeddings"]) < FEATURES


@torch.inference_mode()
def test_pvit_stem(pvit: GoldenSet) -> None:
    with torch.device("meta"):
        backbone = RegionClipEncoder(RegionClipConfig()).backbone
    make, shapes = pvit_maker(pvit.salt), RegionClipSizes().shapes()
    names = [name for name in shapes if name.removeprefix("backbone.")[:2] in ("co", "bn")]
    state = {name: torch.from_numpy(make(name, shapes[name])) for name in names}
    backbone.load_state_dict(part(state, "backbone"), strict=False, assign=True)
    arrays = pvit.arrays("region.npz")
    stem = backbone.stem(pixels_of("main", main_size(arrays), pvit))
    assert tuple(stem.shape) == tuple(arrays["stem_shape"])
    assert difference(stem.mean((0, 2, 3)), arrays["stem_mean"]) < FEATURES
    assert difference(stem.std((0, 2, 3)), arrays["stem_std"]) < FEATURES


@pytest.mark.slow
@torch.inference_mode()
def test_pvit_region_encoder(clip_encoder: RegionClipEncoder, pvit: GoldenSet) -> None:
    arrays = pvit.arrays("region.npz")
    table = seen({name: clip_encoder.backbone.get_submodule(f"layer{name[-1]}")
                  for name in ("layer1", "layer2", "layer3", "layer4")})  # fmt: skip
    pixels, boxes = pixels_of("main", main_size(arrays), pvit), fractions(arrays)
    index = torch.zeros(len(boxes), dtype=torch.int64)
    features = clip_encoder.region_vectors([pixels], boxes, index)
    assert difference(features, arrays["features"]) < FEATURES
    for name, layer in (("res2", "layer1"), ("res3", "layer2"), ("res4", "layer3")):
        found = table[layer]
        assert tuple(found.shape) == tuple(arrays[f"{name}_shape"])
        assert difference(found.mean((0, 2, 3)), arrays[f"{name}_mean"]) < FEATURES
        assert difference(found.std((0, 2, 3)), arrays[f"{name}_std"]) < FEATURES
    assert difference(table["layer3"][0, ::16, ::5, ::6], arrays["res4_sample"]) < FEATURES
    for name, found in (("roi", table["layer4.in"]), ("layer4", table["layer4"])):
        stride = found.shape[1] // arrays[f"{name}_sample"].shape[1]
        assert difference(found.mean((2, 3)), arrays[f"{name}_mean"]) < FEATURES
        assert difference(found[:, ::stride], arrays[f"{name}_sample"]) < FEATURES


@pytest.mark.slow
@torch.inference_mode()
def test_pvit_padded_batch(clip_encoder: RegionClipEncoder, pvit: GoldenSet) -> None:
    arrays = pvit.arrays("region.npz")
    size = main_size(arrays)
    images = [pixels_of("main", size, pvit), pixels_of("portrait", size[::-1], pvit)]
    padded = torch.zeros(tuple(arrays["batch_tensor_shape"]))
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[2], : image.shape[3]] = image[0]
    sides = torch.tensor(padded.shape[2:]).flip(0).repeat(2)  # the canvas is the padded one
    given = [torch.from_numpy(arrays[f"batch_boxes_{number}"]) for number in (1, 2)]
    boxes = torch.cat(given) / sides
    index = torch.tensor([0] * len(given[0]) + [1] * len(given[1]))
    features = clip_encoder.region_vectors([padded], boxes, index)
    want = np.concatenate([arrays[f"batch_features_{number}"] for number in (1, 2)])
    assert difference(features, want) < FEATURES
    # a box at the padded side is not what it is alone: therefore nothing of ours pads
    edge = int(np.argmax(given[0][:, 2]))
    (row,) = np.flatnonzero(np.abs(arrays["boxes_resized"] - given[0][edge].numpy()).max(1) < 1e-3)
    moved = np.abs(want[edge] - arrays["features"][row]).max()
    assert moved == pytest.approx(pvit.meta["region"]["padding_effect_edge"], rel=1e-3)


@pytest.mark.slow
def test_pvit_region_graph(
    clip_encoder: RegionClipEncoder, pvit: GoldenSet, tmp_path: Path
) -> None:
    arrays = pvit.arrays("region.npz")
    write_region(clip_encoder, tmp_path / "region.onnx")
    boxes = fractions(arrays).numpy()
    feeds = {
        "pixel_values": pixels_of("main", main_size(arrays), pvit).numpy(), "boxes": boxes,
        "image_index": np.zeros(len(boxes), np.int64),
    }  # fmt: skip
    ((tokens,),) = run_graph(tmp_path / "region.onnx", ["region_tokens"], [feeds])
    want = pvit.arrays("splice.npz")["region_embeddings"]
    assert difference(tokens, want) < FEATURES
