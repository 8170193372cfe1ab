"""Parts of tiny checkpoints: tokenizers, chat templates, random weights."""

from collections.abc import Sequence
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
