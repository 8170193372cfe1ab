"""Measure what sharing an image among questions gains with a vision-language model.

    PYTHONPATH=tests python benchmarks/vlm_questions.py [--layers 24] [--tokens 16] [--rounds 1]
        [--folder DIR] [--vision torch|onnx]

Writes a checkpoint of Qwen3-VL's layout with random weights and the language model's size of
Qwen2.5-0.5B (24 layers, 896 wide, vocabulary 151,936; vision encoder 12 layers, 768 wide), or
reads one from DIR. Asks 16 questions about boxes of a photo of 640 x 480 pixels:

- plain: transformers' processor and `generate`, one question at a time;
- plain, batched: the same in one padded batch of 16;
- regionqa: `Engine.answer`, one image opened once.

Then one question alone, and 1 and 32 regions of one image. Every way answers in `--tokens` tokens;
a random model ends no answer before. Ways alternate within one run of `--rounds`, after one
question each to warm up; prints medians and ratios. regionqa's vision encoder runs in torch as that
of the plain ways, or with `--vision onnx` in ONNX Runtime (`regionqa export DIR` first).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from helpers.vlm.building import chatml
from helpers.vlm.qwen import IMAGE, image_processor, qwen_tokenizer, token_ids
from regionqa.backends.vlm.backend import VlmBackend
from regionqa.engine import Engine
from regionqa.images.reading import InputImage, image_from_memory
from regionqa.regions import Box, Region
from regionqa.requests import Request

VOCABULARY = 151_936


def write_checkpoint(folder: Path, layers: int) -> Path:
    """Write the checkpoint with random weights, about 2.4 GB with 24 layers."""
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    vision = {
        "depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12,
        "out_hidden_size": 896, "patch_size": 16, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [3, 6, 9],
    }  # fmt: skip
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": layers, "num_attention_heads": 14, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": 32768,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [16, 8, 8], "rope_theta": 5e6,
        },
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids(tokenizer)
    )
    processor = Qwen3VLProcessor(
        image_processor(16, 65536, 16777216), tokenizer, Qwen3VLVideoProcessor(),
        chat_template=chatml(IMAGE),
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def photo() -> InputImage:
    """Return an image of 640 x 480 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    return image_from_memory(Image.fromarray(pixels))


def requests(image: InputImage, count: int) -> list[Request]:
    """Return a question about each of as many boxes."""
    boxes = [Box(10 + 9 * n, 10 + 7 * n, 200 + 9 * n, 150 + 7 * n) for n in range(count)]
    return [Request("photo", "what is <region1>?", (Region(box),), image) for box in boxes]


def plain(backend: VlmBackend, asked: list[Request], tokens: int, *, batched: bool) -> None:
    """Answer as a loop over transformers' processor and `generate` does."""
    processor, model = backend.processor.processor, backend.language.model
    for start in range(0, len(asked), len(asked) if batched else 1):
        part = asked[start : start + (len(asked) if batched else 1)]
        texts = [backend.render(request, tokens).text for request in part]
        images = [[request.source.load()] for request in part if request.source]
        inputs = processor(
            text=texts,
            images=images,
            images_kwargs=dict(backend.card.images.cpu),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def medians(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time each way in turn -> median seconds by way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def main() -> None:
    """Time every way and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--vision", choices=("torch", "onnx"), default="torch")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "config.json").exists():
            write_checkpoint(folder, options.layers)
        engine = Engine.load(folder, device="cpu", dtype="float32", vision_runtime=options.vision)
        reference = engine
        if options.vision != "torch":
            reference = Engine.load(folder, device="cpu", dtype="float32", vision_runtime="torch")
    backend = reference.backend
    assert isinstance(backend, VlmBackend)
    backend.language.model.generation_config.eos_token_id = None

    def ask(count: int) -> None:
        for answer in engine.answer(requests(photo(), count), max_new_tokens=options.tokens):
            assert answer.error is None
            assert answer.tokens > 0

    def by_hand(count: int, *, batched: bool = False) -> None:
        plain(backend, requests(photo(), count), options.tokens, batched=batched)

    by_hand(1)
    ask(1)
    seconds = medians(
        {
            "plain, 16 questions": lambda: by_hand(16),
            "plain, 16 in a batch": lambda: by_hand(16, batched=True),
            "regionqa, 16 questions": lambda: ask(16),
            "plain, 1 question": lambda: by_hand(1),
            "regionqa, 1 question": lambda: ask(1),
            "regionqa, 32 questions": lambda: ask(32),
        },
        options.rounds,
    )
    for name, value in seconds.items():
        print(f"{name:24} {value:7.2f} s")
    ours = seconds["regionqa, 16 questions"]
    print(f"against a plain loop: {seconds['plain, 16 questions'] / ours:.1f} x")
    print(f"against a plain batch: {seconds['plain, 16 in a batch'] / ours:.1f} x")
    one = seconds["regionqa, 1 question"]
    print(f"one question: {seconds['plain, 1 question'] / one:.2f} x plain")
    print(f"32 regions take {seconds['regionqa, 32 questions'] / one:.1f} x one")


if __name__ == "__main__":
    main()
