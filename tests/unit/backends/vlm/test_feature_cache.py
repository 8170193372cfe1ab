"""Encoded images on disk: what is kept, what is removed, and what is read back."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from regionqa.backends.vlm.feature_cache import CachedTower, FeatureCache, pack, unpack
from regionqa.errors import UsageError


class CountingTower:
    """Returns features that depend on the pixels, and counts the calls."""

    def __init__(self, runtime: str = "torch") -> None:
        self.runtime, self.calls = runtime, 0

    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        self.calls += 1
        return features(inputs["pixel_values"])


def features(pixels: Tensor) -> Any:
    output = BaseModelOutputWithPooling()
    output["pooler_output"] = torch.split(pixels, [2, len(pixels) - 2])
    output["deepstack_features"] = [[pixels + layer] for layer in range(2)]
    return output


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    return len(left) == len(right) and all(map(same, left, right))


def pixels(seed: int, rows: int = 4) -> dict[str, Tensor]:
    return {"pixel_values": torch.full((rows, 8), float(seed)), "grid": torch.tensor([[1, 2, 2]])}


def cached(folder: Path, tower: Any, *identity: str, limit: int = 10**9) -> CachedTower:
    cache = FeatureCache(folder, limit)
    return CachedTower(tower, cache, identity, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_are_read_back_as_they_were(dtype: torch.dtype) -> None:
    written = features(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).to(dtype))
    read = unpack(pack(written))
    assert set(read) == set(written)
    assert all(same(written[name], read[name]) for name in written)


@pytest.mark.parametrize("place", [0, 40, -1])
def test_damaged_features_are_not_read(place: int) -> None:
    content = bytearray(pack(features(torch.ones(4, 8))))
    content[place] ^= 64
    with pytest.raises((ValueError, KeyError, SafetensorError)):
        unpack(bytes(content))


def test_equal_inputs_are_encoded_once(tmp_path: Path) -> None:
    tower = CountingTower()
    first = cached(tmp_path, tower, "weights")
    answers = [first.encode(pixels(seed)) for seed in (1, 2, 1)]
    assert tower.calls == 2
    assert same(answers[0]["pooler_output"], answers[2]["pooler_output"])
    assert not same(answers[0]["pooler_output"], answers[1]["pooler_output"])
    again = cached(tmp_path, tower, "weights")
    again.encode(pixels(2))
    assert tower.calls == 2
    assert again.cache.take_notes() == [f"{tmp_path}: encoded images: 1 from the cache, 0 new"]
    assert again.cache.take_notes() == []


def test_what_changes_features_changes_the_entry(tmp_path: Path) -> None:
    inputs = pixels(1)
    variants = [
        (CountingTower(), ("weights",), inputs),
        (CountingTower(), ("other weights",), inputs),
        (CountingTower("onnx cpu"), ("weights",), inputs),
        (CountingTower(), ("weights",), {**inputs, "grid": torch.tensor([[1, 1, 4]])}),
        (CountingTower(), ("weights",), {**inputs, "pixel_values": torch.full((8, 4), 1.0)}),
        (CountingTower(), ("weights",), {"pixel_values": inputs["pixel_values"]}),
    ]
    for tower, identity, given in variants:
        cached(tmp_path, tower, *identity).encode(given)
        assert tower.calls == 1
    assert len(list(tmp_path.iterdir())) == len(variants)


def test_the_entries_unused_for_longest_are_removed(tmp_path: Path) -> None:
    tower = CountingTower()
    size = len(pack(features(pixels(0)["pixel_values"])))
    first = cached(tmp_path, tower, limit=3 * size)
    for seed in range(3):
        first.encode(pixels(seed))
    for place, path in enumerate(sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)):
        os.utime(path, (place, place))
    first.encode(pixels(0))  # used again, so the second entry is the oldest
    first.encode(pixels(3))
    assert "1 older ones were removed" in first.cache.take_notes()[0]
    calls = tower.calls
    for seed in (0, 2, 3):
        first.encode(pixels(seed))
    assert tower.calls == calls
    first.encode(pixels(1))
    assert tower.calls == calls + 1
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * size


def test_only_entries_are_removed(tmp_path: Path) -> None:
    (tmp_path / "holiday.safetensors").write_bytes(b"precious" * 1000)
    tower = CountingTower()
    size = len(pack(features(pixels(0)["pixel_values"])))
    small = cached(tmp_path, tower, limit=size)
    for seed in range(3):
        small.encode(pixels(seed))
    assert (tmp_path / "holiday.safetensors").read_bytes() == b"precious" * 1000
    assert len(list(tmp_path.iterdir())) == 2


def test_an_image_above_the_limit_is_not_kept_and_that_is_said_once(tmp_path: Path) -> None:
    tower = CountingTower()
    small = cached(tmp_path, tower, limit=100)
    for seed in range(2):
        small.encode(pixels(seed))
    remarks = [line for line in small.cache.take_notes() if "more than --cache-size" in line]
    assert len(remarks) == 1 and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    tower = CountingTower()
    folder = tmp_path / "kept"
    full = cached(folder, tower)
    folder.rmdir()  # as if it were on a disk that has gone
    folder.write_text("")
    for seed in range(2):
        full.encode(pixels(seed))
    assert tower.calls == 2
    assert len([line for line in full.cache.take_notes() if "nothing more is kept" in line]) == 1


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".regionqa-0123", tmp_path / ".regionqa-4567"
    for path in (old, new):
        path.write_bytes(b"half an entry")
    os.utime(old, (0, 0))
    FeatureCache(tmp_path, 10**9)
    assert not old.exists() and new.exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used as a folder"):
        FeatureCache(tmp_path / "file", 10**9)
