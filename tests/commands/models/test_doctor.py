"""`regionqa doctor`: versions, devices, models."""

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import onnxruntime
import pytest
import torch

from regionqa.backends import diagnostics as doctor
from regionqa.backends.diagnostics import Finding, diagnose
from regionqa.bundles.store import Bundle
from regionqa.errors import DeviceError
from regionqa.runtime.devices import PROVIDERS, Device
from regionqa.runtime.encoders import EncodedImage, Floats, VisionEncoder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache; the user's may be large."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def copy(tmp_path: Path, starter: Bundle) -> Path:
    return shutil.copytree(starter.root, tmp_path / "copy")


def found(findings: list[Finding], topic: str) -> Finding:
    [finding] = [finding for finding in findings if finding.topic == topic]
    return finding


def versions_of(**installed: str) -> Callable[[str], str]:
    """`metadata.version` as if only these packages were installed."""

    def version(package: str) -> str:
        name = package.replace("-", "_")
        if name not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[name]

    return version


# -- the report ------------------------------------------------------------------------------------


def test_machine_without_a_gpu(no_gpu: None, starter: Bundle) -> None:
    findings = diagnose()
    assert all(finding.good for finding in findings)
    assert found(findings, "torch").text == metadata.version("torch")
    assert found(findings, "regionqa").text == metadata.version("regionqa")
    assert found(findings, "cpu").text == "CPUExecutionProvider loads and runs"
    assert found(findings, "gpu").text == "none that torch can use"
    assert found(findings, "--device auto").text == "means cpu here"
    assert found(findings, "--dtype auto").text == "means float32 for starter on cpu"
    megabytes = f"{starter.size / 1e6:.1f} MB"
    assert found(findings, "model starter").text == f"sound, {megabytes} at {starter.root}"


def test_reasons_against_cuda(no_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    finding = found(doctor.devices("starter"), "cuda")
    assert finding.text.startswith("not used: torch finds no usable NVIDIA GPU")
    assert finding.good, "a machine without a GPU is no fault"


# -- versions --------------------------------------------------------------------------------------


def test_missing_packages_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", versions_of(torch="2.9.1", onnxruntime="1.24.0"))
    assert doctor.versions() == [Finding("torch", "2.9.1"), Finding("onnxruntime", "1.24.0")]


def test_both_onnx_runtimes_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    both = versions_of(onnxruntime="1.24.0", onnxruntime_gpu="1.24.1")
    monkeypatch.setattr(metadata, "version", both)
    findings = doctor.versions()
    assert [finding.good for finding in findings] == [True, True, False]
    assert "overwrite each other; uninstall both, then install one" in findings[-1].text


# -- devices ---------------------------------------------------------------------------------------


@pytest.fixture
def promising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch and ONNX Runtime report CUDA as usable."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))


class FailsOnCuda(VisionEncoder):
    """An encoder that opens everywhere, and fails when it runs on CUDA."""

    error: Exception

    def __init__(self, bundle: Bundle, device: Device) -> None:
        super().__init__(bundle, Device.cpu)
        self._device = device

    def encode(self, pixel_values: Floats) -> list[EncodedImage]:
        if self._device is Device.cuda:
            raise self.error
        return super().encode(pixel_values)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DeviceError("the CUDA provider does not load"), "the CUDA provider does not load"),
        (RuntimeError("CUDNN failure 9:\n  no kernel image"), "CUDNN failure 9: no kernel image"),
    ],
)
def test_cuda_counts_only_if_a_graph_ran(
    promising: None, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(FailsOnCuda, "error", error, raising=False)
    monkeypatch.setattr(doctor, "VisionEncoder", FailsOnCuda)
    findings = doctor.devices("starter")
    assert found(findings, "cuda").text == f"not used: {reason}"
    assert found(findings, "cpu").text == "CPUExecutionProvider loads and runs"
    assert found(findings, "--device auto").text == "means cpu here"


def test_auto_chooses_working_cuda(promising: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "VisionEncoder", lambda bundle, device: VisionEncoder(bundle, Device.cpu)
    )
    findings = doctor.devices("starter")
    assert found(findings, "cuda").text == "CUDAExecutionProvider loads and runs"
    assert found(findings, "--device auto").text == "means cuda here"


def test_gpus_are_listed_with_memory(promising: None, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [SimpleNamespace(name="NVIDIA H200", total_memory=140 * 2**30)] * 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    assert doctor.gpu() == "NVIDIA H200 (140 GiB), NVIDIA H200 (140 GiB)"


# -- models ----------------------------------------------------------------------------------------


def test_changed_file_is_named(copy: Path, no_gpu: None) -> None:
    content = bytearray((copy / "llm/model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "llm/model.safetensors").write_bytes(content)
    finding = found(diagnose(str(copy)), f"model {copy}")
    assert not finding.good
    assert finding.text.startswith(f"{copy}: differs from its card in llm/model.safetensors")
    assert found(diagnose(str(copy)), "model starter").good, "shipped models are checked as well"


def test_graph_that_does_not_load(copy: Path, no_gpu: None) -> None:
    size = (copy / "vision.onnx").stat().st_size
    (copy / "vision.onnx").write_bytes(b"\0" * size)
    findings = diagnose(str(copy))
    assert not found(findings, "cpu").good
    assert f"{copy / 'vision.onnx'}: ONNX Runtime cannot load it" in found(findings, "cpu").text
    assert not found(findings, f"model {copy}").good


def test_incomplete_model(copy: Path, no_gpu: None) -> None:
    (copy / "region.onnx").unlink()
    finding = doctor.check_model(str(copy))
    assert not finding.good
    assert "region.onnx: missing from the model" in finding.text


def test_unknown_model(no_gpu: None) -> None:
    findings = diagnose("no-such-model")
    assert not found(findings, "model no-such-model").good
    assert "shipped are: " in found(findings, "model no-such-model").text
    assert found(findings, "cpu").good  # the model is at fault, not the machine


# -- the Hub's cache -------------------------------------------------------------------------------


def test_empty_hub_cache(cache: Path) -> None:
    assert doctor.hub_cache_finding() == f"{cache} (nothing there yet)"


def test_hub_cache_size_without_links(cache: Path) -> None:
    model = cache / "models--somebody--model"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "blobs" / "0123").write_bytes(b"\0" * 40_000_000)
    (model / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/0123")
    (model / "snapshots" / "abc" / "gone").symlink_to("../../blobs/gone")
    assert doctor.hub_cache_finding() == f"{cache} (0.04 GB)"
