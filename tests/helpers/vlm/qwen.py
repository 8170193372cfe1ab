"""Tiny checkpoints of the Qwen families."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from helpers.vlm.building import CHATML, byte_tokenizer, chatml, save

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
           "<|image_pad|>", "<|video_pad|>")  # fmt: skip
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
"""Text of an image in the chat templates."""
OPEN, NO_THOUGHT = "<think>\n", "<think>\n\n</think>\n\n"
"""Beginning of an answer with thoughts, and of one without."""


def qwen_tokenizer(further: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer with Qwen's special tokens."""
    special = (*SPECIAL, *further)
    return byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Ids of special tokens, as the configs name them."""
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def image_processor(patch: int, least: int, most: int) -> Any:
    """The image processor of all Qwen families; limits are numbers of pixels."""
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(
        patch_size=patch, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": least, "longest_edge": most},
    )  # fmt: skip


def write_qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: grid of patches, M-RoPE, deepstack features."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return _write_qwen3_vl(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, {})


def write_qwen3_vl_moe(folder: Path) -> Path:
    """Qwen3-VL with a mixture of experts."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _write_qwen3_vl(folder, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, experts)


def _write_qwen3_vl(folder: Path, config_type: Any, kind: Any, sizes: Mapping[str, int]) -> Path:
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = qwen_tokenizer()
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 16, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5e6},
        **sizes,
    }  # fmt: skip
    config = config_type(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids(tokenizer)
    )
    processor = Qwen3VLProcessor(
        image_processor(16, 65536, 16777216),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=chatml(IMAGE),
    )
    return save(folder, kind, config, processor, tokenizer.eos_token_id)


def write_qwen3_5(folder: Path) -> Path:
    """Qwen3.5: recurrent states beside attention, M-RoPE over a part of each head."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    return _write_qwen3_5(
        folder, Qwen3_5Config, Qwen3_5ForConditionalGeneration, {"intermediate_size": 64}
    )


def write_qwen3_5_moe(folder: Path) -> Path:
    """Qwen3.5 with a mixture of experts."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    experts = {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    }  # fmt: skip
    return _write_qwen3_5(folder, Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration, experts)


def _write_qwen3_5(folder: Path, config_type: Any, kind: Any, sizes: Mapping[str, int]) -> Path:
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    tokenizer = qwen_tokenizer(["<think>", "</think>"])
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 16, "num_position_embeddings": 64,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True,
            "partial_rotary_factor": 0.25, "rope_theta": 1e7,
        },
        **sizes,
    }  # fmt: skip
    config = config_type(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings="num_experts" not in sizes,
        **token_ids(tokenizer),
    )
    start = "<|im_start|>assistant\n"
    thoughts = (
        f"{start}{{% if enable_thinking is defined and not enable_thinking %}}{NO_THOUGHT}"
        f"{{% else %}}{OPEN}{{% endif %}}"
    )
    processor = Qwen3VLProcessor(
        image_processor(16, 65536, 16777216),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=chatml(IMAGE).replace(start, thoughts),
    )
    return save(folder, kind, config, processor, tokenizer.eos_token_id)


def write_qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: attention within windows, M-RoPE, a system prompt in the chat template."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1],
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **token_ids(tokenizer))
    default = (
        "{% if messages[0].role != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    )
    processor = Qwen2_5_VLProcessor(
        image_processor(14, 3136, 12845056),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=default + CHATML.replace("{{ image }}", IMAGE),
    )
    return save(
        folder, Qwen2_5_VLForConditionalGeneration, config, processor, tokenizer.eos_token_id
    )
