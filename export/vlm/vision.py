"""Export the vision encoder of a checkpoint by transformers' own exporter, and compare it.

The encoder and the projector become a graph each. Both runtimes then compute the features of
images of several sizes; a graph that differs is not kept.
"""

import copy
import inspect
import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regionqa.backends.vlm.checkpoint import load_checkpoint
from regionqa.backends.vlm.features import TorchTower
from regionqa.backends.vlm.graphs import OnnxTower, drop_weights, named_arguments, vision_modules
from regionqa.backends.vlm.processor import VlmProcessor
from regionqa.errors import BundleError, ExportError, UsageError, message_of
from regionqa.files import locked, write_whole
from regionqa.runtime.devices import Device
from regionqa.runtime.precision import Dtype, Precision, suggest
from regionqa.vlm.card import VlmCard
from regionqa.vlm.vision_exports import (
    FORMAT,
    MANIFEST,
    GraphPart,
    VisionCheck,
    VisionExport,
    VisionManifest,
    export_folder,
    manifest_text,
    open_export,
)

TOLERANCE = 1e-4
"""Largest allowed difference from torch, relative to the largest feature."""
SIZES = ((224, 224), (448, 224), (300, 640))
"""Widths and heights of the images that are compared; the modules are traced with the second."""
LARGE = (1280, 960)
"""The second size for families that divide only large images into several."""
PACKAGES = ("transformers", "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")


@dataclass(frozen=True)
class ModuleCall:
    """A module, and the arguments of one call of it."""

    module: nn.Module
    arguments: dict[str, Any]
    lengths: dict[str, int]
    """Number of places in those fields of its output that are sequences."""
    fixed: bool = False
    """Whether its arguments have these shapes for images of any size."""
    varying: Mapping[str, tuple[int, ...]] | None = None
    """Axes of each argument whose lengths vary, of calls that are not fixed; None: all may."""


def export_vision_encoder(
    card: VlmCard, checkpoint: Path, *, again: bool = False
) -> tuple[VisionExport, bool]:
    """Export the vision encoder of a checkpoint, unless that was done before.

    Takes as much memory as the checkpoint's weights, and four times the encoder's in float32.

    Args:
        card: The model's card.
        checkpoint: Folder of its files.
        again: Replace an export that can be used.

    Returns:
        The export, and whether it is new.

    Raises:
        UsageError: By the card, the family's encoder is not exported.
        ExportError: It cannot be exported, or differs from torch; nothing is kept.
        BundleError: The checkpoint cannot be loaded.
    """
    if not card.onnx_vision:
        raise UsageError(
            f"{card.name}: by its card, the vision encoder of this family is not exported; it "
            "runs in torch"
        )
    return keep_export(checkpoint, partial(_write_export, card, checkpoint), again=again)


