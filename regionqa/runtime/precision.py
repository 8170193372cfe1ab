"""In which precision a model is loaded: what was asked for, or what the weights and device suggest.

"auto" looks at the model and the device, never at what memory happens to be free: the same command
must give the same answer tomorrow. It reads headers, no weights.
"""

from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec

from safetensors import SafetensorError

from regionqa.bundles.store import Bundle
from regionqa.bundles.weights import main_kind, stored
from regionqa.errors import BundleError, DeviceError, UsageError
from regionqa.options import Quantize
from regionqa.runtime.devices import Device

SMALL = 10**9
"""Weights of a language model that "auto" still computes with in float32: 4 GB of them."""
EXTRA = ("bitsandbytes", "accelerate")
"""What the extra `quantize` installs."""


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
    """How the language model's matrices are kept, where not in `dtype`."""
    half_encoders: bool = False
    """Whether the encoders compute in float16; else in float32."""

    def __str__(self) -> str:
        """As JSON says it: "float16", "4bit+float16"."""
        return f"{self.quantize}+{self.dtype}" if self.quantize else str(self.dtype)


SINGLE = Precision()
"""Everything in float32."""


def choose_precision(
    bundle: Bundle, device: Device, dtype: str = "auto", quantize: str | None = None
) -> Precision:
    """The precision for a device.

    dtype: "auto" or one of `Dtype`. "auto" is float32 for models of at most `SMALL` weights. Of
        larger ones it is bfloat16 on the CPU, where float16 is slow; on CUDA the type the weights
        are stored in, and for those stored in float32 the better half type that the GPU has.
    quantize: "8bit", "4bit" or None.
    The encoders follow on CUDA: float32 beside a language model in float32, else float16.
    Raises UsageError, DeviceError where this cannot be had here, BundleError for unsound files.
    """
    if dtype not in ("auto", *Dtype):
        raise UsageError(f"dtype {dtype!r}: must be auto, {', '.join(Dtype)}")
    way = check_quantize(quantize, device) if quantize is not None else None
    if dtype == "auto":
        chosen = suggest(bundle, device, keep_small=way is None)
    else:
        chosen = Dtype(dtype)
        if chosen is Dtype.bfloat16 and device is Device.cuda and not gpu_has_bfloat16():
            raise DeviceError("--dtype bfloat16: this GPU cannot compute in it; use float16")
    return Precision(chosen, way, device is Device.cuda and chosen is not Dtype.float32)


def suggest(bundle: Bundle, device: Device, *, keep_small: bool = True) -> Dtype:
    """What "auto" means for a model on a device; see `choose_precision`."""
    count, kind = weights_of(bundle)
    if count <= SMALL and keep_small:
        return Dtype.float32
    return large_dtype(kind, device)


def large_dtype(kind: str, device: Device) -> Dtype:
    """What "auto" means for a large model whose weights are stored as `kind` (F32, F16, BF16)."""
    if device is Device.cpu:
        return Dtype.bfloat16
    return Dtype.float16 if kind == "F16" or not gpu_has_bfloat16() else Dtype.bfloat16


def weights_of(bundle: Bundle) -> tuple[int, str]:
    """How many weights the language model has, and the type of most of them."""
    folder = bundle.file(bundle.card.language.folder)
    try:
        tensors = stored(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{folder}: its weights cannot be read: {reason}") from error
    return sum(tensor.count for tensor in tensors), main_kind(tensors)


def gpu_has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16 itself."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def check_quantize(quantize: str, device: Device) -> Quantize:
    """The way to quantize; an error in words where it is unknown or cannot be had here."""
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
