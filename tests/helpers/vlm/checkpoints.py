"""Checkpoints of vision-language models with random weights, in the layout of released ones.

Each has its family's processor files, special tokens and a chat template of the family's form. A
random model proves plumbing only; what it is given is compared with the family's own processor.
"""

from collections.abc import Callable
from pathlib import Path

from helpers.vlm.qwen import write_qwen3_vl

WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": write_qwen3_vl,
}
"""Writers by `model_type`."""
