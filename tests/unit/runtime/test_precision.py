"""`--dtype` and `--quantize`: loading, the rule of "auto", errors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.backends import bundle_backend
from regionqa.backends import bundle as bundle_module
from regionqa.bundles.store import Bundle
from regionqa.bundles.weights import main_kind, stored, weight_files
from regionqa.engine import Engine
from regionqa.errors import BundleError, DeviceError, UsageError
from regionqa.language.decoders import LlamaDecoder, TransformersDecoder, quantization
from regionqa.language.generation import LanguageModel
from regionqa.options import Quantize
from regionqa.runtime import devices, precision
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import Dtype, Precision, choose_precision, large_dtype

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
HALVES = ("float16", "bfloat16")


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that computes in bfloat16."""
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: True)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "gpu_has_bfloat16", lambda: False)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every model as large."""
    monkeypatch.setattr(precision, "SMALL", 0)


# -- in a user's words -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_json_has_the_precision(regionqa: "Command", cat: Path, dtype: str) -> None:
    ran = regionqa("ask", cat, "what is this?", "--box", "30,0,405,288", "--dtype", dtype,
                   "--device", "cpu", "--format", "json", "--max-new-tokens", 4)  # fmt: skip
    assert ran.status == 0, ran.err
    [record] = json.loads(ran.out)
    assert record["dtype"] == dtype
    assert record["answer"]


def test_small_model_is_loaded_in_float32(regionqa: "Command", cat: Path) -> None:
    ran = regionqa("caption", cat, "--device", "cpu", "--format", "csv", "--max-new-tokens", 2)
    header, row = ran.lines
    assert dict(zip(header.split(","), row.split(","), strict=True))["dtype"] == "float32"


@pytest.mark.parametrize("way", ["8bit", "4bit"])
def test_quantizing_on_the_cpu_is_refused(regionqa: "Command", cat: Path, way: str) -> None:
    ran = regionqa("ask", cat, "what is this?", "--quantize", way, "--device", "cpu")
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert f"--quantize {way}: runs on CUDA alone" in ran.err and "--dtype bfloat16" in ran.err


def test_unknown_dtype_is_a_usage_error(regionqa: "Command", cat: Path) -> None:
    assert regionqa("ask", cat, "what?", "--dtype", "int4").status == 2
    with pytest.raises(UsageError, match=r"dtype 'half': must be one of auto, float32"):
        Engine.load("starter", device="cpu", dtype="half")
    with pytest.raises(UsageError, match=r"quantize '2bit': must be one of 8bit, 4bit"):
        Engine.load("starter", device="cpu", quantize="2bit")


@pytest.mark.parametrize("dtype", HALVES)
def test_most_answers_are_equal_in_half_precision(photos: Path, engine: Engine, dtype: str) -> None:
    half = Engine.load("starter", device="cpu", dtype=dtype)
    assert str(half.precision) == dtype
    images = sorted(photos.iterdir())
    asked = [(p, q) for p in images for q in ("what is this?", "describe this picture.")]
    same = [half.ask(*each).text == engine.ask(*each).text for each in asked]
    assert sum(same) >= len(same) / 2


# -- what "auto" means -----------------------------------------------------------------------------


def test_auto_is_float32_for_small_models_on_every_device(starter: Bundle) -> None:
    for device in Device:
        assert choose_precision(starter.language_folder, device) == Precision(
            Dtype.float32, None, False
        )


@pytest.mark.parametrize(
    ("kind", "cpu", "cuda"),
    [("F16", "bfloat16", "float16"), ("BF16", "bfloat16", "bfloat16"),
     ("F32", "bfloat16", "bfloat16")],
)  # fmt: skip
def test_auto_is_half_precision_for_large_models(
    bfloat16: None, kind: str, cpu: str, cuda: str
) -> None:
    assert large_dtype(kind, Device.cpu) == cpu
    assert large_dtype(kind, Device.cuda) == cuda


def test_auto_is_float16_without_bfloat16(old_gpu: None) -> None:
    assert {large_dtype(kind, Device.cuda) for kind in ("F32", "F16", "BF16")} == {"float16"}
    assert large_dtype("F16", Device.cpu) == "bfloat16"


def test_large_model_is_bfloat16_on_the_cpu(large: None, starter: Bundle) -> None:
    loaded = Engine.load(starter, device="cpu")
    assert bundle_backend(loaded)._precision == Precision(Dtype.bfloat16)


def test_seven_billion_weights_are_large(bfloat16: None) -> None:
    assert precision.SMALL < 6.7e9


def test_bfloat16_on_a_gpu_without_support(old_gpu: None, starter: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"--dtype bfloat16: this GPU cannot.*use float16"):
        choose_precision(starter.language_folder, Device.cuda, "bfloat16")


@pytest.mark.parametrize("dtype", HALVES)
def test_half_encoders_on_cuda_only(bfloat16: None, starter: Bundle, dtype: str) -> None:
    assert choose_precision(starter.language_folder, Device.cuda, dtype).half_encoders
    assert not choose_precision(starter.language_folder, Device.cpu, dtype).half_encoders
    assert not choose_precision(starter.language_folder, Device.cuda, "float32").half_encoders


def test_precision_is_chosen_again_after_fallback(
    starter: Bundle, monkeypatch: pytest.MonkeyPatch, large: None, bfloat16: None
) -> None:
    """Make CUDA seem usable until the first session is opened."""
    monkeypatch.setattr(bundle_module, "choose_device", lambda asked: Device.cuda)
    opened = devices.open_session

    def open_session(graph: Path, device: Device, *, half: bool) -> Any:
        if device is Device.cuda:
            raise DeviceError("the CUDA provider does not load")
        assert not half
        return opened(graph, device, half=half)

    monkeypatch.setattr("regionqa.runtime.encoders.open_session", open_session)
    loaded = Engine.load(starter, device="auto")
    assert (loaded.device, str(loaded.precision)) == (Device.cpu, "bfloat16")


# -- loading ---------------------------------------------------------------------------------------


def weights_in(decoder: object) -> set[torch.dtype]:
    if isinstance(decoder, LlamaDecoder):
        return {weight.dtype for weight in decoder._weights.values()}
    assert isinstance(decoder, TransformersDecoder)
    return {weight.dtype for weight in decoder._model.parameters()}


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("runtime", [LlamaDecoder.read, TransformersDecoder])
def test_weights_have_the_requested_dtype(
    tiny: Tiny, runtime: Callable[..., object], dtype: str
) -> None:
    kind: torch.dtype = getattr(torch, dtype)
    decoder = runtime(tiny("none").root / "llm", kind, torch.device("cpu"))
    assert weights_in(decoder) == {kind}


def test_sharded_weights_and_old_buffers(tiny: Tiny, tmp_path: Path) -> None:
    whole = load_file(tiny("none").root / "llm" / "model.safetensors")
    whole["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    names = sorted(whole)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: whole[name] for name in part}, tmp_path / file)
    save_file({"stray": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files(tmp_path)] == sorted(halves)
    found = {tensor.name for tensor in stored(tmp_path)}
    assert found == {name for name in whole if "inv_freq" not in name}
    (tmp_path / "config.json").write_bytes((tiny("none").root / "llm/config.json").read_bytes())
    assert LlamaDecoder.read(tmp_path, torch.float32, torch.device("cpu")).hidden_size == 32


def test_stored_dtype_from_headers(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = {tensor.name: tensor for tensor in stored(tmp_path)}
    assert (found["a"].kind, found["a"].shape, found["a"].size) == ("F16", (3, 5), 30)
    assert (found["b"].kind, found["b"].count) == ("F32", 2)
    assert main_kind(found.values()) == "F16"
    assert main_kind([]) == "F32"


def test_unreadable_weights(tiny: Tiny, tmp_path: Path) -> None:
    broken = Bundle(tiny("none").card, tmp_path)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError, match=r"llm: its weights cannot be read: "):
        choose_precision(broken.language_folder, Device.cpu)


# -- fewer bits ------------------------------------------------------------------------------------


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the arguments of `from_pretrained`, as if the extra were installed."""
    asked: list[dict[str, Any]] = []
    import transformers

    real = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(folder: Path, **how: Any) -> Any:
        asked.append(dict(how))
        how.pop("quantization_config", None), how.pop("device_map", None)
        return real(folder, **how)

    stand_in = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(transformers, "AutoModelForCausalLM", stand_in)
    monkeypatch.setattr(precision, "find_spec", lambda name: object())
    return asked


