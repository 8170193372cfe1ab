"""A tiny checkpoint whose vision encoder is exported to ONNX, once per test run."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from helpers.vlm.checkpoints import WRITERS


@dataclass(frozen=True)
class ExportedCheckpoint:
    """What `regionqa export` made of a checkpoint."""

    folder: Path
    """The checkpoint."""
    home: Path
    """HF_HOME with the export."""
    status: int
    out: str
    err: str
    """Exit status and output of the command."""


def use_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let exports be looked for, and written, in this HF_HOME."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(home))


def exported_checkpoint(family: str, root: Path) -> ExportedCheckpoint:
    """Write and export a checkpoint, or return what another process has made in this folder."""
    from regionqa.cli import main

    folder, home, record = root / family, root / "home", root / f"{family}.json"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{family}.lock"):
        if not record.exists():
            WRITERS[family](folder)
            out, err = io.StringIO(), io.StringIO()
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
                use_home(patch, home)
                status = main(["export", str(folder)])
            record.write_text(json.dumps([status, out.getvalue(), err.getvalue()]))
    return ExportedCheckpoint(folder, home, *json.loads(record.read_text()))
