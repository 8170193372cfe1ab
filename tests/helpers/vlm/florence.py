"""Tiny checkpoint of Florence-2."""

from pathlib import Path

from helpers.vlm.building import byte_tokenizer, save


def write_florence2(folder: Path) -> Path:
    """Florence-2: encoder-decoder, 1000 location tokens, images squashed to a square."""
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>",
               *(f"<loc_{number}>" for number in range(1000))]  # fmt: skip
    tokenizer = byte_tokenizer(
        special, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special[:6]}
    text = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=256, bos_token_id=ids["<s>"],
        pad_token_id=ids["<pad>"], eos_token_id=ids["</s>"], decoder_start_token_id=ids["</s>"],
        forced_eos_token_id=ids["</s>"],
    )  # fmt: skip
    vision = {
        "depths": [1, 1, 1, 1], "embed_dim": [8, 16, 16, 32], "num_heads": [2, 2, 2, 2],
        "num_groups": [2, 2, 2, 2], "window_size": 4, "projection_dim": 32,
        "max_position_embeddings": 8, "max_temporal_embeddings": 4, "drop_path_rate": 0.0,
    }  # fmt: skip
    config = Florence2Config(
        text_config=text.to_dict(),
        vision_config=vision,
        image_token_id=ids["<image>"],
        bos_token_id=ids["<s>"],
        pad_token_id=ids["<pad>"],
        eos_token_id=ids["</s>"],
    )
    images = CLIPImageProcessor(
        size={"height": 64, "width": 64}, do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    images.image_seq_length = 5  # 2 x 2 and their mean
    processor = Florence2Processor(images, tokenizer)
    generation = {
        "num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True,
        "bos_token_id": ids["<s>"], "pad_token_id": ids["<pad>"],
        "decoder_start_token_id": ids["</s>"], "forced_bos_token_id": ids["<s>"],
        "forced_eos_token_id": ids["</s>"],
    }  # fmt: skip
    return save(
        folder,
        Florence2ForConditionalGeneration,
        config,
        processor,
        ids["</s>"],
        rare=tokenizer.convert_tokens_to_ids(special),
        **generation,
    )
