"""Checkpoints of vision-language models with random weights, in the layout of released ones.

Each has its family's processor files, special tokens and a chat template of the family's form. A
random model proves plumbing only; what it is given is compared with the family's own processor.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ image }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The form of ChatML; `image` is replaced by the family's placeholder."""


def chatml(image: str) -> str:
    """A ChatML template with a family's text for an image."""
    return CHATML.replace("{{ image }}", image)


def byte_tokenizer(special: Sequence[str], **named: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, with special tokens.

    Args:
        special: Further tokens that are never split.
        named: Roles of special tokens, such as `eos_token` or `image_token`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = models.BPE({token: place for place, token in enumerate(alphabet)}, [])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def write_qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: grid of patches, M-RoPE, deepstack features."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
               "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip
    tokenizer = byte_tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
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
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(
            patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
            size={"shortest_edge": 65536, "longest_edge": 16777216},
        ),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    return save(folder, Qwen3VLForConditionalGeneration, config, processor, ids["<|im_end|>"])


def save(folder: Path, kind: Any, config: Any, processor: Any, stop: int) -> Path:
    """Write a model with random weights, its processor and its generation config."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():  # larger than initialized, so that answers depend on the input
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3 if "visual" in name or "vision" in name else 0.2)
    model.generation_config.eos_token_id = stop
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": write_qwen3_vl,
}
"""Writers by `model_type`."""
