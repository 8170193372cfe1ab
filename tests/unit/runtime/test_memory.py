"""Estimates of the memory a model needs; benchmarks/memory.py compares them with a process."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.tiny_models import tiny_card, tiny_vision
from regionqa.bundles.store import Bundle, published_cards
from regionqa.errors import BundleError
from regionqa.export.bundle import read_encoders, write_bundle
from regionqa.options import Quantize
from regionqa.runtime.devices import Device, open_session
from regionqa.runtime.graph_sizes import graph_sizes
from regionqa.runtime.memory import (
    MemoryEstimate,
    MemoryNeeds,
    advice,
    estimate,
    machine_memory,
    memory_estimates,
    needs_of,
    needs_of_published,
    setting_text,
)
from regionqa.runtime.precision import Dtype, Precision

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
VOCABULARY, WIDTH, LAYERS = 160, 96, 7


@pytest.fixture(scope="module")
def larger(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Tiny encoders and a LLaMA with a head of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=LAYERS,
        num_attention_heads=12, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    card = tiny_card("none")
    card["language"]["context"] = 512
    small = tiny("none")
    vision = tiny_vision(())
    vision.projector = torch.nn.Linear(16, WIDTH)
    bundle, _ = write_bundle(
        tmp_path_factory.mktemp("larger") / "bundle", card, vision, None,
        LlamaForCausalLM(config), small.root / "llm" / "tokenizer.json",
    )  # fmt: skip
    return bundle


# -- true ------------------------------------------------------------------------------------------


def test_weights_are_counted_from_headers(larger: Bundle) -> None:
    needs = needs_of(larger)
    config = LlamaConfig.from_pretrained(larger.root / "llm")
    with torch.device("meta"):
        whole = LlamaForCausalLM(config)
    assert needs.matrices + needs.others == sum(p.numel() for p in whole.parameters())
    head = 2 * VOCABULARY * WIDTH
    assert needs.others == head + (2 * LAYERS + 1) * WIDTH
    language = {
        str(each.precision): each.language
        for each in memory_estimates(needs) if each.device is Device.cuda
    }  # fmt: skip
    assert language["float32"] == 4 * (needs.matrices + needs.others)
    assert language["float16"] == 2 * (needs.matrices + needs.others)
    assert language["8bit+float16"] == needs.matrices + 2 * needs.others
    assert 0.5 < (language["4bit+float16"] - 2 * needs.others) / needs.matrices < 0.53


@pytest.mark.parametrize("row", ["levels", "pixels"])
def test_encoders_are_counted_from_their_graphs(tiny: Tiny, row: str) -> None:
    bundle = tiny(row)
    vision, region = read_encoders(bundle)
    assert region is not None
    for module, name in ((vision, "vision.onnx"), (region, "region.onnx")):
        own = sum(parameter.numel() for parameter in module.parameters())
        sizes = graph_sizes(bundle.file(name))
        assert own <= sizes.weights <= 1.2 * own + 10_000, "batch norm's buffers, grids, constants"
    stem = 8 * (64 // 4) ** 2
    assert stem < graph_sizes(bundle.file("vision.onnx")).values < 64 * 64 * 3 * 20


def test_cache_of_grouped_query_attention() -> None:
    text = replace(needs_of_published(published_cards()["gpt4roi-7b"]).text, key_width=1024)
    assert cache_of(text) == 2 * 2 * 32 * 1024 * 2048


def cache_of(text: Any) -> int:
    needs = replace(needs_of_published(published_cards()["gpt4roi-7b"]), text=text)
    return estimate(needs, Device.cuda, Precision(Dtype.float16, None, True)).cache


# -- before it is downloaded -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt4roi-7b", "pvit-7b"])
def test_published_model_is_estimated_from_its_card(name: str) -> None:
    """LLaMA-7B has 6.74 billion weights in 32 layers of 4096, by the paper."""
    needs = needs_of_published(published_cards()[name])
    assert needs.matrices + needs.others == pytest.approx(6.74e9, rel=0.01)
    assert (needs.text.layers, needs.text.key_width) == (32, 4096)
    by_setting = {setting_text(each): each for each in memory_estimates(needs)}
    half = by_setting["--device cuda --dtype float16"]
    assert 13e9 < half.language < 14e9
    assert half.cache == pytest.approx(2048 * 0.524e6, rel=0.01)
    assert by_setting["--device cuda --quantize 4bit"].total < 10e9


def test_card_without_sources(starter: Bundle) -> None:
    with pytest.raises(BundleError, match="so its sizes are unknown"):
        needs_of_published(starter.card)


def test_doctor_estimates_a_model_before_its_download(
    regionqa: "Command", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "regionqa.backends.diagnostics.published_folder", lambda name: tmp_path / name
    )
    ran = regionqa("doctor", "--model", "pvit-7b")
    assert "not downloaded yet; run: regionqa download pvit-7b" in ran.out
    assert "memory for pvit-7b, by its card, before it is downloaded:" in ran.out
    [four] = [line for line in ran.lines if "--quantize 4bit" in line]
    assert "GB" in four


def test_doctor_estimates_a_model(regionqa: "Command") -> None:
    ran = regionqa("doctor")
    assert ran.status == 0, ran.out
    assert "memory for starter:" in ran.out
    assert ran.lines[-1].strip() in (
        "recommended: --device cpu --dtype float32", "recommended: --device cuda --dtype float32"
    )  # fmt: skip


def test_doctor_without_estimate(regionqa: "Command", tmp_path: Path) -> None:
    ran = regionqa("doctor", "--model", tmp_path)
    assert f"memory for {tmp_path}: not known: " in ran.out
    assert ran.status == 1


# -- what fits -------------------------------------------------------------------------------------

GB = 10**9


def advised(cpu: int | None, cuda: int | None, needs: MemoryNeeds | None = None) -> str:
    needs = needs or needs_of_published(published_cards()["gpt4roi-7b"])
    here = {Device.cpu: cpu and cpu * GB, Device.cuda: cuda and cuda * GB}
    return advice(needs, memory_estimates(needs), here)


@pytest.mark.parametrize(
    ("cpu", "cuda", "taken"),
    [
        (128, 80, "--device cuda --dtype float16"),
        (32, 16, "--device cuda --quantize 8bit"),
        (32, 10, "--device cuda --quantize 4bit"),
        (32, 6, "--device cpu --dtype bfloat16"),
        (64, None, "--device cpu --dtype bfloat16"),
        (None, 24, "--device cuda --dtype float16"),
    ],
)
def test_most_precise_fitting_setting_is_recommended(
    cpu: int | None, cuda: int | None, taken: str
) -> None:
    assert advised(cpu, cuda) == f"recommended: {taken}"


def test_no_setting_fits() -> None:
    assert advised(8, 4).startswith("no setting fits")


def test_float32_is_recommended_for_small_models(larger: Bundle) -> None:
    assert advised(16, 8, needs_of(larger)) == "recommended: --device cuda --dtype float32"


def test_settings_are_valid_options() -> None:
    each = MemoryEstimate(Device.cuda, Precision(Dtype.float16, Quantize.four, True), 0, 0, 0, 0)
    assert setting_text(each) == "--device cuda --quantize 4bit"


def test_cgroup_memory_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine_memory()
    assert whole is not None and whole > GB
    monkeypatch.setattr(Path, "read_text", lambda path, **_: str(GB))
    assert machine_memory() == GB
    monkeypatch.setattr(Path, "read_text", lambda path, **_: "max")
    assert (machine_memory() or 0) >= whole


def test_loading_large_encoders_may_be_the_peak(starter: Bundle) -> None:
    needs = needs_of(starter)
    large = replace(needs, encoders=replace(needs.encoders, weights=GB))
    each = estimate(large, Device.cpu, Precision())
    parts = each.language + each.encoders + each.cache + each.work
    assert each.total > parts > 4 * GB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_freed_memory_is_returned(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/memory.py measures what it is worth."""
    calls: list[int] = []
    library = SimpleNamespace(malloc_trim=calls.append)
    monkeypatch.setattr("ctypes.CDLL", {"libc.so.6": library}.__getitem__)
    open_session(tiny("levels").file("vision.onnx"), Device.cpu)
    assert calls == [0]
