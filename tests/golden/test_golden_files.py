"""The generated weights of the golden sets, and the files they are written to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from helpers.golden_checkpoints import (
    GPT4ROI_CONFIG,
    PVIT_CONFIG,
    regionclip_state,
    write_base,
    write_clip,
    write_delta,
    write_regionclip,
)
from helpers.golden_weights import (
    ClipSizes,
    GoldenSet,
    LlamaSizes,
    RegionClipSizes,
    gpt4roi_image,
    gpt4roi_maker,
    gpt4roi_shapes,
    pvit_image,
    pvit_maker,
    pvit_shapes,
)
from regionqa.export.modules.tower import tower_table
from regionqa.export.sources.checkpoints import read_language, read_tower

LLAMA = LlamaSizes(hidden=32, inner=48, layers=2, heads=4)
CLIP = ClipSizes(width=32, inner=48, layers=3, heads=2, side=28)
REGION = RegionClipSizes(stem=8, planes=(4, 4, 8, 8), depths=(1, 1, 2, 1), cells=4, out=12)


def test_tensors_and_images_are_generated_from_names() -> None:
    make = gpt4roi_maker("a salt")
    weight = make("model.norm.weight", (400,))
    assert abs(weight.mean() - 1) < 0.01
    assert weight.std() == pytest.approx(0.02, rel=0.2)
    assert np.array_equal(weight, gpt4roi_maker("a salt")("model.norm.weight", (400,)))
    assert not np.array_equal(weight, gpt4roi_maker("another")("model.norm.weight", (400,)))
    assert make("input:x", (400,)).std() == pytest.approx(1, rel=0.2)
    filters = pvit_maker("a salt")("layer.conv1.weight", (3, 5, 3, 3))
    assert np.allclose(filters.sum((1, 2, 3)), 0, atol=1e-5)
    assert filters.dtype == np.float32
    assert (pvit_maker("a salt")("bn.running_var", (50,)) >= 1).all()
    assert gpt4roi_image("input:p", 5, 7, "a salt").shape == (5, 7, 3)
    assert pvit_image("p", 50, 70, "a salt").shape == (50, 70, 3)


def test_shapes_equal_the_published_files(pvit: GoldenSet) -> None:
    published = pvit.json("state_keys.json")
    for kind, shapes in (
        ("pvit", pvit_shapes(LlamaSizes(), ClipSizes(), RegionClipSizes())),
        ("clip_vision", ClipSizes().shapes()),
        ("regionclip", RegionClipSizes().shapes()),
    ):
        expected = {
            name: tuple(shape)
            for name, shape in published[kind].items()
            if not name.startswith("roi_heads.")
        }
        assert shapes == expected
    parameters = sum(
        int(np.prod(shape))
        for name, shape in gpt4roi_shapes(LlamaSizes(), ClipSizes()).items()
        if "spi_module" in name
    )
    assert round(parameters / 1e6, 2) == 299.14


@pytest.mark.parametrize("safetensors", [False, True])
@pytest.mark.parametrize("system", ["gpt4roi", "pvit"])
def test_delta_plus_base_is_the_model(system: str, safetensors: bool, tmp_path: Path) -> None:
    make = {"gpt4roi": gpt4roi_maker, "pvit": pvit_maker}[system]("a salt")
    shapes = gpt4roi_shapes(LLAMA, CLIP, width=64, roi=2)
    if system == "pvit":
        shapes = pvit_shapes(LLAMA, CLIP, REGION)
    config = {"gpt4roi": GPT4ROI_CONFIG, "pvit": PVIT_CONFIG}[system]
    small: dict[str, Any] = {
        "shard_bytes": 1 << 21,
        "safetensors": safetensors,
        "dtype": torch.float32,
    }
    write_base(tmp_path / "base", LLAMA, make, **small)
    write_delta(tmp_path / "delta", LLAMA, shapes, make, config, **small)
    base, delta = (read_shards(tmp_path / name) for name in ("base", "delta"))
    rotary = {name for name in delta if name.endswith("inv_freq")}
    assert len(rotary) == LLAMA.layers
    assert set(delta) - rotary == set(shapes)
    for name, shape in shapes.items():
        whole = delta[name].clone()
        if name in base:
            assert not torch.equal(whole[: len(base[name])], torch.zeros_like(base[name]))
            whole[: len(base[name])] += base[name]
        assert torch.allclose(whole, torch.from_numpy(make(name, shape)), atol=1e-6)
    kind = AutoConfig.from_pretrained(tmp_path / "base")
    assert (kind.model_type, kind.vocab_size) == ("llama", 32000)


def read_shards(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's shards."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*-of-*")):
        found |= (
            load_file(path) if path.suffix == ".safetensors" else
            torch.load(path, weights_only=True, mmap=True)
        )  # fmt: skip
    return found


def test_large_shards_are_written_via_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.golden_checkpoints.IN_MEMORY", 1000)
    write_base(tmp_path, LLAMA, gpt4roi_maker("a salt"), shard_bytes=1 << 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json",
    ]  # fmt: skip
    tensors = read_shards(tmp_path)
    expected = gpt4roi_maker("a salt")("base:model.norm.weight", (32,))
    assert torch.equal(tensors["model.norm.weight"], torch.from_numpy(expected).half())
    storages = {value.untyped_storage().data_ptr() for value in tensors.values()}
    assert len(storages) == len(tensors)


def test_transformers_reads_the_base_and_the_tower(tmp_path: Path) -> None:
    make = pvit_maker("a salt")
    write_base(tmp_path / "base", LLAMA, make, dtype=torch.float32)
    model = read_language(tmp_path / "base")
    assert not isinstance(model, Path)
    head = model.state_dict()["lm_head.weight"].float()
    assert torch.equal(head, torch.from_numpy(make("base:lm_head.weight", (32000, 32))))
    for safetensors in (True, False):
        folder = write_clip(tmp_path / f"clip-{safetensors}", CLIP, make, safetensors=safetensors)
        config, weights = read_tower(folder)
        assert tower_table(config)["image_size"] == 28
        assert len(weights) == len(CLIP.shapes())


@pytest.mark.parametrize("versions", [None, {"": 1, "backbone.bn1": 3}])
@pytest.mark.parametrize("wrapped", [True, False])
def test_regionclip_file(wrapped: bool, versions: dict[str, int] | None, tmp_path: Path) -> None:
    state = regionclip_state(REGION, pvit_maker("a salt"))
    path = write_regionclip(tmp_path / "r.pth", state, wrapped=wrapped, versions=versions)
    read = torch.load(path, weights_only=True)
    read = read["model"] if wrapped else read
    assert set(read) == set(state)
    assert (getattr(read, "_metadata", None) is None) == (versions is None)
