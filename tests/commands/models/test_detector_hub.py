"""Detectors of the Hub as a user has them: downloaded, exported, and used offline."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from helpers.hub_server import Hub

if TYPE_CHECKING:
    from conftest import Command

NAME, REPO = "yolos-tiny", "hustvl/yolos-tiny"
ALL = ("--min-score", "0", "--device", "cpu")


def test_download_detect_and_use_offline(
    regionqa: "Command", hub: Hub, tiny_detector: Callable[[str], Path], cat: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    local = tmp_path / "local"
    shutil.copytree(tiny_detector("yolos"), local)
    (local / "onnx.gguf").write_bytes(b"x")
    for repo in (REPO, "ann/mine"):
        hub.add(repo, local, licence="apache-2.0")
    planned = regionqa("download", NAME, "--dry-run")
    assert planned.status == 0 and planned.lines[-1].endswith(f"detect IMAGE --model {NAME}")
    ran = regionqa("download", NAME)
    licence, exporting, *compared = ran.err.splitlines()
    assert (ran.status, licence) == (0, f"licence of {REPO}: apache-2.0")
    assert exporting == f"exporting the detector {NAME} to ONNX"
    assert [line.partition(":")[0] for line in compared] == [f"detector {NAME}"] * 3
    (folder,) = ran.lines
    assert not (Path(folder) / "onnx.gguf").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    found = regionqa("detect", cat, *ALL, "--model", NAME)
    assert (found.status, len(found.lines) > 3) == (0, True), found.err
    for model in (REPO, folder):
        assert regionqa("detect", cat, *ALL, "--model", model).out == found.out
    again = regionqa("detect", cat, *ALL, "--model", NAME, "--vision-runtime", "torch")
    assert len(again.lines) == len(found.lines)
    assert len(hub.requests) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetched = regionqa("detect", cat, *ALL, "--model", "ann/mine")
    assert len(fetched.lines) == len(found.lines)  # fetched on first use, as other models are
    exported = regionqa("export", NAME)
    assert (exported.status, exported.err.splitlines()[0]) == (0, exporting)
