"""A graph on given inputs, in ONNX Runtime alone: here, or in a process of its own.

Torch's weights wait on the disk meanwhile, so that comparing a large graph holds one copy of them,
not two. It does not know what is compared.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from regionqa.errors import ExportError

APART = 200_000_000
"""Bytes of a graph from which on it gets a process of its own; starting one takes a second."""
Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Feeds = Mapping[str, Array]


def run_graph(path: Path, outputs: Sequence[str], cases: Sequence[Feeds]) -> list[list[Floats]]:
    """What a graph gives for every case, in the order of `outputs`. ExportError where it fails."""
    if path.stat().st_size < APART:
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
def set_aside(module: nn.Module, path: Path) -> Iterator[None]:
    """A module without its weights while a graph of its own process needs the memory.

    Nothing is done for a graph small enough to run here. Tensors that somebody else holds too stay
    in memory.
    """
    if path.stat().st_size < APART:
        yield
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(module.state_dict(), file)
        nothing = {name: value.to("meta") for name, value in module.state_dict().items()}
        module.load_state_dict(nothing, assign=True)
        try:
            yield
        finally:
            with torch.inference_mode(False):  # or they could not be trained any more
                module.load_state_dict(torch.load(file, weights_only=True), assign=True)


def run_here(path: Path, outputs: Sequence[str], cases: Sequence[Feeds]) -> list[list[Floats]]:
    """As `run_graph`, in this process."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # as asking does: what it cannot fold beforehand is no fault
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [session.run(list(outputs), dict(case)) for case in cases]


def main(words: Sequence[str]) -> None:
    """GRAPH FOLDER CASES OUTPUT...: read FOLDER/0.npz and so on, write FOLDER/0.out.npz."""
    path, folder, count, *outputs = words
    cases = []
    for number in range(int(count)):
        with np.load(f"{folder}/{number}.npz") as arrays:
            cases.append({name: arrays[name] for name in arrays.files})
    for number, found in enumerate(run_here(Path(path), outputs, cases)):
        arrays = dict(zip(outputs, found, strict=True))
        np.savez(f"{folder}/{number}.out.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
