"""Loading of a checkpoint through transformers."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from regionqa.backends.vlm.processor import LOAD_ERRORS
from regionqa.errors import BundleError, message_of
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import Precision


def load_checkpoint(folder: Path, device: Device, precision: Precision) -> Any:
    """Load a `...ForConditionalGeneration` in evaluation mode.

    Args:
        folder: The checkpoint's files.
        device: Where it will run.
        precision: Type of its weights, and their quantization.

    Raises:
        BundleError: A file is missing or cannot be used, or a weight is missing.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from regionqa.language.decoders import quantization

    if device is not Device.cuda:  # it recommends kernels that need CUDA
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    dtype: torch.dtype = getattr(torch, precision.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if precision.quantize:
        options["quantization_config"] = quantization(precision.quantize, dtype)
    if precision.quantize or (device is Device.cuda and find_spec("accelerate")):
        options["device_map"] = {"": torch.device(device.value)}  # no copy in main memory
    model = load_pretrained(AutoModelForImageTextToText, folder, **options)
    return model if "device_map" in options else model.to(device.value)


def load_pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """Load a checkpoint in evaluation mode, from its files alone.

    Args:
        kind: Its class in transformers.
        folder: The checkpoint's files.
        options: Further arguments of `from_pretrained`.

    Raises:
        BundleError: A file is missing or cannot be used, or a weight is missing.
    """
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of weights in memory, of which there is nothing to wait for
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True,
            **options,
        )  # fmt: skip
    except (*LOAD_ERRORS, SafetensorError) as error:
        reason = message_of(error)
        raise BundleError(f"{folder}: transformers cannot load it: {reason}") from error
    if report["missing_keys"]:  # transformers would initialize them
        raise BundleError(f"{folder}: {min(report['missing_keys'])} is missing; get it again")
    return model.eval()
