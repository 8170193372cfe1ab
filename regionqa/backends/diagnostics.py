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
from regionqa.errors import RegionQAError, message_of
from regionqa.runtime.devices import PROVIDERS, Device, why_not_cuda
from regionqa.runtime.encoders import VisionEncoder
from regionqa.runtime.memory import needs_of, needs_of_published, table
from regionqa.runtime.precision import choose_precision, weights_of
from regionqa.vlm.memory import needs_of_vlm
from regionqa.vlm.store import FoundVlm, download_command, find_vlm

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
    vlm = vlm_or_problem(model)
    bundle = model if vlm is None and is_bundle(model) else "starter"
    findings = [
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding("system", f"{platform.platform()}, {os.cpu_count()} cores"),
        *versions(),
        Finding("gpu", gpu()),
        *devices(bundle, vlm.folder if isinstance(vlm, FoundVlm) else None),
        Finding("hub cache", hub_cache_finding()),
    ]
    names = [*shipped_bundles(), *([] if vlm or model in shipped_bundles() else [model])]
    findings += [check_model(name) for name in names]
    if vlm is not None:
        findings.append(check_vlm(model, vlm) if isinstance(vlm, FoundVlm) else vlm)
    return findings


def memory_needed(model: str = "starter") -> list[str]:
    """Return the table of memory estimates as lines, or the reason why there is none.

    For a model that is not downloaded yet, the estimates come from its card.
    """
    about = f"memory for {model}, by its card, before it is downloaded:"
    try:
        if is_not_downloaded(model):
            return [about, *table(needs_of_published(published_cards()[model]))]
        if vlm := find_vlm(model):
            needs = needs_of_vlm(vlm.card, vlm.folder)
            if needs is None:
                return [f"memory for {model}: not known before it is downloaded"]
            return [f"memory for {model}:" if vlm.folder else about, *table(needs)]
        return [f"memory for {model}:", *table(needs_of(find_bundle(model)))]
    except RegionQAError as error:
        return [f"memory for {model}: not known: {error}"]


def vlm_or_problem(model: str) -> FoundVlm | Finding | None:
    """Find a vision-language model; the finding if that fails, and None if it is another model."""
    try:
        return find_vlm(model)
    except RegionQAError as error:
        return Finding(f"model {model}", str(error), good=False)


def is_bundle(model: str) -> bool:
    """Return whether a bundle is found by this name; `check_model` reports why it is not."""
    try:
        return not is_not_downloaded(model) and bool(find_bundle(model))
    except RegionQAError:
        return False


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


def devices(model: str, checkpoint: Path | None = None) -> list[Finding]:
    """Find the devices that run a graph, and what `--device auto` and `--dtype auto` choose.

    Args:
        model: The bundle whose vision encoder is run.
        checkpoint: Weights for `--dtype auto`; None: the bundle's.
    """
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
        weights = checkpoint or find_bundle(model).language_folder
        precision, name = choose_precision(weights, chosen), checkpoint or model
        findings.append(Finding("--dtype auto", f"means {precision} for {name} on {chosen}"))
    return findings


def why_not(device: Device, model: str) -> str | None:
    """Return why the model's vision encoder does not run on a device; None if it runs."""
    try:
        bundle = find_bundle(model)
        size = bundle.card.image.size
        VisionEncoder(bundle, device).encode(np.zeros((1, 3, size, size), np.float32))
    except Exception as error:  # onnxruntime's own errors share no public base class
        return message_of(error)
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


def check_vlm(name: str, found: FoundVlm) -> Finding:
    """Report whether a checkpoint is whole, by the headers of its weights, and how it is used."""
    topic, folder, ways = f"model {name}", found.folder, found.card.regions
    if folder is None:
        return Finding(topic, f"not downloaded yet; run: {download_command(found.card)}")
    try:
        weights_of(folder)
    except RegionQAError as error:
        return Finding(topic, str(error), good=False)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    card = "its card" if found.path else f"the conventions of the family {found.card.family}"
    chosen = f"measured: {ways.measured}" if ways.measured else "not measured"
    return Finding(
        topic,
        f"complete, {size / 1e6:.1f} MB at {folder}; regions are told by {card}: {ways.default} "
        f"({chosen}), of {', '.join(ways.ways)}",
    )


def describe_size(bundle: Bundle) -> str:
    """Return the bundle's size in MB."""
    return f"{bundle.size / 1e6:.1f} MB"
