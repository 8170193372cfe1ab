"""Devices, and ONNX Runtime sessions that run on the requested one or fail.

ONNX Runtime reports CUDA as available where it is not, and falls back to the CPU silently, so the
list of providers of every session is checked after it was opened.
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
    "use_tf32": "0",  # float32 means float32; float16 is the choice for speed
    "arena_extend_strategy": "kSameAsRequested",  # otherwise memory grows by powers of two
    "cudnn_conv_algo_search": "HEURISTIC",  # exhaustive search would repeat for every image size
}
"""Settings of ONNX Runtime's CUDA provider."""
log = logging.getLogger(__name__)


class Device(StrEnum):
    """The device of both the encoders and the language model."""

    cpu = "cpu"
    cuda = "cuda"


def why_not_cuda() -> str | None:
    """Return why CUDA cannot be used; None if torch and ONNX Runtime report it as usable.

    Only opening a session shows whether it really runs there; see `open_session`.
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
    """Resolve "auto", "cpu" or "cuda"; DeviceError if CUDA was requested and cannot be used."""
    if asked not in ("auto", *Device):
        raise UsageError(f"device {asked!r}: must be auto, cpu or cuda")
    if asked == "cpu":
        return Device.cpu
    reason = why_not_cuda()
    if reason is None:
        return Device.cuda
    if asked == "cuda":
        raise DeviceError(f"--device cuda: CUDA cannot be used: {reason}; or use --device cpu")
    return Device.cpu


def allowed_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def allowed_threads() -> int:
    """Return the number of threads for a session; 0: ONNX Runtime's default.

    ONNX Runtime counts the machine's cores. If the process may use fewer (taskset, a scheduler, or
    OMP_NUM_THREADS, which torch obeys too), surplus threads would spin while they wait for each
    other.
    """
    cores, allowed = os.cpu_count() or 1, allowed_cores()
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if limit.isdecimal() and int(limit) > 0:
        allowed = min(allowed, int(limit))
    return allowed if allowed < cores else 0


def open_session(
    graph: Path, device: Device, *, half: bool = False, profile: Path | None = None
) -> "InferenceSession":
    """Open an ONNX file as a session on `device`, with float32 inputs and outputs.

    Args:
        graph: The ONNX file.
        device: Where the session must run.
        half: Compute in float16 what depends on the image; weights then take half the memory.
        profile: Prefix of the file for ONNX Runtime's profile.

    Raises:
        DeviceError: ONNX Runtime chose another provider.
        BundleError: The file is not a graph that ONNX Runtime can load.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # before the first session, or it has no effect
    providers: Sequence[str] = [PROVIDERS["cpu"]]
    settings: Sequence[dict[str, str]] = [{}]
    if device is Device.cuda:
        with redirect_stdout(sys.stderr):  # it prints to stdout
            onnxruntime.preload_dlls()  # loads the CUDA libraries of Python packages
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
    trim_memory()
    return session


def trim_memory() -> None:
    """Return freed memory that glibc retains to the system.

    Opening a graph holds its weights up to three times: as stored, in float32, and in the layout of
    its kernels. What glibc retains of that may exceed what is in use.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def operator_providers(
    graph: Path,
    device: Device,
    feeds: "Mapping[str, npt.NDArray[np.generic]]",
    *,
    half: bool = False,
) -> dict[str, set[str]]:
    """Profile one run, and return the providers that ran the nodes of each operator.

    A session on CUDA may run single nodes on the CPU.

    Args:
        graph: The ONNX file.
        device: The session's device.
        feeds: Inputs by name.
        half: As in `open_session`.
    """
    with TemporaryDirectory() as folder:
        session = open_session(graph, device, half=half, profile=Path(folder) / "profile")
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, set[str]] = defaultdict(set)
    for event in events:
        details = event.get("args", {})
        if "op_name" in details and "provider" in details:
            found[details["op_name"]].add(details["provider"])
    return dict(found)
