"""Checkpoints that survive a kill while they are written."""

from collections.abc import Callable
from pathlib import Path

import torch

Log = Callable[[str], None]
"""Called with each line of the log."""


def save_atomically(state: dict[str, object], path: Path) -> None:
    """Write beside the file, then rename: a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
