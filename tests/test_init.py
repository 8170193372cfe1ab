"""Bundles put together from published parts: what a user types, and what transformers answers.

The checkpoints are tiny and random, written by transformers itself; their answers mean nothing, but
must be the same here, token for token.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from regionqa.bundles import Bundle
from regionqa.engine import Engine
from regionqa.export.init import Made, quiet_transformers
from regionqa.export.llava import llava_bundle
from regionqa.images import open_picture
from regionqa.prompts import render, tokenize
from regionqa.tokenizer import BundleTokenizer

SENTENCES = ("what is this? a cat on a mat", "describe the picture, please", "where is the cup?")
QUESTIONS = ("what is this?", "Is it {red}?\nSay yes or no.", "where is the 猫, and why?")
LENGTH = 12
LLAVA = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }} {% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Checkpoint:
    """A published model on disk, and the bundle made from it."""

    folder: Path
    made: Made

    @property
    def bundle(self) -> Bundle:
        return self.made.bundle


# -- what stands in for the Hub -------------------------------------------------------------------


def write_llama_tokenizer(folder: Path, scheme: str, chat: str | None = LLAVA) -> Any:
    """A tokenizer of LLaMA's kind: pieces with ▁, bytes to fall back on, `<s>` first."""
    own = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=True)
    names = [*own, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 9, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [each for each in content["added_tokens"] if each["content"] in own]
    content["decoder"] = json.loads(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        ).__getstate__()
    )
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    content["pre_tokenizer"]["split"] = False
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    fast.add_tokens([AddedToken("<image>", special=False, normalized=False)])
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return fast


def write_qwen_tokenizer(folder: Path, chat: str | None = QWEN) -> Any:
    """A tokenizer of GPT-2's and Qwen's kind: bytes as letters, no token first."""
    own = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=own, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(SENTENCES * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = chat
    fast.save_pretrained(folder)
    return fast


TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 192, "vocab_size": 384,
    "initializer_range": 0.6,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "initializer_range": 0.2,
}  # fmt: skip
MEAN_STD: dict[str, Any] = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.27, 0.26, 0.28]}


def write_llava(
    folder: Path, text: str, vision: str, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> Path:
    """A random LLaVA with its processor. text: llama or qwen2; vision: clip or siglip."""
    torch.manual_seed(3)
    if text == "llama":
        tokenizer = write_llama_tokenizer(folder, "first")
        stop = "</s>"
    else:
        tokenizer = write_qwen_tokenizer(folder)
        stop = "<|im_end|>"
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.convert_tokens_to_ids(stop)}
    tied = settings.pop("tied", False)
    kind = LlamaConfig if text == "llama" else Qwen2Config
    towers = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}
    sizes = {"height": 28, "width": 28}
    images = {
        "clip": lambda: CLIPImageProcessor(
            size={"shortest_edge": 28}, crop_size=sizes, **MEAN_STD
        ),
        "siglip": lambda: SiglipImageProcessor(size=sizes),
    }
    strategy = "default" if vision == "clip" else "full"
    config = LlavaConfig(
        vision_config=towers[vision](**VISION),
        text_config=kind(**TEXT, **ends, tie_word_embeddings=tied),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=tied,
        **{"vision_feature_layer": -2 if vision == "clip" else -1, **settings},
    )
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = ends["eos_token_id"]
    processor = LlavaProcessor(
        images[vision](), tokenizer, patch_size=14, vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(vision == "clip"), chat_template=tokenizer.chat_template,
    )  # fmt: skip
    with quiet_transformers():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Checkpoint]:
    """A LLaVA and its bundle, made once for each pair of parts."""
    root = tmp_path_factory.mktemp("llava")
    known: dict[str, Checkpoint] = {}

    def make(text: str, vision: str) -> Checkpoint:
        key = f"{text}-{vision}"
        if key not in known:
            folder = write_llava(root / key, text, vision)
            known[key] = Checkpoint(folder, llava_bundle(folder, root / f"{key}-bundle"))
        return known[key]

    return make


def reference(folder: Path, image: Image.Image, question: str, length: int = LENGTH) -> list[int]:
    """Ids of the answer by transformers' own processor and `generate`, without the stop token."""
    with quiet_transformers():
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    config = json.loads((folder / "processor_config.json").read_text())
    names = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    processor = LlavaProcessor(
        images, tokenizer, chat_template=tokenizer.chat_template,
        **{name: config[name] for name in names},
    )  # fmt: skip
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=length, pad_token_id=0)
    answer = [int(token) for token in ids[0, inputs["input_ids"].shape[1] :]]
    ends = model.generation_config.eos_token_id
    return answer[: answer.index(ends)] if ends in answer else answer


def own_answer(engine: Engine, path: Path, question: str, length: int = LENGTH) -> list[int]:
    """Ids of the bundle's answer."""
    seen: list[tuple[int, ...]] = []
    generate = engine._language.generate

    def spy(*arguments: Any) -> Any:
        answers = generate(*arguments)
        seen.extend(answer.ids for answer in answers)
        return answers

    engine._language.generate = spy  # type: ignore[method-assign]
    try:
        engine.ask(path, question, max_new_tokens=length)
    finally:
        engine._language.generate = generate  # type: ignore[method-assign]
    return list(seen[0])


PAIRS = [("llama", "clip"), ("llama", "siglip"), ("qwen2", "clip"), ("qwen2", "siglip")]


@pytest.mark.parametrize(("text", "vision"), PAIRS)
def test_answers_are_those_of_transformers_token_for_token(
    llava: Callable[[str, str], Checkpoint], skimage_photos: Path, text: str, vision: str
) -> None:
    made = llava(text, vision)
    engine = Engine.load(made.bundle, device="cpu")
    answers = []
    for photo in ("astronaut.png", "chelsea.png"):
        with Image.open(skimage_photos / photo) as image:
            for question in QUESTIONS:
                expected = reference(made.folder, image.convert("RGB"), question)
                assert own_answer(engine, skimage_photos / photo, question) == expected
                answers.append(tuple(expected))
    assert len(set(answers)) > len(QUESTIONS)  # the picture matters, and so does the question
