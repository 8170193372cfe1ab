"""Graphs that the processes of a test run share: every architecture is traced once.

Tracing takes seconds whatever a module's size, and most tests that write a bundle write modules of
the same few architectures.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from filelock import FileLock

from regionqa.export import bundle as bundle_module
from regionqa.export import networks as networks_module
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.onnx.export import export_region, export_vision
from regionqa.export.onnx.verify import ParityReport
from regionqa.export.sources import published as published_module
from regionqa.export.vlm import vision as vision_module
from regionqa.export.vlm.vision import write_module

Module = VisionModule | RegionModule


class GraphCache:
    """Exports with the signatures of `export_vision` and `export_region`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def export_vision(
        self, vision: VisionModule, path: Path, like: Path | None = None
    ) -> ParityReport:
        """As regionqa.export.onnx.export.export_vision."""
        return self._export(export_vision, vision, path, like)

    def export_region(
        self, region: RegionModule, path: Path, like: Path | None = None
    ) -> ParityReport:
        """As regionqa.export.onnx.export.export_region."""
        return self._export(export_region, region, path, like)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let bundles be written with cached graphs."""
        for module in (bundle_module, published_module):
            monkeypatch.setattr(module, "export_vision", self.export_vision)
            monkeypatch.setattr(module, "export_region", self.export_region)
        for module in (vision_module, networks_module):
            monkeypatch.setattr(module, "write_module", self.write_module)

    def write_module(self, call: vision_module.ModuleCall, path: Path) -> dict[str, Any]:
        """As regionqa.export.vlm.vision.write_module, once for modules with equal weights."""
        place = self.folder / f"vlm-{weights(call)}"
        with FileLock(place.with_suffix(".lock")):
            if not place.exists():
                partial = place.with_suffix(".partial")
                partial.mkdir(exist_ok=True)
                write_module(call, partial / path.name)
                partial.rename(place)
        for file in place.iterdir():
            copyfile(file, path.parent / file.name)
        return vision_module.constants_of(call)

    def _export(
        self, export: Callable[..., ParityReport], module: Module, path: Path, like: Path | None
    ) -> ParityReport:
        graph = self.folder / f"{architecture(module)}.onnx"
        with FileLock(graph.with_suffix(".lock")):
            report = export(module, path, like or (graph if graph.exists() else None))
            if report.passed and not graph.exists():
                partial = graph.with_suffix(".partial")
                copyfile(path, partial)
                partial.rename(graph)
        return report


def architecture(module: Module) -> str:
    """An identifier of a module's class, config and layers."""
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    text = f"{type(module).__name__} {module.config} {module!r} {shapes}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def weights(call: vision_module.ModuleCall) -> str:
    """An identifier of a module's class, weights and arguments."""
    digest = hashlib.sha256(
        f"{type(call.module)} {vision_module.constants_of(call)} {call.fixed}".encode()
    )
    for name, value in call.module.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:32]


def shared_folder(own: Path) -> Path:
    """The folder that all processes of a run share; `own`: pytest's base folder of this process."""
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
