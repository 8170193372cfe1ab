"""Exports of detectors and segmenters: graphs, their comparison with torch, and the manifest."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from regionqa.errors import ExportError, message_of
from regionqa.export.vlm.vision import (
    PACKAGES,
    TOLERANCE,
    ModuleCall,
    installed,
    shapes_of,
    write_module,
)
from regionqa.files import write_whole
from regionqa.vlm.cards import model_type
from regionqa.vlm.vision_exports import (
    FORMAT,
    MANIFEST,
    GraphPart,
    VisionCheck,
    VisionExport,
    VisionManifest,
    manifest_text,
)

Check = tuple[tuple[int, int], int, Callable[[VisionExport], float]]
"""Size of an image, number of its boxes or points, and what computes the difference from torch."""


def write_part(name: str, part: str, calls: Sequence[ModuleCall], folder: Path) -> GraphPart:
    """Write a network, or a part of one, as a graph.

    Args:
        name: The model's name, for messages.
        part: Name of the part.
        calls: Its calls for several images; it is traced with the second, and what has the same
            shape in all of them is fixed.
        folder: Where the graph is written.

    Raises:
        ExportError: It cannot be exported.
    """
    graph = f"{part}.onnx"
    fixed = len({shapes_of(call) for call in calls}) == 1
    call = replace(calls[1], fixed=fixed, varying=varying_axes([each.arguments for each in calls]))
    try:
        write_module(call, folder / graph)
    except Exception as error:  # the exporters' errors share no base class
        raise ExportError(
            f"{name}: cannot be exported: {message_of(error)}; it runs in torch"
        ) from error
    return GraphPart(part, graph)


def check_parts(
    name: str, checkpoint: Path, parts: Iterable[GraphPart], checks: Sequence[Check], folder: Path
) -> None:
    """Compare graphs with torch, and write the manifest of an export.

    Args:
        name: The model's name.
        checkpoint: Folder of its files.
        parts: What was written by `write_part`.
        checks: What is compared.
        folder: Where the graphs are.

    Raises:
        ExportError: They differ.
    """
    manifest = VisionManifest(
        FORMAT, name, model_type(checkpoint) or "", installed(PACKAGES), tuple(parts), (),
        {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    )  # fmt: skip
    export = VisionExport(folder, manifest)
    done = []
    for size, count, compare in checks:
        difference = compare(export)
        done.append(VisionCheck(size, count, difference))
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{name}: its exported network differs from torch by {difference:.0e} for an image "
                f"of {size[0]} x {size[1]} pixels, {TOLERANCE:.0e} is allowed; it is not kept, "
                "and it runs in torch"
            )
    with write_whole(folder / MANIFEST) as file:
        file.write(manifest_text(replace(manifest, checks=tuple(done))).encode())


def varying_axes(arguments: Sequence[dict[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    """Return the axes of each argument whose lengths differ between calls."""
    first, *others = arguments
    return {
        name: tuple(
            axis
            for axis, length in enumerate(value.shape)
            if any(other[name].shape[axis] != length for other in others)
        )
        for name, value in first.items()
    }