def keep_export(
    checkpoint: Path, write: Callable[[Path], None], *, again: bool = False
) -> tuple[VisionExport, bool]:
    """Write the export of a checkpoint to its folder, complete or not at all.

    Args:
        checkpoint: Folder of its files.
        write: Writes graphs and manifest to a folder.
        again: Replace an export that can be used.

    Returns:
        The export, and whether it is new.
    """
    target = export_folder(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        if not again:
            try:
                return open_export(checkpoint), False
            except BundleError:  # none, or of another version
                pass
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir()
        try:
            write(part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return open_export(checkpoint), True


def _write_export(card: VlmCard, checkpoint: Path, folder: Path) -> None:
    """Write the graphs and the manifest to a folder."""
    images = example_inputs(VlmProcessor(checkpoint, card))
    model = load_vision(checkpoint)
    expected: list[Any] = []
    recorded: list[dict[str, ModuleCall]] = []
    for inputs in images.values():
        features, calls = record_calls(model, inputs)
        expected.append(features)
        recorded.append(calls)
    parts = []
    for name, call in recorded[1].items():
        call = replace(call, fixed=len({shapes_of(calls[name]) for calls in recorded}) == 1)
        graph = f"{name}.onnx"
        try:
            constants = write_module(call, folder / graph)
        except Exception as error:  # the exporters' errors share no base class
            reason = message_of(error)
            raise ExportError(
                f"{card.name}: the {name} of its vision cannot be exported: {reason}; it runs in "
                "torch"
            ) from error
        parts.append(GraphPart(name, graph, constants, call.lengths))
    manifest = VisionManifest(
        FORMAT, card.name, card.family, installed(PACKAGES), tuple(parts), (),
        {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    )  # fmt: skip
    found = OnnxTower(model, VisionExport(folder, manifest), Device.cpu)
    checks = []
    for (size, inputs), features in zip(images.items(), expected, strict=True):
        difference, tokens = compare(features, found.encode(inputs))
        checks.append(VisionCheck(size, tokens, difference))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{card.name}: its exported vision encoder differs from torch by {difference:.0e} "
                f"of the features' scale for an image of {size[0]} x {size[1]} pixels, "
                f"{TOLERANCE:.0e} is allowed; it is not kept, and the encoder runs in torch"
            )
    with write_whole(folder / MANIFEST) as file:
        file.write(manifest_text(replace(manifest, checks=tuple(checks))).encode())


def example_image(size: tuple[int, int]) -> Image.Image:
    """Make an image with a gradient and noise."""
    width, height = size
    random = np.random.default_rng(width + height)
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 120, width))
    pixels = ramp[..., None] + random.integers(0, 16, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def example_inputs(processor: VlmProcessor) -> dict[tuple[int, int], Mapping[str, Tensor]]:
    """Process images of three sizes, and return the encoder's inputs by size.

    A dimension of one is fixed when a module is traced, so the second image is large if that is
    what it takes for the encoder to be given several at once.
    """
    first, second, third = SIZES
    inputs = {size: processor.prepare(example_image(size)).inputs for size in (second, LARGE)}
    if images_at_once(inputs[second]) == 1 < images_at_once(inputs[LARGE]):
        second = LARGE
    others = {size: processor.prepare(example_image(size)).inputs for size in (first, third)}
    return {first: others[first], second: inputs[second], third: others[third]}


def images_at_once(inputs: Mapping[str, Tensor]) -> int:
    """Return the number of images, or rows of patches, that the encoder gets for one image."""
    shape = inputs["pixel_values"].shape
    return shape[:-3].numel() if len(shape) > 3 else shape[0]


def load_vision(checkpoint: Path) -> Any:
    """Load a checkpoint with its vision modules in float32, without the language model's weights.

    What lies between the vision modules, such as a learned newline, stays too.
    """
    dtype = suggest(checkpoint, Device.cpu)
    model = load_checkpoint(checkpoint, Device.cpu, Precision(Dtype(dtype)))
    language = [model.get_decoder(), model.get_output_embeddings()]
    drop_weights(model, [module for module in language if module is not None])
    return model.float()


def record_calls(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Any, dict[str, ModuleCall]]:
    """Encode an image: its features, and the calls of the vision modules by their names."""
    calls: dict[str, ModuleCall] = {}

    def record(name: str, module: nn.Module, forward: Any) -> Any:
        signature = inspect.signature(forward)

        def recording(*arguments: Any, **named: Any) -> Any:
            given = named_arguments(signature, arguments, named)
            kept = copy.deepcopy(given)
            output = forward(*arguments, **named)
            calls[name] = ModuleCall(module, kept, lengths_of(output))
            return output

        return recording

    modules = vision_modules(model)
    for name, module in modules.items():
        module.forward = record(name, module, module.forward)
    try:
        features = TorchTower(model).encode(inputs)
    finally:
        for module in modules.values():
            del module.forward  # of the instance; that of the class is in force again
    return features, calls


def lengths_of(output: Any) -> dict[str, int]:
    """Return the lengths of the fields of a module's output that are sequences."""
    if not isinstance(output, Mapping):
        return {}
    return {name: len(value) for name, value in output.items() if isinstance(value, (list, tuple))}


def write_module(call: ModuleCall, path: Path) -> dict[str, Any]:
    """Write a module as a graph, for shapes of any size unless they are fixed.

    Returns:
        Its arguments that are no tensors.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    with quiet():
        exporter = OnnxExporter()
        arguments = {name: detached(value) for name, value in call.arguments.items()}
        config = OnnxConfig(dynamic=not call.fixed, dynamic_shapes=dynamic_shapes(call))
        exported = exporter.export(call.module, arguments, config)
        ClearMetadataAndDocStringPass()(exported.program)  # paths of this machine, stack traces
        exporter.save_program(exported.program, path)
    return constants_of(call)


def dynamic_shapes(call: ModuleCall) -> dict[str, dict[int, Any]] | None:
    """Return torch.export's description of the axes that vary; None: it is to find them."""
    if call.fixed or call.varying is None:
        return None
    auto = torch.export.Dim.AUTO
    return {name: dict.fromkeys(axes, auto) for name, axes in call.varying.items()}


def shapes_of(call: ModuleCall) -> tuple[tuple[str, torch.Size], ...]:
    """Return the shapes of the tensors of a call."""
    return tuple(
        (name, value.shape) for name, value in call.arguments.items() if isinstance(value, Tensor)
    )


def constants_of(call: ModuleCall) -> dict[str, Any]:
    """Return the arguments of a call that are no tensors, and so are fixed in its graph."""
    return {name: value for name, value in call.arguments.items() if not isinstance(value, Tensor)}


def detached(value: Any) -> Any:
    """Return a tensor that tracing may use, which those of inference mode are not."""
    return value.clone() if isinstance(value, Tensor) else value


def compare(expected: Any, found: Any) -> tuple[float, int]:
    """Compare features: the largest relative difference, and the number of image tokens."""
    largest, tokens = 0.0, 0
    for name in expected:
        wanted, got = flat(expected[name]), flat(found[name])
        if wanted.shape != got.shape:
            return float("inf"), 0
        scale = wanted.abs().max().item() or 1.0
        difference = (wanted - got).abs().max().item() / scale
        if not difference <= largest:  # or not a number
            largest = difference
        tokens = tokens or len(wanted)
    return largest, tokens


def flat(features: Any) -> Tensor:
    """Return a field of features as (T, H), or (layers * T, H)."""
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return torch.cat([flat(each) for each in features])


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters from printing and warning; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