def test_missing_quantize_extra(
    starter: Bundle, bfloat16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs bitsandbytes.*pip install 'regionqa\[quantize\]'"):
        choose_precision(starter.language_folder, Device.cuda, quantize="4bit")


def test_quantize_extra_lists_the_packages() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("quantize = ")]
    assert all(f'"{package}' in line for package in precision.EXTRA)


@pytest.mark.parametrize(("way", "dtype"), [("8bit", "float16"), ("4bit", "bfloat16")])
def test_quantized_model_is_loaded_on_the_device(
    tiny: Tiny, bitsandbytes: list[dict[str, Any]], way: str, dtype: str
) -> None:
    """Including a LLaMA, which `LlamaDecoder` runs otherwise."""
    how = Precision(Dtype(dtype), Quantize(way))
    model = LanguageModel(tiny("none"), Device.cpu, how)
    assert isinstance(model._decoder, TransformersDecoder)
    [asked] = bitsandbytes
    assert asked["device_map"] == {"": torch.device("cpu")}
    assert asked["dtype"] == getattr(torch, dtype)
    assert asked["quantization_config"].quantization_method() == {
        "8bit": "llm_int8", "4bit": "nf4"
    }[way]  # fmt: skip


def test_weights_on_the_cpu_need_no_accelerate(
    tiny: Tiny, bitsandbytes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regionqa.language.decoders.find_spec", lambda name: object())
    TransformersDecoder(tiny("none").root / "llm", torch.float32, torch.device("cpu"))
    assert "device_map" not in bitsandbytes[0]


def test_four_bit_config() -> None:
    settings = quantization("4bit", torch.bfloat16)
    assert settings.bnb_4bit_quant_type == "nf4" and settings.bnb_4bit_use_double_quant
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization("8bit", torch.float16).load_in_8bit


def test_auto_with_quantize_is_half_precision(
    starter: Bundle, bfloat16: None, bitsandbytes: list[dict[str, Any]]
) -> None:
    chosen = choose_precision(starter.language_folder, Device.cuda, quantize="4bit")
    kind = main_kind(stored(starter.root / "llm"))
    assert str(chosen) == f"4bit+{'float16' if kind == 'F16' else 'bfloat16'}"
    assert chosen.half_encoders


def test_dtype_equals_the_option_choices() -> None:
    from regionqa.options import DtypeChoice

    assert [str(kind) for kind in DtypeChoice] == ["auto", *map(str, Dtype)]
    assert "bitsandbytes" not in sys.modules
