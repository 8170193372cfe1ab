"""Training's files, and its lines: written so that a kill loses nothing.

It does not know what is saved.
"""

from collections.abc import Callable
from pathlib import Path

import torch

Log = Callable[[str], None]
"""What takes a line of a training's log."""


def save_atomically(state: dict[str, object], path: Path) -> None:
    """Write beside the file, then rename: a kill leaves the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
