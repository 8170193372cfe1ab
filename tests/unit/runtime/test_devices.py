"""Devices: choice, errors, and no silent fallback."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import pytest
import torch

from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import BundleError, DeviceError, UsageError
from regionqa.images.reading import open_image
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.runtime.devices import (
    PROVIDERS,
    Device,
    allowed_threads,
    choose_device,
    open_session,
    why_not_cuda,
)

CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch and ONNX Runtime report CUDA as usable."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])


class FakeSession:
    """A session that runs on the given providers."""

    working: Sequence[str] = (CPU,)
    asked: Sequence[str] = ()

    def __init__(
        self, path: str, options: object, providers: Sequence[str], settings: Sequence[object]
    ) -> None:
        assert len(settings) == len(providers)
        FakeSession.asked = providers
        self._providers = [name for name in providers if name in self.working]

    def get_providers(self) -> list[str]:
        return self._providers


@pytest.fixture
def fake_session(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeSession)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(FakeSession, "working", (CPU,))
    return FakeSession


# -- choosing --------------------------------------------------------------------------------------


def test_cpu_is_chosen_even_with_a_gpu(gpu: None) -> None:
    assert choose_device("cpu") is Device.cpu


def test_auto_chooses_a_gpu(gpu: None) -> None:
    assert why_not_cuda() is None
    assert choose_device("auto") is Device.cuda
    assert choose_device("cuda") is Device.cuda


@pytest.mark.parametrize("name", ["gpu", "cuda:0", "CPU", "", "mps"])
def test_unknown_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=f"device '{name}': must be auto, cpu or cuda"):
        choose_device(name)


def without_cuda_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)


def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])


@pytest.mark.parametrize(
    ("without", "reason"),
    [
        (without_cuda_in_torch, "this torch is built without CUDA; install a CUDA build of torch"),
        (without_a_gpu, "torch finds no usable NVIDIA GPU"),
        (without_the_provider, r"has no CUDA provider; install onnxruntime-gpu\[cuda,cudnn\]"),
    ],
)
def test_unusable_cuda(
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[[pytest.MonkeyPatch], None],
    reason: str,
) -> None:
    without(monkeypatch)
    with pytest.raises(DeviceError, match=f"--device cuda: .*{reason}.*or use --device cpu"):
        choose_device("cuda")
    assert choose_device("auto") is Device.cpu


def test_engine_on_cuda_without_a_gpu(starter: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    without_a_gpu(monkeypatch)
    with pytest.raises(DeviceError, match="CUDA cannot be used"):
        Engine.load(starter, device="cuda")
    assert Engine.load(starter, device="auto").device is Device.cpu


# -- sessions --------------------------------------------------------------------------------------


def test_session_on_the_cpu(starter: Bundle) -> None:
    session = open_session(starter.file("vision.onnx"), Device.cpu)
    assert session.get_providers() == [CPU]


def test_session_that_falls_back_to_cpu_is_refused(
    fake_session: type[FakeSession],
) -> None:
    with pytest.raises(DeviceError) as caught:
        open_session(Path("models/vision.onnx"), Device.cuda)
    assert str(caught.value).startswith("vision.onnx: ONNX Runtime's CUDA provider does not load")
    assert "onnxruntime-gpu[cuda,cudnn]" in str(caught.value)
    assert "regionqa doctor" in str(caught.value)


def test_session_on_cuda(fake_session: type[FakeSession], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_session, "working", (CUDA, CPU))
    assert open_session(Path("vision.onnx"), Device.cuda).get_providers()[0] == CUDA
    assert fake_session.asked == [CUDA, CPU]
    assert open_session(Path("vision.onnx"), Device.cpu).get_providers() == [CPU]
    assert fake_session.asked == [CPU], "the CPU was asked for, so nothing else is tried"


def test_onnx_runtime_prints_to_stderr(
    fake_session: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fake_session, "working", (CUDA, CPU))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load x"))  # noqa: T201
    open_session(Path("vision.onnx"), Device.cuda)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Failed to load x" in captured.err


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x07" * 50])
def test_invalid_graph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vision.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        open_session(path, Device.cpu)
    assert str(caught.value).startswith(f"{path}: ONNX Runtime cannot load it: ")
    assert "\n" not in str(caught.value)


def test_truncated_graph(tmp_path: Path, starter: Bundle) -> None:
    path = tmp_path / "vision.onnx"
    path.write_bytes(starter.file("vision.onnx").read_bytes()[:-100_000])
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        open_session(path, Device.cpu)


def test_missing_graph(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.onnx: ONNX Runtime cannot load it"):
        open_session(tmp_path / "gone.onnx", Device.cpu)


# -- a real GPU ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_answers_on_cuda_equal_cpu(starter: Bundle, photos: Path) -> None:
    """Equal up to rounding, which may decide between two almost equally likely tokens."""
    assert why_not_cuda() is None
    on_cuda = Engine.load(starter, device="cuda")
    on_cpu = Engine.load(starter, device="cpu")
    assert on_cuda.device is Device.cuda
    assert torch.cuda.memory_allocated() > 0
    requests = [
        Request(image.name, question, tuple(Region(Box(*box)) for box in boxes), image)
        for image in map(open_image, sorted(photos.iterdir()))
        for question, boxes in (
            ("what is this?", [(5, 5, 90, 100)]),
            ("is <region1> left of <region2>?", [(5, 5, 90, 100), (40, 30, 140, 120)]),
            ("describe this picture.", []),
        )
    ]
    pairs = zip(on_cuda.answer(requests), on_cpu.answer(requests), strict=True)
    same = [cuda.text == cpu.text and not cuda.error for cuda, cpu in pairs]
    assert sum(same) >= len(same) - 1


@pytest.mark.parametrize(
    ("cores", "usable", "limit", "threads"),
    [
        (8, 8, None, 0),
        (8, 3, None, 3),
        (8, 8, "2", 2),
        (8, 8, "2,1", 2),
        (8, 3, "5", 3),
        (8, 8, "16", 0),
        (8, 8, "", 0),
        (8, 8, "0", 0),
        (8, 8, "many", 0),
    ],
)
def test_threads_of_sessions_follow_affinity_and_omp_num_threads(
    cores: int, usable: int, limit: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(usable)), raising=False)
    if limit is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert allowed_threads() == threads
