"""ONNX files written weight by weight."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from regionqa.errors import ExportError
from regionqa.export.onnx import process as running
from regionqa.export.onnx.export import write_graph
from regionqa.export.onnx.files import CHUNK, exact_float16
from regionqa.export.onnx.verify import compare


def linear(path: Path, *, halves: bool = False, wide: int = 40) -> nn.Linear:
    """A layer and its graph."""
    torch.manual_seed(0)
    layer = nn.Linear(30, wide).eval()
    if halves:
        layer.weight.data = layer.weight.half().float()
    dynamic = ({0: torch.export.Dim("batch")},)
    write_graph(layer, (torch.randn(2, 30),), ["x"], ["y"], dynamic, path)
    return layer


@pytest.mark.parametrize("halves", [False, True])
def test_graph_round_trip(halves: bool, tmp_path: Path) -> None:
    layer = linear(tmp_path / "graph.onnx", halves=halves)
    model = onnx.load(tmp_path / "graph.onnx")
    onnx.checker.check_model(model, full_check=True)
    found = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    stored = found["weight.half"] if halves else found["weight"]
    assert stored.dtype == (np.float16 if halves else np.float32)
    assert np.array_equal(stored, layer.weight.detach().numpy())
    assert found["bias"].dtype == np.float32  # too small to be worth a cast
    assert [node.op_type for node in model.graph.node] == ["Cast"] * halves + ["Gemm"]
    assert not model.graph.node[-1].metadata_props  # nothing of whoever exported
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    x = torch.randn(3, 30)
    assert np.allclose(session.run(None, {"x": x.numpy()})[0], layer(x).detach(), atol=1e-5)


def test_only_exact_weights_become_float16() -> None:
    exact = np.full(CHUNK + 5, 0.5, np.float32)
    half = exact_float16(exact)
    assert half is not None and half.dtype == np.float16 and half.shape == exact.shape
    exact[-1] = 0.1
    assert exact_float16(exact) is None
    exact[-1] = 1e6  # beyond float16
    assert exact_float16(exact) is None
    assert exact_float16(np.full((16, 16), 0.5, np.float32)) is not None
    assert exact_float16(np.full((15, 16), 0.5, np.float32)) is None
    assert exact_float16(np.zeros(999, np.int64)) is None


def test_large_graph_is_compared_in_a_subprocess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = linear(tmp_path / "graph.onnx")
    weights = {name: value.clone() for name, value in layer.state_dict().items()}
    started = []
    run = subprocess.run

    def noted(words: list[str], **settings: object) -> object:
        started.append(words)
        assert all(value.is_meta for value in layer.parameters())  # they wait on the disk
        return run(words, **settings)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", noted)
    cases = {f"{count}": {"x": np.ones((count, 30), np.float32)} for count in (1, 4, 0)}
    here = compare(layer, tmp_path / "graph.onnx", ["y"], cases)
    assert not started
    monkeypatch.setattr(running, "SEPARATE_PROCESS", 0)
    assert compare(layer, tmp_path / "graph.onnx", ["y"], cases) == here
    assert [words[:3] for words in started] == [[sys.executable, "-m", running.__name__]]
    assert here.difference < 1e-5
    (tmp_path / "graph.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"graph\.onnx: does not run in ONNX Runtime: .+"):
        compare(layer, tmp_path / "graph.onnx", ["y"], cases)
    for name, value in layer.named_parameters():
        assert torch.equal(value, weights[name])
        assert value.requires_grad
        assert not value.is_inference()


@pytest.mark.slow
def test_writing_copies_no_weights(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch; from pathlib import Path; from torch import nn\n"
        "from regionqa.export.onnx.export import write_graph\n"
        "layers = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))).eval()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_graph(nn.Linear(8, 8), (torch.ones(1, 8),), ['x'], ['y'], None, Path('small'))\n"
        "before = peak()\n"
        "write_graph(layers, (torch.ones(1, 4096),), ['x'], ['y'], None, Path('large'))\n"
        "print(peak() - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    weights = (tmp_path / "large").stat().st_size
    assert weights > 8 * 4096 * 4096 * 4
    assert int(ran.stdout) * 1024 < weights / 2
