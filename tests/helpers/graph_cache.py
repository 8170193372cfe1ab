"""Graphs that the processes of a test run share: every distinct module is exported once.

Exporting takes seconds whatever a module's size, and most tests that write a bundle write the same
few modules. A cached graph is a copy of the file that the export wrote, with its report.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from regionqa.export import bundle as bundle_module
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.onnx.export import export_region, export_vision
from regionqa.export.onnx.verify import ParityReport
from regionqa.export.sources import published as published_module

Module = VisionModule | RegionModule
LARGEST = 50_000_000
"""Number of weights above which a module is exported every time: few tests have such."""


class GraphCache:
    """Exports with the signatures of `export_vision` and `export_region`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def export_vision(self, vision: VisionModule, path: Path) -> ParityReport:
        """As regionqa.export.onnx.export.export_vision."""
        return self._export(export_vision, vision, path)

    def export_region(self, region: RegionModule, path: Path) -> ParityReport:
        """As regionqa.export.onnx.export.export_region."""
        return self._export(export_region, region, path)

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let bundles be written with cached graphs."""
        for module in (bundle_module, published_module):
            monkeypatch.setattr(module, "export_vision", self.export_vision)
            monkeypatch.setattr(module, "export_region", self.export_region)

    def _export(
        self, export: Callable[..., ParityReport], module: Module, path: Path
    ) -> ParityReport:
        if sum(value.numel() for value in module.state_dict().values()) > LARGEST:
            return export(module, path)
        key = digest(module)
        graph, report = self.folder / f"{key}.onnx", self.folder / f"{key}.json"
        with FileLock(self.folder / f"{key}.lock"):
            if not report.exists():  # written last
                found = export(module, graph)
                report.write_text(json.dumps(asdict(found)), encoding="utf-8")
        shutil.copyfile(graph, path)
        table = json.loads(report.read_text(encoding="utf-8"))
        return ParityReport(**{**table, "graph": path.name, "cases": tuple(table["cases"])})


def digest(module: Module) -> str:
    """An identifier of a module's class, config and weights."""
    found = hashlib.sha256(f"{type(module).__name__} {module.config}".encode())
    for name, value in module.state_dict().items():
        array = value.detach().cpu().contiguous().numpy()
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:32]


def shared_folder(own: Path) -> Path:
    """The folder that all processes of a run share; `own`: pytest's base folder of this process."""
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
