"""Checkpoints of vision-language models with random weights, in the layout of released ones.

Each has its family's processor files, special tokens and a chat template of the family's form. A
random model proves plumbing only; what it is given is compared with the family's own processor.
"""

from collections.abc import Callable
from pathlib import Path

from helpers.vlm.florence import write_florence2
from helpers.vlm.gemma import write_gemma4, write_gemma4_unified, write_paligemma
from helpers.vlm.llava import write_llava, write_llava_onevision
from helpers.vlm.qwen import (
    write_qwen2_5_vl,
    write_qwen3_5,
    write_qwen3_5_moe,
    write_qwen3_vl,
    write_qwen3_vl_moe,
)
from helpers.vlm.tiles import write_internvl, write_lfm2_vl, write_smolvlm

WRITERS: dict[str, Callable[[Path], Path]] = {
    "florence2": write_florence2,
    "gemma4": write_gemma4,
    "gemma4_unified": write_gemma4_unified,
    "internvl": write_internvl,
    "lfm2_vl": write_lfm2_vl,
    "llava": write_llava,
    "llava_onevision": write_llava_onevision,
    "paligemma": write_paligemma,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen3_5": write_qwen3_5,
    "qwen3_5_moe": write_qwen3_5_moe,
    "qwen3_vl": write_qwen3_vl,
    "qwen3_vl_moe": write_qwen3_vl_moe,
    "smolvlm": write_smolvlm,
}
"""Writers by `model_type`."""
