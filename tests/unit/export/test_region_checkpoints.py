"""RegionCLIP checkpoints: tensors read and dropped, BatchNorm versions, errors."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.golden_checkpoints import regionclip_state, write_regionclip
from helpers.golden_weights import RegionClipSizes, pvit_maker
from regionqa.errors import BundleError
from regionqa.export.modules.regionclip import RegionClipConfig, RegionClipEncoder
from regionqa.export.sources.region_checkpoints import check_regionclip, read_regionclip

SIZES = RegionClipSizes(stem=8, planes=(4, 4, 8, 8), depths=(1, 1, 2, 1), cells=9, out=12)
EXTRAS = {
    "roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 12),
    "lang_encoder.token_embedding.weight": torch.zeros(5, 4),
    "offline_backbone.stem.conv1.weight": torch.zeros(2, 3, 3, 3),
    "teacher_backbone.conv1.weight": torch.zeros(2, 3, 3, 3),
    "pixel_mean": torch.zeros(3, 1, 1),
    "somebodys.own.head.weight": torch.zeros(1),
    "backbone.bn1.num_batches_tracked": torch.tensor(7),
}


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Generated tensors of a small checkpoint."""
    return regionclip_state(SIZES, pvit_maker("a salt"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_other_tensors_are_dropped(wrapped: bool, state: dict[str, Tensor], tmp_path: Path) -> None:
    file = write_regionclip(tmp_path / "r.pth", state, wrapped=wrapped, extras=EXTRAS)
    weights = read_regionclip(file)
    read = weights.tensors
    assert read.keys() == state.keys()
    assert weights.note == (
        "ignored, as PVIT does, what is not under backbone.*: lang_encoder.* (1), "
        "offline_backbone.* (1), pixel_mean (1), roi_heads.* (1), somebodys.* (1), "
        "teacher_backbone.* (1)"
    )
    assert all(torch.equal(read[name], value) for name, value in state.items())
    encoder = RegionClipEncoder(
        RegionClipConfig(8, (4, 4, 8, 8), (1, 1, 2, 1), roi_size=6, heads=4, region_width=12)
    )
    assert not encoder.load_state_dict(read, strict=False).unexpected_keys


def test_safetensors_checkpoint(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "r.safetensors")
    assert read_regionclip(tmp_path / "r.safetensors").tensors.keys() == state.keys()


def test_float16_is_read_as_float32(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: value.half() for name, value in state.items()}
    read = read_regionclip(write_regionclip(tmp_path / "r.pth", half)).tensors
    assert {value.dtype for value in read.values()} == {torch.float32}


@pytest.mark.parametrize(("version", "subtracted"), [(1, True), (2, True), (3, False)])
def test_old_batch_norm_variance_includes_eps(
    version: int, subtracted: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    name = "backbone.layer3.1.bn2"
    versions = {"": 1, name: version, "backbone.conv1": 1}
    file = write_regionclip(tmp_path / "r.pth", state, versions=versions)
    read = read_regionclip(file).tensors
    plain = state[f"{name}.running_var"]
    assert torch.equal(read[f"{name}.running_var"], plain - 1e-5 if subtracted else plain)
    # a module that the metadata does not name has no version, and is left alone
    assert torch.equal(read["backbone.bn1.running_var"], state["backbone.bn1.running_var"])


@torch.no_grad()
def test_plain_batch_norm_checkpoint(state: dict[str, Tensor], tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm2d(8)
    norm.running_var = torch.rand(8) + 0.5
    module = torch.nn.Module()
    module.backbone = torch.nn.Module()
    module.backbone.bn3 = norm
    torch.save(module.state_dict(), tmp_path / "r.pth")
    read = read_regionclip(tmp_path / "r.pth").tensors
    assert torch.equal(read["backbone.bn3.running_var"], norm.running_var - 1e-5)


def test_invalid_files(state: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "r.pth"
    with pytest.raises(BundleError, match=r"r\.pth: no such file"):
        read_regionclip(file)
    file.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(
        BundleError, match=r"cannot be read as a checkpoint of torch .*get it again"
    ):
        read_regionclip(file)
    write_regionclip(file, {"roi_heads.x": torch.zeros(1)})
    with pytest.raises(BundleError, match=r"holds no backbone\.\* but roi_heads\.\*; a RegionCLIP"):
        read_regionclip(file)
    torch.save([1, 2], file)
    with pytest.raises(BundleError, match="holds no state dict"):
        read_regionclip(file)
    content = write_regionclip(file, state).read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="cannot be read as a checkpoint of torch"):
        read_regionclip(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.bn1.weight": None}, r"backbone\.bn1\.weight is missing"),
        ({"backbone.conv3.weight": None}, r"backbone\.conv3\.weight' is missing"),
        ({"backbone.bn1.weight": torch.zeros(3)}, r"backbone\.bn1\.weight has another size"),
        ({"backbone.head.weight": torch.zeros(3)}, r"backbone\.head\.weight is unknown"),
        ({"backbone.bn1.weight": "text"}, r"backbone\.bn1\.weight is a str, not a tensor"),
    ],
)
def test_an_incomplete_or_other_network(
    change: dict[str, Any], message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    file = write_regionclip(tmp_path / "r.pth", state)
    assert check_regionclip(file) is None
    write_regionclip(file, changed)
    with pytest.raises(BundleError, match=message):
        check_regionclip(file)


def test_numbers_and_arrays_of_numpy_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    """detectron2 saves learning rates and converted weights as such, NumPy 1 by other names."""
    arrays = {name: value.numpy() for name, value in state.items()}
    file = tmp_path / "r.pth"
    torch.save({"model": arrays, "lr": np.float64(0.1), "step": np.int64(7)}, file)
    read = read_regionclip(file).tensors
    assert all(torch.equal(read[name], value) for name, value in state.items())
    older = tmp_path / "older.pth"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(older, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(name, content)
    assert read_regionclip(older).tensors.keys() == state.keys()


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "sprung"),)

    torch.save({"model": {"backbone.conv1.weight": Trap()}}, tmp_path / "r.pth")
    with pytest.raises(BundleError, match=r"holds a Python object \(.*code would have to be run"):
        read_regionclip(tmp_path / "r.pth")
    assert not (tmp_path / "sprung").exists()
