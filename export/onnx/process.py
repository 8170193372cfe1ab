"""Run a graph in ONNX Runtime, large ones in a separate process without torch's weights.

Torch's weights are on disk meanwhile, so that the comparison of a large graph needs memory for one
copy of the weights, not two.
"""

import gc
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnxruntime

from regionqa.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

SEPARATE_PROCESS = 200_000_000
"""Size in bytes from which a graph runs in a separate process, which takes a second to start."""
Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Feeds = Mapping[str, Array]


def run_graph(path: Path, outputs: Sequence[str], cases: Sequence[Feeds]) -> list[list[Floats]]:
    """Compute a graph's outputs for every case.

    Args:
        path: The ONNX file.
        outputs: Names of the outputs.
        cases: Inputs by name, for every case.

    Returns:
        For every case the outputs in the order of their names.

    Raises:
        ExportError: ONNX Runtime cannot run the graph.
    """
    if path.stat().st_size < SEPARATE_PROCESS:
        return run_here(path, outputs, cases)
    with TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            np.savez(f"{folder}/{number}.npz", allow_pickle=False, **dict(case))
        ran = subprocess.run(
            [sys.executable, "-m", __name__, str(path), folder, str(len(cases)), *outputs],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            reason = (ran.stderr.strip() or f"status {ran.returncode}").splitlines()[-1]
            raise ExportError(f"{path.name}: does not run in ONNX Runtime: {reason}")
        found = []
        for number in range(len(cases)):
            with np.load(f"{folder}/{number}.out.npz") as arrays:
                found.append([arrays[name] for name in outputs])
        return found


@contextmanager
def set_aside(module: "nn.Module", path: Path) -> Iterator[None]:
    """Move a module's weights to disk while its graph runs in a separate process.

    Does nothing for a graph that runs in this process. Tensors with other references stay in
    memory.
    """
    if path.stat().st_size < SEPARATE_PROCESS:
        yield
        return
    import torch  # here, because the separate process runs this module and needs no torch

    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(module.state_dict(), file)
        nothing = {name: value.to("meta") for name, value in module.state_dict().items()}
        module.load_state_dict(nothing, assign=True)
        gc.collect()  # the exporter's program refers to the weights, and is part of a cycle
        try:
            yield
        finally:
            with torch.inference_mode(False):  # or the weights could not be trained
                module.load_state_dict(torch.load(file, weights_only=True), assign=True)


def run_here(path: Path, outputs: Sequence[str], cases: Sequence[Feeds]) -> list[list[Floats]]:
    """Run a graph in this process; as `run_graph`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings about constants that it cannot fold
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(list(outputs), dict(case)) for case in cases]


def main(arguments: Sequence[str]) -> None:
    """Run GRAPH FOLDER CASES OUTPUT...: reads FOLDER/0.npz and so on, writes FOLDER/0.out.npz."""
    path, folder, count, *outputs = arguments
    cases = []
    for number in range(int(count)):
        with np.load(f"{folder}/{number}.npz") as arrays:
            cases.append({name: arrays[name] for name in arrays.files})
    for number, found in enumerate(run_here(Path(path), outputs, cases)):
        arrays = dict(zip(outputs, found, strict=True))
        np.savez(f"{folder}/{number}.out.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
