"""Checkpoints of vision-language models with random weights, in the layout of released ones.

Each has its family's processor files, special tokens and a chat template of the family's form. A
random model proves plumbing only; what it is given is compared with the family's own processor.
"""

from collections.abc import Callable
from pathlib import Path

from helpers.vlm.qwen import (
    write_qwen2_5_vl,
    write_qwen3_5,
    write_qwen3_5_moe,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
from helpers.vlm.tiles import write_internvl, write_lfm2_vl, write_smolvlm

WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": write_qwen3_vl,
    "qwen3_vl_moe": write_qwen3_vl_moe,
    "qwen3_5": write_qwen3_5,
    "qwen3_5_moe": write_qwen3_5_moe,
    "qwen2_5_vl": write_qwen2_5_vl,
    "internvl": write_internvl,
    "smolvlm": write_smolvlm,
    "lfm2_vl": write_lfm2_vl,
}
"""Writers by `model_type`."""
