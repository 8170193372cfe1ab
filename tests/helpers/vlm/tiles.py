"""Tiny checkpoints of families that cut images into tiles."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from helpers.vlm.building import byte_tokenizer, chatml, save


def write_internvl(folder: Path) -> Path:
    """InternVL in transformers' layout: square tiles and a thumbnail of the whole image."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    named = {
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values(),
               "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]  # fmt: skip
    tokenizer = byte_tokenizer(
        special, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=named
    )
    tile, patch = 56, 14
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": [tile, tile], "patch_size": [patch, patch],
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096,
    }  # fmt: skip
    tokens = (tile // patch // 2) ** 2
    config = InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=tokens,
        tie_word_embeddings=True,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(
            size={"height": tile, "width": tile}, crop_to_patches=True, min_patches=1,
            max_patches=12,
        ),
        tokenizer,
        InternVLVideoProcessor(size={"height": tile, "width": tile}),
        image_seq_length=tokens,
        chat_template=chatml("<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return save(folder, InternVLForConditionalGeneration, config, processor, tokenizer.eos_token_id)


def write_smolvlm(folder: Path) -> Path:
    """SmolVLM2: an enlarged image in rows of tiles, each named by a token, and a thumbnail."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>",
               "<global-img>", "<image>", *places]  # fmt: skip
    tokenizer = byte_tokenizer(
        special, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>"
    )
    tile, patch, scale = 512, 64, 4
    tokens = (tile // patch // scale) ** 2
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": tile, "patch_size": patch,
    }  # fmt: skip
    config = SmolVLMConfig(
        text_config=_llama(tokenizer),
        vision_config=vision,
        scale_factor=scale,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
    )
    edges = {"longest_edge": tile}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(
            size={"longest_edge": 4 * tile}, max_image_size=edges, image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        SmolVLMVideoProcessor(size=edges, max_image_size=edges, num_frames=8, fps=1),
        image_seq_len=tokens,
        chat_template=(
            "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
            "{% if message.content[0].type != 'image' %} {% endif %}"
            "{% for part in message.content %}{% if part.type == 'image' %}<image>"
            "{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
            "{% if add_generation_prompt %}Assistant:{% endif %}"
        ),
    )  # fmt: skip
    return save(folder, SmolVLMForConditionalGeneration, config, processor, tokenizer.eos_token_id)


def _llama(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def write_lfm2_vl(folder: Path) -> Path:
    """LFM2.5-VL: tiles of any number of patches, convolutional states beside attention."""
    from transformers import (
        Lfm2VlConfig,
        Lfm2VlForConditionalGeneration,
        Lfm2VlImageProcessor,
        Lfm2VlProcessor,
    )

    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>", "image_thumbnail": "<|img_thumbnail|>",
    }  # fmt: skip
    places = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    special = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>",
               *named.values(), *places]  # fmt: skip
    tokenizer = byte_tokenizer(
        special,
        bos_token="<|startoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=named,
    )
    vision = {
        "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16, "num_patches": 64,
    }  # fmt: skip
    text = {
        "model_type": "lfm2", "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "conv_L_cache": 3,
        "block_multiple_of": 8, "layer_types": ["conv", "conv", "full_attention", "conv"],
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = Lfm2VlConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=32,
    )
    processor = Lfm2VlProcessor(
        Lfm2VlImageProcessor(
            encoder_patch_size=16, tile_size=64, min_image_tokens=2, max_image_tokens=4,
            max_tiles=10, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        ),
        tokenizer,
        chat_template="<|startoftext|>" + chatml("<image>"),
    )  # fmt: skip
    return save(folder, Lfm2VlForConditionalGeneration, config, processor, tokenizer.eos_token_id)
