"""The starter's tokenizer and decoder, untrained."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.starter.questions.mixture import draw_sample
from recipes.starter.questions.scenes import whole_scene
from recipes.starter.vision.photos import PhotoSet


def new_language_model(
    vocabulary: int, hidden_size: int, context: int, stop: int, layers: int = 4
) -> LlamaForCausalLM:
    """A small untrained decoder: 4 heads, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            intermediate_size=512,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=stop,
            pad_token_id=stop,
        )
    )


def train_tokenizer(texts: Iterator[str], size: int, special: Sequence[str], path: Path) -> None:
    """Byte-level BPE in lower case; any text can be encoded. Written to `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def tokenizer_texts(photos: PhotoSet, seed: int) -> list[str]:
    """Captions and drawn questions with answers, for the tokenizer to learn from."""
    rng = np.random.default_rng(seed)
    texts = [caption for photo in photos.photos for caption in photo.captions]
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        scene = whole_scene(photo, photos.names)
        for _ in range(12):
            sample = draw_sample(scene, rng)
            texts += [sample.question, sample.answer]
    return texts
