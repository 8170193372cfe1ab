"""Compare ONNX graphs with their torch definitions on random inputs of several sizes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regionqa.errors import ExportError
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.detection import DetectionHead
from regionqa.export.onnx.interface import RegionGraph, level_names, source_names
from regionqa.export.onnx.process import run_graph, set_aside

TOLERANCE = 1e-4
"""Largest allowed difference between torch and ONNX, for values of order one."""

ROUNDINGS = 4
"""Largest allowed difference, in multiples of torch's own rounding error; see `ParityReport`."""
CASES, FEW_CASES = ((1, 0), (1, 1), (3, 7), (2, 40)), ((1, 0), (2, 7))
"""Numbers of images and regions in comparisons of region graphs; few for large encoders."""
LARGE = 100_000_000
"""Number of weights from which an encoder counts as large (GPT4RoI's has 299 M)."""


Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class ParityReport:
    """The comparison of one graph with torch."""

    graph: str
    difference: float
    """Largest |ONNX - torch| over all outputs and cases, relative to the output's largest value if
    that exceeds one."""
    cases: tuple[str, ...]
    """The compared sizes, such as "3 images"."""
    rounding: float = 0.0
    """Difference of torch from double precision, computed only if `difference` exceeds the
    tolerance: deep networks may amplify rounding errors."""

    @property
    def summary(self) -> str:
        """The report as one line for people."""
        cases = ", ".join(self.cases)
        return f"{self.graph}: differs from torch by {self.difference:.1e} ({cases})"

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within the tolerance.

        A larger difference is allowed up to a multiple of torch's own rounding error.
        """
        return self.difference <= max(TOLERANCE, ROUNDINGS * self.rounding)

    def check(self) -> None:
        """Raise ExportError if the graph did not pass."""
        if not self.passed:
            raise ExportError(
                f"{self.graph}: differs from torch by {self.difference:.1e}, "
                f"{TOLERANCE:.0e} is allowed; nothing was written"
            )


def compare_vision(vision: VisionModule, path: Path) -> ParityReport:
    """Compare a vision graph with its torch definition."""
    size = vision.input_size
    names = ["image_tokens", *level_names(len(vision.level_shapes))]
    cases = {
        f"{count} images": {"pixel_values": rng_normal((count, 3, size, size), count)}
        for count in (1, 3)
    }
    return compare(vision, path, names, cases)


def compare_region(region: RegionModule, path: Path) -> ParityReport:
    """Compare a region graph with its torch definition."""
    weights = sum(weight.numel() for weight in region.parameters())
    cases = {
        f"{images} images with {count} regions": region_case(region, images, count, seed=count)
        for images, count in (FEW_CASES if weights > LARGE else CASES)
    }
    return compare(RegionGraph(region), path, ["region_tokens"], cases)


def region_case(
    region: RegionModule, images: int, regions: int, seed: int
) -> dict[str, npt.NDArray[np.generic]]:
    """Random sources, and boxes of all sizes, some of which extend beyond the image."""
    rng = np.random.default_rng(seed)
    varied = [int(side) for side in rng.integers(96, 320, 2)]  # for dynamic sides
    case: dict[str, npt.NDArray[np.generic]] = {}
    for name, (channels, *fixed) in zip(source_names(region), region.source_shapes, strict=True):
        shape = [side or other for side, other in zip(fixed, varied, strict=True)]
        case[name] = rng.standard_normal((images, channels, *shape), np.float32)
    corners = rng.uniform(-0.1, 0.9, (regions, 2))
    sides = rng.uniform(0.001, 1.0, (regions, 2))
    case["boxes"] = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    case["image_index"] = rng.integers(0, images, regions)
    return case


def compare_detector(detector: DetectionHead, path: Path) -> ParityReport:
    """Compare a detection graph with its torch definition."""
    cases = {f"{count} images": detector_case(detector, count, seed=count) for count in (1, 3)}
    return compare(detector, path, ["boxes", "scores"], cases)


def detector_case(
    detector: DetectionHead, images: int, seed: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Random levels by name."""
    shapes = detector.source_shapes
    return {
        name: rng_normal((images, *shape), seed + number)
        for number, (name, shape) in enumerate(zip(level_names(len(shapes)), shapes, strict=True))
    }


def rng_normal(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """Standard normal values from a seed."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@torch.inference_mode()
def compare(
    module: nn.Module, path: Path, outputs: list[str], cases: Mapping[str, Arrays]
) -> ParityReport:
    """Run torch and ONNX Runtime on the same inputs.

    Args:
        module: The torch definition.
        path: The ONNX file.
        outputs: Names of the graph's outputs, in the module's order.
        cases: Inputs by case, in the order of the module's arguments.
    """
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
    """Return the largest `relative_difference` over all cases and outputs."""
    return max(
        relative_difference(want.numpy(), got)
        for expected, values in zip(wanted, given, strict=True)
        for want, got in zip(expected, values, strict=True)
    )


def relative_difference(want: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    """Largest difference, relative to the largest expected value if that exceeds one.

    Infinite if shapes differ or a value is not finite.
    """
    if want.shape != got.shape or not (np.isfinite(want).all() and np.isfinite(got).all()):
        return float("inf")
    if not want.size:
        return 0.0
    return float(np.abs(want - got).max() / max(1.0, float(np.abs(want).max())))
