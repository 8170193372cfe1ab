"""Tiny checkpoints of the Gemma families."""

from pathlib import Path
from typing import Any

from helpers.vlm.building import byte_tokenizer, save

TURNS = (
    "{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}"
    "<|turn>system\n<|think|><turn|>\n{% endif %}"
    "{% for message in messages %}"
    "<|turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|image|>"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}<turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
"""The form of Gemma 4's turns."""
CLOSED_THOUGHT = (
    "{% if add_generation_prompt and not enable_thinking | default(false) %}"
    "<|channel>thought\n<channel|>{% endif %}"
)
"""What larger models of Gemma 4 get after it where they are not to think."""


def write_paligemma(folder: Path) -> Path:
    """PaliGemma 2: 1024 location tokens, the prompt attended both ways, no chat template."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    tokenizer = byte_tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"],
        pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    images = SiglipImageProcessor(
        size={"height": 28, "width": 28}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    images.image_seq_length = 4
    processor = PaliGemmaProcessor(images, tokenizer)  # adds the location tokens
    text = {
        "model_type": "gemma2", "vocab_size": len(tokenizer), "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 24,
        "max_position_embeddings": 8192, "query_pre_attn_scalar": 8,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14, "image_size": 28,
        "vision_use_head": False,
    }  # fmt: skip
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vocab_size=len(tokenizer),
        projection_dim=32,
        hidden_size=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return save(
        folder, PaliGemmaForConditionalGeneration, config, processor, tokenizer.eos_token_id
    )


def write_gemma4(folder: Path) -> Path:
    """Gemma 4 E2B: embeddings per layer, shared keys and values, sliding windows."""
    import transformers as library

    tokenizer, ids = _gemma4_tokenizer()
    text = _gemma4_text(len(tokenizer)) | {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tokenizer),
        "num_kv_shared_layers": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "position_embedding_size": 256,
    }  # fmt: skip
    config = library.Gemma4Config(text_config=text, vision_config=vision, **ids)
    processor = library.Gemma4Processor(
        library.Gemma4AudioFeatureExtractor(),
        library.Gemma4ImageProcessor(),
        tokenizer,
        library.Gemma4VideoProcessor(),
        chat_template=TURNS,
    )
    stop = int(tokenizer.convert_tokens_to_ids("<turn|>"))
    return save(folder, library.Gemma4ForConditionalGeneration, config, processor, stop)


def write_gemma4_unified(folder: Path) -> Path:
    """Gemma 4 12B: no vision encoder, and image tokens that attend to each other both ways."""
    import transformers as library

    tokenizer, ids = _gemma4_tokenizer()
    text = _gemma4_text(len(tokenizer)) | {"use_bidirectional_attention": "vision"}
    vision = {"mm_embed_dim": 32, "mm_posemb_size": 64, "output_proj_dims": 32}
    config = library.Gemma4UnifiedConfig(text_config=text, vision_config=vision, **ids)
    processor = library.Gemma4UnifiedProcessor(
        library.Gemma4UnifiedAudioFeatureExtractor(),
        library.Gemma4UnifiedImageProcessor(),
        tokenizer,
        library.Gemma4UnifiedVideoProcessor(),
        chat_template=TURNS + CLOSED_THOUGHT,
    )
    stop = int(tokenizer.convert_tokens_to_ids("<turn|>"))
    return save(folder, library.Gemma4UnifiedForConditionalGeneration, config, processor, stop)


def _gemma4_tokenizer() -> tuple[Any, dict[str, int]]:
    """The tokenizer, and the ids of its special tokens as the config names them."""
    roles = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|think|>", "<|channel>",
               "<channel|>", *roles.values(), "<|video|>"]  # fmt: skip
    tokenizer = byte_tokenizer(
        special, starts="<bos>", pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
        unk_token="<unk>", extra_special_tokens=roles,
    )  # fmt: skip
    names = {
        "image_token_id": "<|image|>", "video_token_id": "<|video|>", "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>", "audio_token_id": "<|audio|>", "boa_token_id": "<|audio>",
        "eoa_token_index": "<audio|>",
    }  # fmt: skip
    return tokenizer, {name: tokenizer.convert_tokens_to_ids(names[name]) for name in names}


def _gemma4_text(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "global_head_dim": 16, "sliding_window": 48, "max_position_embeddings": 8192,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "pad_token_id": 256, "eos_token_id": 257, "bos_token_id": 258,
    }  # fmt: skip
