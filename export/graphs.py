"""Torch -> ONNX, with the comparison that makes an export count.

A graph is compared with its torch definition on random inputs of several sizes, none among them,
before anyone may use it. It does not know how files are written, nor about cards or bundles.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from regionqa.errors import ExportError
from regionqa.export.onnxfiles import save_model
from regionqa.export.parts import RegionModule, VisionModule
from regionqa.export.running import run_graph, set_aside

TOLERANCE = 1e-4
"""Largest difference between torch and ONNX that is let through, for values of order one."""

ROUNDINGS = 4
"""Of torch's own distances from double precision, how many a graph may be away from torch."""
CASES, FEW_CASES = ((1, 0), (1, 1), (3, 7), (2, 40)), ((1, 0), (2, 7))
"""Pictures and regions that a region graph is compared on; few where one picture takes minutes."""
LARGE = 100_000_000
"""Weights from which on an encoder is so slow (GPT4RoI's has 299 M)."""

OPSET = 20
Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class ParityReport:
    """How far one graph's outputs are from torch's on random inputs."""

    graph: str
    difference: float
    """Largest |ONNX - torch| over all outputs and cases, as a share of the output's largest
    value where that exceeds one."""
    cases: tuple[str, ...]
    """Sizes that were compared, such as "3 pictures"."""
    rounding: float = 0.0
    """How far torch itself is from double precision, by the same measure; found only where the
    difference exceeds the tolerance: deep networks may amplify what is rounded."""

    def check(self, tolerance: float = TOLERANCE) -> None:
        """ExportError where the difference exceeds the tolerance (or is not a number).

        Two ways to round may differ by more, but hardly by more than torch and the exact value.
        """
        if not self.difference <= max(tolerance, ROUNDINGS * self.rounding):
            raise ExportError(
                f"{self.graph}: differs from torch by {self.difference:.1e}, "
                f"{tolerance:.0e} is allowed; nothing was written"
            )


class RegionGraph(nn.Module):
    """A region encoder with its levels as separate inputs, as an ONNX graph needs them."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> Tensor:
        """Levels, then boxes (N, 4) and image_index (N,) -> region tokens (N, K, H)."""
        *levels, boxes, image_index = inputs
        tokens: Tensor = self.encoder(levels, boxes, image_index)
        return tokens


def export_vision(vision: VisionModule, path: Path) -> ParityReport:
    """Write `pixel_values` -> `image_tokens`, `level0`..., and compare it."""
    write_vision(vision, path)
    return compare_vision(vision, path)


def write_vision(vision: VisionModule, path: Path) -> None:
    """Write the graph, with a dynamic number of pictures; uncompared."""
    size = vision.input_size
    names = ["image_tokens", *level_names(len(vision.level_shapes))]
    batch = torch.export.Dim("batch")
    pixel_values = torch.randn(2, 3, size, size)
    write_graph(vision, (pixel_values,), ["pixel_values"], names, ({0: batch},), path)


def compare_vision(vision: VisionModule, path: Path) -> ParityReport:
    """How far a vision graph is from its torch definition."""
    size = vision.input_size
    names = ["image_tokens", *level_names(len(vision.level_shapes))]
    cases = {
        f"{count} pictures": {"pixel_values": rng_normal((count, 3, size, size), count)}
        for count in (1, 3)
    }
    return compare(vision, path, names, cases)


def export_region(region: RegionModule, path: Path) -> ParityReport:
    """Write sources, `boxes`, `image_index` -> `region_tokens`, and compare it."""
    write_region(region, path)
    return compare_region(region, path)


def write_region(region: RegionModule, path: Path) -> None:
    """Write the graph, with a dynamic number of boxes, none too; uncompared.

    The sources are `level0`..., or `pixel_values` of an encoder that looks at pixels of its own.
    """
    batch, regions = torch.export.Dim("batch"), torch.export.Dim("regions")
    example = region_case(region, pictures=2, regions=3, seed=0)
    free = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    shapes = tuple(
        {0: batch, **{axis: side for axis, side in free.items() if shape[axis - 1] is None}}
        for shape in region.source_shapes
    )
    names = [*source_names(region), "boxes", "image_index"]
    arguments = tuple(torch.from_numpy(example[name]) for name in names)
    dynamic = ((*shapes, {0: regions}, {0: regions}),)
    write_graph(RegionGraph(region), arguments, names, ["region_tokens"], dynamic, path)


def compare_region(region: RegionModule, path: Path) -> ParityReport:
    """How far a region graph is from its torch definition."""
    weights = sum(weight.numel() for weight in region.parameters())
    cases = {
        f"{pictures} pictures with {count} regions": region_case(
            region, pictures, count, seed=count
        )
        for pictures, count in (FEW_CASES if weights > LARGE else CASES)
    }
    return compare(RegionGraph(region), path, ["region_tokens"], cases)


def source_names(region: RegionModule) -> list[str]:
    """Names of a region graph's first inputs."""
    return ["pixel_values"] if region.reads_pixels else level_names(len(region.source_shapes))


