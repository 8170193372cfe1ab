"""Adding a delta to its base: the sums, what is refused, and going on after a kill."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.golden_checkpoints import GPT4ROI_CONFIG, write_base, write_delta
from helpers.golden_weights import ClipSizes, LlamaSizes, gpt4roi_maker, gpt4roi_shapes
from regionqa.errors import BundleError
from regionqa.export.sources import delta as module
from regionqa.export.sources.delta import (
    ConversionLog,
    MergePlan,
    add,
    check_base,
    fingerprint,
    make_plan,
    read_encoder_weights,
    stream,
)
from regionqa.export.sources.shards import Shards, TensorEntry, write_safetensors

LLAMA = LlamaSizes(hidden=16, inner=24, layers=2, heads=2)
SHAPES = gpt4roi_shapes(LLAMA, ClipSizes(width=8), width=8, roi=2)
PARTS = {"model.mm_projector.": "vision.projector.", "model.spi_module.": "region."}
MAKE = gpt4roi_maker("a test")
EMBEDDINGS = "model.embed_tokens.weight"
SHARD = 600_000
Change = Callable[[Path], None]


def write(root: Path, *, safetensors: bool = False, dtype: torch.dtype = torch.float16) -> Path:
    """Folders `delta` and `base` of a tiny model, both in several shards."""
    form: Any = {"safetensors": safetensors, "dtype": dtype, "shard_bytes": SHARD}
    write_delta(root / "delta", LLAMA, SHAPES, MAKE, GPT4ROI_CONFIG, **form)
    write_base(root / "base", LLAMA, MAKE, **form)
    return root


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Delta and base as `.bin`, not to be changed."""
    return write(tmp_path_factory.mktemp("both"))


@pytest.fixture
def changed(both: Path, tmp_path: Path) -> Path:
    """A copy of them, to be changed."""
    return shutil.copytree(both, tmp_path / "changed")


def converted(
    root: Path,
    out: Path,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Tensor]:
    """Read the written sums."""
    delta, base = Shards(root / "delta"), Shards(root / "base")
    plan = make_plan(delta, base, PARTS, dtype)
    check_base(delta, base, plan)
    out.mkdir(exist_ok=True)
    journal = ConversionLog.open(out / "journal.json", fingerprint(delta, base, dtype=dtype))
    stream(delta, base, plan, out / "llm", journal, progress)
    index = json.loads((out / "llm" / "model.safetensors.index.json").read_text())
    found: dict[str, Tensor] = {}
    for name in set(index["weight_map"].values()):
        tensors = load_file(out / "llm" / name)
        assert {index["weight_map"][key] for key in tensors} == {name}
        found |= tensors
    return found


def read_all(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint in several .bin files."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.bin"):
        found |= torch.load(path, weights_only=True)
    return found


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change a checkpoint's tensors; it is written again in one file."""
    tensors = read_all(folder)
    change(tensors)
    for path in (*folder.glob("*.bin"), *folder.glob("*.index.json")):
        path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


# -- the sums --------------------------------------------------------------------------------------


