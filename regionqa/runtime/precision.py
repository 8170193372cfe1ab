"""The precision in which a model is loaded, by option or from its weights and the device.

"auto" depends on the model and the device, never on free memory, so that a command gives the same
answer every time. Only headers of weight files are read.
"""

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError

from regionqa.bundles.weights import main_kind, stored
from regionqa.errors import BundleError, DeviceError, UsageError, message_of
from regionqa.options import Quantize
from regionqa.runtime.devices import Device

SMALL = 10**9
"""Largest number of weights of a language model that "auto" loads in float32 (4 GB)."""
EXTRA = ("bitsandbytes", "accelerate")
"""Packages of the extra `quantize`."""


class Dtype(StrEnum):
    """Types of weights and arithmetic, by torch's names."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"

    @property
    def width(self) -> int:
        """Bytes of a number."""
        return 4 if self is Dtype.float32 else 2


@dataclass(frozen=True)
class Precision:
    """How one model is loaded."""

    dtype: Dtype = Dtype.float32
    """Weights and arithmetic of the language model."""
    quantize: Quantize | None = None
    """Quantization of the language model's matrices; None: they are in `dtype`."""
    half_encoders: bool = False
    """Whether the encoders compute in float16, not float32."""

    def __str__(self) -> str:
        """Return the value of `dtype` in JSON, such as "float16" or "4bit+float16"."""
        return f"{self.quantize}+{self.dtype}" if self.quantize else str(self.dtype)


SINGLE = Precision()
"""Everything in float32."""


def choose_precision(
    folder: Path, device: Device, dtype: str = "auto", quantize: str | None = None
) -> Precision:
    """Choose the precision of a model on a device.

    On CUDA the encoders compute in float32 if the language model does, else in float16.

    Args:
        folder: The folder of the weights.
        device: Where it will run.
        dtype: "auto" or one of `Dtype`. "auto" is float32 for models of at most `SMALL` weights.
            Larger ones get bfloat16 on the CPU, where float16 is slow; on CUDA the type in which
            the weights are stored, and if that is float32, bfloat16 if the GPU has it.
        quantize: "8bit", "4bit" or None.

    Raises:
        UsageError: A value is unknown, or the extra `quantize` is not installed.
        DeviceError: The device does not support the precision.
        BundleError: The weights cannot be read.
    """
    if dtype not in ("auto", *Dtype):
        raise UsageError(f"dtype {dtype!r}: must be auto, {', '.join(Dtype)}")
    way = check_quantize(quantize, device) if quantize is not None else None
    if dtype == "auto":
        chosen = suggest(folder, device, keep_small=way is None)
    else:
        chosen = Dtype(dtype)
        if chosen is Dtype.bfloat16 and device is Device.cuda and not gpu_has_bfloat16():
            raise DeviceError("--dtype bfloat16: this GPU cannot compute in it; use float16")
    return Precision(chosen, way, device is Device.cuda and chosen is not Dtype.float32)


def suggest(folder: Path, device: Device, *, keep_small: bool = True) -> Dtype:
    """Resolve "auto" for a model on a device; see `choose_precision`."""
    count, kind = weights_of(folder)
    if count <= SMALL and keep_small:
        return Dtype.float32
    return large_dtype(kind, device)


def large_dtype(kind: str, device: Device) -> Dtype:
    """Resolve "auto" for a large model whose weights are stored as `kind` (F32, F16, BF16)."""
    if device is Device.cpu:
        return Dtype.bfloat16
    return Dtype.float16 if kind == "F16" or not gpu_has_bfloat16() else Dtype.bfloat16


def weights_of(folder: Path) -> tuple[int, str]:
    """Count the weights in a folder; also the type of most of them."""
    try:
        tensors = stored(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = message_of(error)
        raise BundleError(f"{folder}: its weights cannot be read: {reason}") from error
    return sum(tensor.count for tensor in tensors), main_kind(tensors)


def gpu_has_bfloat16() -> bool:
    """Return whether the GPU supports bfloat16 natively."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def check_quantize(quantize: str, device: Device) -> Quantize:
    """Parse --quantize; an error if it is unknown, or not available on the device."""
    if quantize not in list(Quantize):
        raise UsageError(f"quantize {quantize!r}: must be {' or '.join(Quantize)}")
    if device is not Device.cuda:
        raise DeviceError(
            f"--quantize {quantize}: runs on CUDA alone, and the CPU is used; leave it out there "
            "(--dtype bfloat16 halves the memory)"
        )
    missing = [package for package in EXTRA if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"--quantize {quantize} needs {missing[0]}, which is not installed: "
            "pip install 'regionqa[quantize]'"
        )
    return Quantize(quantize)
