"""Where things run: ONNX Runtime sessions on the device that was asked for, and never elsewhere.

ONNX Runtime says CUDA is available where it is not, and falls back to the CPU without a word. So a
session is believed only after its own list of providers was read. Reasons are given in words.
"""

import ctypes
import json
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from regionqa.errors import BundleError, DeviceError, UsageError
from regionqa.runtime.float16 import float16_graph

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnxruntime import InferenceSession


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {
    "use_tf32": "0",  # float32 is to mean float32; who wants speed takes float16
    "arena_extend_strategy": "kSameAsRequested",  # else memory grows by powers of two
    "cudnn_conv_algo_search": "HEURISTIC",  # trying all would start anew for every image's size
}
"""Settings of ONNX Runtime's CUDA provider."""
log = logging.getLogger(__name__)


class Device(StrEnum):
    """A device both halves of the model run on: encoders and language model."""

    cpu = "cpu"
    cuda = "cuda"


def why_not_cuda() -> str | None:
    """Why CUDA cannot be used, in words; None where nothing speaks against it.

    Asks torch and ONNX Runtime; whether a session really starts there is known only by starting
    one (`open_session`).
    """
    import onnxruntime
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch finds no usable NVIDIA GPU (none there, or its driver is missing or too old)"
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider; install onnxruntime-gpu[cuda,cudnn] instead"
    return None


def choose_device(asked: str) -> Device:
    """The device for "auto", "cpu" or "cuda"; DeviceError where CUDA was asked for in vain."""
    if asked not in ("auto", *Device):
        raise UsageError(f"device {asked!r}: must be auto, cpu or cuda")
    if asked == "cpu":
        return Device.cpu
    reason = why_not_cuda()
    if reason is None:
        return Device.cuda
    if asked == "cuda":
        raise DeviceError(f"--device cuda: CUDA cannot be used: {reason}; or say --device cpu")
    return Device.cpu


def allowed_threads() -> int:
    """Threads for a session; 0: as many as it likes.

    ONNX Runtime counts the machine's cores. Where the process may use fewer of them (taskset, a
    scheduler's share), its surplus threads would only wait for each other, and burn time doing so.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return allowed if allowed < (os.cpu_count() or 1) else 0


def open_session(
    graph: Path, device: Device, *, half: bool = False, profile: Path | None = None
) -> "InferenceSession":
    """A session of an ONNX file that runs on `device`; inputs and outputs are float32.

    half: compute in float16 what depends on the image; weights then take half the memory.
    profile: start of the name of a file for ONNX Runtime's record of what ran where.
    Raises DeviceError where ONNX Runtime silently chose another provider, BundleError where the
    file is not a graph it can run.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # before the first session, or it has no effect
    providers: Sequence[str] = [PROVIDERS["cpu"]]
    settings: Sequence[dict[str, str]] = [{}]
    if device is Device.cuda:
        with redirect_stdout(sys.stderr):  # it prints; stdout is for answers
            onnxruntime.preload_dlls()  # finds the CUDA libraries that came as Python packages
        providers, settings = [PROVIDERS["cuda"], PROVIDERS["cpu"]], [CUDA_OPTIONS, {}]
    content = float16_graph(graph) if half else str(graph)
    try:
        options = onnxruntime.SessionOptions()
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        options.intra_op_num_threads = allowed_threads()
        session = onnxruntime.InferenceSession(content, options, providers, settings)
    except Exception as error:  # onnxruntime's own errors share no public base class
        reason = str(error).splitlines()[0]
        raise BundleError(f"{graph}: ONNX Runtime cannot load it: {reason}") from error
    if session.get_providers()[0] != PROVIDERS[device]:
        raise DeviceError(
            f"{graph.name}: ONNX Runtime's CUDA provider does not load (it needs the CUDA and "
            "cuDNN libraries of onnxruntime-gpu[cuda,cudnn]); see `regionqa doctor`"
        )
    log.debug("%s runs on %s", graph.name, session.get_providers()[0])
    give_back_memory()
    return session


def give_back_memory() -> None:
    """Return to the system what was freed and glibc keeps, which may be more than what is in use.

    Opening a graph holds its weights two or three times for a moment: as they are stored, in
    float32, and as they are laid out for its kernels.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def placement(
    graph: Path,
    device: Device,
    feeds: "Mapping[str, npt.NDArray[np.generic]]",
    *,
    half: bool = False,
) -> dict[str, set[str]]:
    """Which providers ran the nodes of each operator, by the record of one run over `feeds`.

    A session on CUDA may still leave single nodes to the CPU.
    """
    with TemporaryDirectory() as folder:
        session = open_session(graph, device, half=half, profile=Path(folder) / "profile")
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, set[str]] = defaultdict(set)
    for event in events:
        told = event.get("args", {})
        if "op_name" in told and "provider" in told:
            found[told["op_name"]].add(told["provider"])
    return dict(found)