def test_sums_in_float16_and_added_rows(both: Path, tmp_path: Path) -> None:
    delta, base = read_all(both / "delta"), read_all(both / "base")
    found = converted(both, tmp_path)
    llama = {name for name in base if not name.endswith("inv_freq")}
    assert set(found) == llama
    for name, value in found.items():
        rows = len(base[name])
        assert value.dtype == torch.float16
        assert torch.equal(value[:rows], delta[name][:rows] + base[name])
        assert torch.equal(value[rows:], delta[name][rows:])
    assert len(found[EMBEDDINGS]) == len(base[EMBEDDINGS]) + 6
    target = torch.from_numpy(MAKE(EMBEDDINGS, SHAPES[EMBEDDINGS]))
    assert (found[EMBEDDINGS].float() - target).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_in_another_type_are_rounded(both: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    published = converted(both, tmp_path / "one")
    other = converted(both, tmp_path / "other", dtype)
    assert all(torch.equal(other[name], value.to(dtype)) for name, value in published.items())
    assert all(value.dtype == dtype for value in other.values())


def test_safetensors_and_bin_give_the_same(both: Path, tmp_path: Path) -> None:
    write(tmp_path, safetensors=True)
    one, other = converted(both, tmp_path / "one"), converted(tmp_path, tmp_path / "other")
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_encoder_weights_come_from_the_delta(both: Path) -> None:
    delta = Shards(both / "delta")
    plan = make_plan(delta, Shards(both / "base"), PARTS, None)
    assert set(plan.parts.values()) == {
        name.replace("model.spi_module.", "region.").replace("model.mm_", "vision.")
        for name in SHAPES
        if "spi_module" in name or "mm_projector" in name
    }
    vision = read_encoder_weights(delta, plan, "vision.")
    assert set(vision) == {"projector.weight", "projector.bias"}
    whole = read_all(both / "delta")["model.mm_projector.weight"]
    assert torch.equal(vision["projector.weight"], whole.float())


def test_sums_use_the_wider_type() -> None:
    half, full = torch.full((3, 2), 1.0, dtype=torch.float16), torch.full((2, 2), 1e-4)
    total = add(half, full)
    assert total.dtype == torch.float32
    assert total.tolist() == (torch.tensor([[1 + 1e-4] * 2] * 2 + [[1.0] * 2])).tolist()
    assert half.eq(1).all()


def test_output_is_valid_safetensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7, dtype=torch.int64),
               "c": torch.randn(2, 2).bfloat16().T}  # fmt: skip
    entries = {name: TensorEntry(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", entries, tensors.items())
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


# -- what is refused -------------------------------------------------------------------------------


def lose_shard(root: Path) -> None:
    next((root / "base").glob("pytorch_model-00002-of-*.bin")).unlink()


def cut_short(root: Path) -> None:
    (path,) = (root / "delta").glob("pytorch_model-00001-of-*.bin")
    path.write_bytes(path.read_bytes()[:-5000])


def lose_tensor(root: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    rewrite(root / "delta", change)


def unknown_key(root: Path) -> None:
    rewrite(root / "delta", lambda tensors: tensors.update({"model.adapter.weight": torch.ones(2)}))


def other_width(root: Path) -> None:
    wide = LlamaSizes(hidden=32, inner=24, layers=2, heads=2)
    write_base(root / "base", wide, MAKE, shard_bytes=SHARD)


def more_rows(root: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[EMBEDDINGS] = torch.cat([tensors[EMBEDDINGS]] * 2)

    rewrite(root / "base", change)


def deeper_base(root: Path) -> None:
    deep = LlamaSizes(hidden=16, inner=24, layers=3, heads=2)
    write_base(root / "base", deep, MAKE, shard_bytes=SHARD)


def wrong_base(root: Path) -> None:
    write_base(root / "base", LLAMA, gpt4roi_maker("another"), shard_bytes=SHARD)


def whole_weights(root: Path) -> None:
    target = {name: torch.from_numpy(MAKE(name, shape)) for name, shape in SHAPES.items()}
    rows = len(read_all(root / "base")[EMBEDDINGS])

    def change(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: target[name][:rows] * 1.01 for name in tensors if name in target})

    rewrite(root / "delta", lambda tensors: tensors.update(target))
    rewrite(root / "base", change)


def not_finite(root: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"][3] = torch.inf

    rewrite(root / "base", change)


def another_pickle(root: Path) -> None:
    for path in (*(root / "base").glob("*.bin"), *(root / "base").glob("*.index.json")):
        path.unlink()
    torch.save(["no", "tensors"], root / "base" / "pytorch_model.bin")


def no_weights(root: Path) -> None:
    shutil.rmtree(root / "delta")
    (root / "delta").mkdir()


REFUSED: dict[Change, str] = {
    lose_shard: r"the shard pytorch_model-00002-of-\d+\.bin is missing, which .* lists",
    cut_short: r"pytorch_model-00001-of-\d+\.bin: cannot be read, is it cut short\?",
    lose_tensor: r"model\.layers\.1\.mlp\.up_proj\.weight is missing, which the base",
    deeper_base: r"model\.layers\.2\.self_attn\.q_proj\.weight is missing, which the base",
    unknown_key: r"model\.adapter\.weight is unknown",
    other_width: r"model\.embed_tokens\.weight is \[32000, 32\], the delta has \[32006, 16\]",
    more_rows: r"model\.embed_tokens\.weight is \[64000, 16\], the delta has \[32006, 16\]",
    wrong_base: r"is the wrong base: the sums do not fit; .* was not taken from it",
    whole_weights: r"the sums do not fit; .* holds whole weights, no differences",
    not_finite: r"model\.norm\.weight added to .* is not finite",
    another_pickle: r"pytorch_model\.bin: holds a list, not names and tensors",
    no_weights: "has no weights in transformers' format",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_mismatches_are_one_line_errors(changed: Path, tmp_path: Path, change: Change) -> None:
    change(changed)
    with pytest.raises(BundleError, match=REFUSED[change]) as caught:
        converted(changed, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(changed) in str(caught.value)


def test_right_base_is_accepted(changed: Path, tmp_path: Path) -> None:
    def shrink(tensors: dict[str, Tensor]) -> None:
        for value in tensors.values():
            value *= 0.1  # a model that has not gone far from its base

    rewrite(changed / "delta", shrink)
    converted(changed, tmp_path / "out")


def test_disk_space_is_checked_first(
    both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    with pytest.raises(BundleError, match=r"the disk is too small: 2\.\d MB are needed, 2\.0 MB"):
        converted(both, tmp_path / "out")


# -- going on --------------------------------------------------------------------------------------


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 5000)


def killed_halfway(root: Path, out: Path) -> list[Path]:
    """Number of shards on disk after a run was interrupted in the middle of one."""

    def kill(done: int, total: int) -> None:
        if done > total * 0.98:
            raise KilledError

    with pytest.raises(KilledError):
        converted(root, out, progress=kill)
    return sorted((out / "llm").glob("*.safetensors"))


@pytest.mark.usefixtures("small_shards")
def test_killed_run_resumes_with_finished_shards(both: Path, tmp_path: Path) -> None:
    finished = killed_halfway(both, tmp_path / "out")
    assert len(finished) > 2
    assert list((tmp_path / "out" / "llm").glob("*.part"))
    times = {path: path.stat().st_mtime_ns for path in finished}
    damaged = finished[1]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    lost = finished[2]
    lost.unlink()
    again = converted(both, tmp_path / "out")
    whole = converted(both, tmp_path / "whole")
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    rewritten = {path for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert rewritten == {damaged, lost}
    assert not list((tmp_path / "out" / "llm").glob("*.part"))


@pytest.mark.usefixtures("small_shards")
def test_changed_inputs_start_a_new_run(both: Path, tmp_path: Path) -> None:
    finished = killed_halfway(both, tmp_path / "out")
    other = converted(both, tmp_path / "out", torch.bfloat16)
    assert {value.dtype for value in other.values()} == {torch.bfloat16}
    assert finished


@pytest.mark.usefixtures("small_shards")
def test_damaged_journal_is_ignored(both: Path, tmp_path: Path) -> None:
    killed_halfway(both, tmp_path / "out")
    (tmp_path / "out" / "journal.json").write_text('{"inputs": ')
    again, whole = converted(both, tmp_path / "out"), converted(both, tmp_path / "whole")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_progress_reaches_the_total(both: Path, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    found = converted(both, tmp_path / "out", progress=lambda *both: reported.append(both))
    total = sum(value.nbytes for value in found.values())
    assert reported[0] == (0, total)
    assert reported[-1] == (total, total)
    assert reported == sorted(reported)


def test_large_tensors_have_their_own_shard() -> None:
    entries = {
        name: TensorEntry((size,), torch.float16)
        for name, size in zip("abcd", (9, 60, 9, 9), strict=True)
    }
    groups = MergePlan(entries, {}).shards(limit=50)
    assert [list(group) for group in groups] == [["a"], ["b"], ["c", "d"]]


def test_single_safetensors_checkpoint(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert Shards(tmp_path).entries == {"a": TensorEntry((2,), torch.float32)}