def level_names(count: int) -> list[str]:
    """Names of the feature maps in both graphs."""
    return [f"level{index}" for index in range(count)]


def region_case(
    region: RegionModule, pictures: int, regions: int, seed: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Random sources and boxes; boxes of every size, some reaching outside the picture."""
    rng = np.random.default_rng(seed)
    varied = [int(side) for side in rng.integers(96, 320, 2)]  # for sides that may vary
    case: dict[str, npt.NDArray[np.generic]] = {}
    for name, (channels, *fixed) in zip(source_names(region), region.source_shapes, strict=True):
        shape = [side or other for side, other in zip(fixed, varied, strict=True)]
        case[name] = rng.standard_normal((pictures, channels, *shape), np.float32)
    corners = rng.uniform(-0.1, 0.9, (regions, 2))
    sides = rng.uniform(0.001, 1.0, (regions, 2))
    case["boxes"] = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    case["image_index"] = rng.integers(0, pictures, regions)
    return case


def rng_normal(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal numbers, the same at every call."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def write_graph(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: tuple[object, ...],
    path: Path,
) -> None:
    """Export in evaluation mode; weights are stored in half precision where that loses nothing."""
    with warnings.catch_warnings():
        # inputs share a dimension on purpose: ONNX Runtime then checks that they agree
        warnings.filterwarnings("ignore", message=".*shares the same shape constraints")
        program = torch.onnx.export(
            module.eval(),
            arguments,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            optimize=False,  # it would fold BatchNorm into weights that float16 cannot hold
            verbose=False,
        )
    assert program is not None
    initializers = program.model.graph.initializers
    weights = {}  # torch's own memory, not copied
    for name in list(initializers):
        value = initializers.pop(name).const_value
        assert value is not None
        weights[name] = value.numpy()
    model = program.model_proto
    strip_traces(model)
    save_model(model, weights, path)


def strip_traces(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes on the source (paths and stack traces of whoever exported)."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def halve(module: nn.Module) -> None:
    """Round all floating weights to what float16 holds, in place; they stay float32."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())


@torch.inference_mode()
def compare(
    module: nn.Module, path: Path, outputs: list[str], cases: Mapping[str, Arrays]
) -> ParityReport:
    """Run torch and ONNX Runtime on the same inputs, given in the order of torch's arguments."""
    wanted = []
    for case in cases.values():
        found = module.eval()(*(torch.from_numpy(np.asarray(value)) for value in case.values()))
        wanted.append(found if isinstance(found, tuple) else (found,))
    with set_aside(module, path):
        actual = run_graph(path, outputs, list(cases.values()))
    worst = largest(wanted, actual)
    rounding = 0.0
    if TOLERANCE < worst < float("inf"):
        exact = copy.deepcopy(module).double()
        precise = []
        for case in cases.values():
            given = (torch.from_numpy(np.asarray(value)) for value in case.values())
            found = exact(*(v.double() if v.is_floating_point() else v for v in given))
            precise.append(found if isinstance(found, tuple) else (found,))
        rounding = largest(wanted, [[v.float().numpy() for v in found] for found in precise])
    return ParityReport(path.name, worst, tuple(cases), rounding)


def largest(
    wanted: Sequence[Sequence[Tensor]], given: Sequence[Sequence[npt.NDArray[np.float32]]]
) -> float:
    """The largest `relative_difference` of all cases' outputs."""
    return max(
        relative_difference(want.numpy(), got)
        for expected, values in zip(wanted, given, strict=True)
        for want, got in zip(expected, values, strict=True)
    )


def relative_difference(want: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    """Largest difference, as a share of the largest wanted value where that exceeds one.

    Infinite where shapes differ or a value is not finite.
    """
    if want.shape != got.shape or not (np.isfinite(want).all() and np.isfinite(got).all()):
        return float("inf")
    if not want.size:
        return 0.0
    return float(np.abs(want - got).max() / max(1.0, float(np.abs(want).max())))
