"""The report of `regionqa doctor`: versions, devices, models, and why CUDA is not used.

A provider counts as usable only after a session of a shipped graph ran on it. Nothing is changed.
"""

import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from regionqa.bundles.store import (
    CARD,
    Bundle,
    find_bundle,
    published_cards,
    published_folder,
    shipped_bundles,
)
from regionqa.errors import RegionQAError
from regionqa.runtime.devices import PROVIDERS, Device, why_not_cuda
from regionqa.runtime.encoders import VisionEncoder
from regionqa.runtime.memory import needs_of, needs_of_published, table
from regionqa.runtime.precision import choose_precision

PACKAGES = (
    "regionqa", "torch", "torchvision", "transformers", "tokenizers", "onnxruntime-gpu",
    "onnxruntime", "onnx", "bitsandbytes", "huggingface-hub", "optimum", "pillow", "numpy",
    "typer", "rich",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    """The subject."""
    text: str
    """The result."""
    good: bool = True
    """Whether regionqa works with it."""


def diagnose(model: str = "starter") -> list[Finding]:
    """Return the findings of the report, from general to specific."""
    findings = [
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding("system", f"{platform.platform()}, {os.cpu_count()} cores"),
        *versions(),
        Finding("gpu", gpu()),
        *devices("starter" if is_not_downloaded(model) else model),
        Finding("hub cache", hub_cache_finding()),
    ]
    names = [*shipped_bundles(), *([model] if model not in shipped_bundles() else [])]
    return findings + [check_model(name) for name in names]


def memory_needed(model: str = "starter") -> list[str]:
    """Return the table of memory estimates as lines, or the reason why there is none.

    For a model that is not downloaded yet, the estimates come from its card.
    """
    try:
        if is_not_downloaded(model):
            about = f"memory for {model}, by its card, before it is downloaded:"
            return [about, *table(needs_of_published(published_cards()[model]))]
        return [f"memory for {model}:", *table(needs_of(find_bundle(model)))]
    except RegionQAError as error:
        return [f"memory for {model}: not known: {error}"]


def is_not_downloaded(model: str) -> bool:
    """Return whether a model is a published one that is not downloaded yet."""
    return model in published_cards() and not (published_folder(model) / CARD).is_file()


def versions() -> list[Finding]:
    """Return the versions of the installed packages that regionqa depends on."""
    findings = []
    for package in PACKAGES:
        try:
            findings.append(Finding(package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    installed = {finding.topic for finding in findings}
    if {"onnxruntime", "onnxruntime-gpu"} <= installed:
        text = "both onnxruntime and onnxruntime-gpu are installed and overwrite each other; "
        findings.append(Finding("onnxruntime", text + "uninstall both, then install one", False))
    return findings


def gpu() -> str:
    """Return the GPUs that torch finds, with their memory."""
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    cards = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)


def devices(model: str) -> list[Finding]:
    """Find the devices that run a graph, and what `--device auto` and `--dtype auto` choose."""
    findings, usable = [], []
    for device in Device:
        reason = (why_not_cuda() if device is Device.cuda else None) or why_not(device, model)
        if reason is None:
            usable.append(device)
            findings.append(Finding(str(device), f"{PROVIDERS[device]} loads and runs"))
        else:
            findings.append(Finding(str(device), f"not used: {reason}", device is not Device.cpu))
    chosen = Device.cuda if Device.cuda in usable else Device.cpu
    findings.append(Finding("--device auto", f"means {chosen} here"))
    with suppress(RegionQAError):  # of damaged files, which `check_model` reports
        precision = choose_precision(find_bundle(model).language_folder, chosen)
        findings.append(Finding("--dtype auto", f"means {precision} for {model} on {chosen}"))
    return findings


def why_not(device: Device, model: str) -> str | None:
    """Return why the model's vision encoder does not run on a device; None if it runs."""
    try:
        bundle = find_bundle(model)
        size = bundle.card.image.size
        VisionEncoder(bundle, device).encode(np.zeros((1, 3, size, size), np.float32))
    except Exception as error:  # onnxruntime's own errors share no public base class
        return " ".join(str(error).split())
    return None


def hub_cache_finding() -> str:
    """Return the folder of the Hugging Face Hub's cache, and its size."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    if not folder.is_dir():
        return f"{folder} (nothing there yet)"
    # snapshots are links to the blobs, which would count twice
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    total = sum(path.stat().st_size for path in files)
    return f"{folder} ({total / 1e9:.2f} GB)"


def check_model(name: str) -> Finding:
    """Compare a model's files with its card, content included."""
    if is_not_downloaded(name):
        return Finding(f"model {name}", f"not downloaded yet; run: regionqa download {name}")
    try:
        bundle = find_bundle(name)
        broken = bundle.broken_files()
    except RegionQAError as error:
        return Finding(f"model {name}", str(error), False)
    if broken:
        text = f"{bundle.root}: differs from its card in {', '.join(broken)}; get the model again"
        return Finding(f"model {name}", text, False)
    return Finding(f"model {name}", f"sound, {describe_size(bundle)} at {bundle.root}")


def describe_size(bundle: Bundle) -> str:
    """Return the bundle's size in MB."""
    return f"{bundle.size / 1e6:.1f} MB"
