"""Parts of tiny checkpoints: tokenizers, chat templates, random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
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


def byte_tokenizer(
    special: Sequence[str], starts: str | None = None, **named: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, with special tokens.

    Args:
        special: Further tokens that are never split.
        starts: The one that it puts before every text.
        named: Roles of special tokens, such as `eos_token` or `image_token`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = models.BPE({token: place for place, token in enumerate(alphabet)}, [])
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    if starts is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{starts} $A", special_tokens=[(starts, tokenizer.token_to_id(starts))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def save(
    folder: Path,
    kind: Any,
    config: Any,
    processor: Any,
    stop: int,
    rare: Sequence[int] = (),
    **generation: Any,
) -> Path:
    """Write a model with random weights, its processor and its generation config.

    Args:
        folder: Where.
        kind: Class of the model.
        config: Its config.
        processor: Its processor.
        stop: Id of the token that ends an answer.
        rare: Ids that answers hardly hold.
        generation: Further entries of the generation config.
    """
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():  # larger than initialized, so that answers depend on the input
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3 if "visual" in name or "vision" in name else 0.2)
        model.get_output_embeddings().weight[list(rare)] *= 0.3
    model.generation_config.update(eos_token_id=stop, **generation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
