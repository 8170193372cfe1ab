"""Export torch encoders to ONNX files and compare them with torch."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import onnx
import torch
from optimum.utils import DummyVisionInputGenerator, NormalizedVisionConfig
from torch import Tensor, nn

from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.detection import DetectionHead
from regionqa.export.onnx.files import read_model, save_model
from regionqa.export.onnx.interface import RegionGraph, level_names, source_names
from regionqa.export.onnx.verify import (
    ParityReport,
    compare_detector,
    compare_region,
    compare_vision,
    detector_case,
    region_case,
)

OPSET = 20
MIN_SIDE = 16
"""Least height and width, in pixels, for which encoders with dynamic sides are traced."""


def export_vision(vision: VisionModule, path: Path, like: Path | None = None) -> ParityReport:
    """Write the vision graph (see `write_vision`) and compare it with torch.

    Args:
        vision: The encoder.
        path: The graph's file.
        like: Graph of an encoder of the same architecture. Its nodes are kept and its weights
            replaced, which saves the time of tracing, unless the result differs from torch.
    """
    if like is not None and replace_weights(vision, like, path):
        report = compare_vision(vision, path)
        if report.passed:
            return report
    write_vision(vision, path)
    return compare_vision(vision, path)


def write_vision(vision: VisionModule, path: Path) -> None:
    """Write `pixel_values` -> `image_tokens`, `level0`, ..., with a dynamic number of images."""
    sizes = NormalizedVisionConfig(SimpleNamespace(image_size=vision.input_size, num_channels=3))
    example = DummyVisionInputGenerator("", sizes, batch_size=2).generate("pixel_values")
    names = ["image_tokens", *level_names(len(vision.level_shapes))]
    batch = torch.export.Dim("batch")
    write_graph(vision, (example,), ["pixel_values"], names, ({0: batch},), path)


def export_region(region: RegionModule, path: Path, like: Path | None = None) -> ParityReport:
    """Write the region graph (see `write_region`) and compare it with torch.

    Args:
        region: The encoder.
        path: The graph's file.
        like: As in `export_vision`.
    """
    if like is not None and replace_weights(RegionGraph(region), like, path):
        report = compare_region(region, path)
        if report.passed:
            return report
    write_region(region, path)
    return compare_region(region, path)


def write_region(region: RegionModule, path: Path) -> None:
    """Write sources, `boxes`, `image_index` -> `region_tokens`.

    The number of boxes is dynamic and may be 0. Sources are `level0`, ..., or `pixel_values` for an
    encoder that reads its own pixels.
    """
    batch, regions = torch.export.Dim("batch"), torch.export.Dim("regions")
    example = region_case(region, images=2, regions=3, seed=0)
    # without a minimum torch traces twice: the first time to find that strides need some pixels
    free = {axis: torch.export.Dim(f"side{axis}", min=MIN_SIDE) for axis in (2, 3)}
    shapes = tuple(
        {0: batch, **{axis: side for axis, side in free.items() if shape[axis - 1] is None}}
        for shape in region.source_shapes
    )
    names = [*source_names(region), "boxes", "image_index"]
    arguments = tuple(torch.from_numpy(example[name]) for name in names)
    dynamic = ((*shapes, {0: regions}, {0: regions}),)
    write_graph(RegionGraph(region), arguments, names, ["region_tokens"], dynamic, path)


def export_detector(detector: DetectionHead, path: Path) -> ParityReport:
    """Write `level0`, ... -> `boxes`, `scores`, and compare the graph with torch.

    The number of images is dynamic.
    """
    example = detector_case(detector, images=2, seed=0)
    arguments = tuple(torch.from_numpy(value) for value in example.values())
    dynamic = (tuple({0: torch.export.Dim("batch")} for _ in arguments),)
    write_graph(detector, arguments, list(example), ["boxes", "scores"], dynamic, path)
    return compare_detector(detector, path)


def write_graph(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[object, ...],
    path: Path,
) -> None:
    """Export a module in evaluation mode; weights that float16 represents exactly are float16."""
    with warnings.catch_warnings():
        # inputs share a dimension intentionally: ONNX Runtime then checks that they agree
        warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            optimize=False,  # it would fold BatchNorm into weights that float16 cannot represent
            verbose=False,
        )
    assert program is not None
    initializers = program.model.graph.initializers
    weights = {}  # torch's memory, not copied
    for name in list(initializers):
        value = initializers.pop(name).const_value
        assert value is not None
        weights[name] = value.numpy()
    model = program.model_proto
    strip_traces(model)
    save_model(model, weights, path)


def replace_weights(module: nn.Module, like: Path, path: Path) -> bool:
    """Write a graph with a module's weights in place of its own.

    Args:
        module: The module.
        like: A graph that `write_graph` wrote of a module of the same architecture.
        path: The new file.

    Returns:
        Whether the graph has all of the module's weights, by name and shape; else nothing is
        written.
    """
    model, stored = read_model(like)
    weights = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    needed = {name: weights[name].shape for name, _ in module.named_parameters()}
    if not needed.items() <= {name: value.shape for name, value in stored.items()}.items():
        return False
    save_model(model, {name: weights.get(name, value) for name, value in stored.items()}, path)
    return True


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's metadata: source paths and stack traces of this machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def round_to_float16(module: nn.Module) -> None:
    """Round all floating-point weights to float16 values in place; they stay float32."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())
