"""Decoding speed: tokens per second, the gain of a growing cache, and the encoders' placement.

    python benchmarks/decoding.py [--layers 2] [--dtype bfloat16] [--device cpu] [--model starter]

A decoder of LLaMA-7B's width (or --width) with random weights reads a prefix of 300 positions per
question and decodes. Two caches alternate in one run: the decoder's own, and one that is
concatenated at every step; both must give the same tokens. Prints medians of three rounds after a
warm-up, and the time of a step relative to summing all weights once, then the providers of the
encoders' operators. On a CPU, times are CPU seconds of all threads: set OMP_NUM_THREADS=1.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionqa.bundles.store import Bundle, find_bundle
from regionqa.language import decoders as decoder_module
from regionqa.language.decoders import KeyValueCache, LlamaDecoder
from regionqa.runtime.devices import Device, operator_providers

PREFIX, WORDS, ROUNDS = 300, 32_000, 3


class ConcatenatedCache(KeyValueCache):
    """A cache that copies all positions to add one."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.kept: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `KeyValueCache.extend`."""
        past = self.kept[layer]
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        self.kept[layer] = keys, values
        return keys, values


CACHES: dict[str, type[KeyValueCache]] = {
    "concatenated": ConcatenatedCache,
    "growing": KeyValueCache,
}


def random_decoder(width: int, layers: int, dtype: torch.dtype, device: str) -> LlamaDecoder:
    """A LLaMA of a width, in LLaMA's proportions."""
    inner = (width * 8 // 3 + 255) // 256 * 256
    config: dict[str, Any] = {
        "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": width // 128, "vocab_size": WORDS,
        "rms_norm_eps": 1e-6,
    }  # fmt: skip
    shapes = {"embed_tokens": (WORDS, width), "lm_head": (WORDS, width), "norm": (width,)}
    for number in range(layers):
        layer = f"layers.{number}"
        shapes |= {f"{layer}.self_attn.{part}_proj": (width, width) for part in "qkvo"}
        shapes |= {f"{layer}.mlp.{part}_proj": (inner, width) for part in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj": (width, inner)}
        shapes |= {f"{layer}.{norm}layernorm": (width,) for norm in ("input_", "post_attention_")}
    torch.manual_seed(0)
    weights = {
        f"{name}.weight": torch.randn(shape, dtype=dtype, device=device).mul_(shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }
    return LlamaDecoder(config, weights)


@torch.inference_mode()
def decode(model: LlamaDecoder, questions: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds for so many tokens to every question behind one prefix, and the tokens."""
    device = model.embed(torch.zeros(1, dtype=torch.long, device=place(model))).device
    ids = torch.arange(PREFIX, device=device)[None]
    mask = torch.ones(1, PREFIX, dtype=torch.bool, device=device)
    logits, cache = model.step(model.embed(ids), mask, ids, None)
    rows = torch.zeros(questions, dtype=torch.long, device=device)
    if isinstance(cache, ConcatenatedCache):
        cache.kept = [(pair[0][rows], pair[1][rows]) for pair in cache.kept if pair]
    else:
        cache = model.select(cache, rows)
    last = logits.argmax(-1)[rows]
    answers = [last.tolist()]
    started = now(device)
    for count in range(1, tokens + 1):
        seen = torch.ones(questions, PREFIX + count, dtype=torch.bool, device=device)
        at = torch.full((questions, 1), PREFIX + count - 1, device=device)
        logits, cache = model.step(model.embed(last)[:, None], seen, at, cache)
        last = logits.argmax(-1)
        answers.append(last.tolist())
    return now(device) - started, answers


def place(model: LlamaDecoder) -> torch.device:
    """Where a decoder's weights are."""
    return next(iter(model._weights.values())).device


def now(device: torch.device) -> float:
    """Seconds: of this process alone on the CPU, of the clock on a GPU that has finished."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def reading(model: LlamaDecoder) -> float:
    """Seconds to read all weights but the embeddings once, at the speed of adding up numbers."""
    device = place(model)
    large = torch.ones(2**26, device=device)
    times = []
    for _ in range(ROUNDS):
        started = now(device)
        large.sum()
        times.append(now(device) - started)
    read = sum(w.nbytes for name, w in model._weights.items() if name != "embed_tokens.weight")
    return read / large.nbytes * min(times)


def compare(model: LlamaDecoder, counts: Sequence[int], tokens: int) -> None:
    """Both caches in turns, for several numbers of questions at once."""
    floor = reading(model)
    for questions in counts:
        times: dict[str, list[float]] = {name: [] for name in CACHES}
        answers_by_cache = {}
        for _ in range(ROUNDS + 1):
            for name, kind in CACHES.items():
                decoder_module.KeyValueCache = kind  # type: ignore[misc]
                seconds, answers_by_cache[name] = decode(model, questions, tokens)
                times[name].append(seconds)
        slow, fast = (statistics.median(taken[1:]) for taken in times.values())
        same = len({str(answers) for answers in answers_by_cache.values()}) == 1
        print(
            f"{questions:3} questions: {questions * tokens / fast:8.1f} tokens/s, "
            f"{slow / fast:.2f} x a concatenated cache, a step takes "
            f"{fast / tokens / floor:.1f} x reading the weights; "
            f"tokens {'equal' if same else 'DIFFER'}"
        )


def show_placement(bundle: Bundle, device: Device, half: bool) -> None:
    """Which provider ran each operator of the encoders that has weights or reads boxes."""
    import onnxruntime

    options = (
        "Conv",
        "FusedConv",
        "Gemm",
        "MatMul",
        "FusedMatMul",
        "RoiAlign",
        "InstanceNormalization",
    )
    card = bundle.card
    graphs = [card.vision.graph, *([card.region.graph] if card.region else [])]
    for graph in graphs:
        path = bundle.file(graph)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        feeds = {}
        for value in session.get_inputs():
            large = 640 if value.name == "pixel_values" else 1
            free = [1, *[large] * (len(value.shape) - 1)]
            sides = [s if isinstance(s, int) else f for s, f in zip(value.shape, free, strict=True)]
            kind = np.int64 if "int64" in value.type else np.float32
            feeds[value.name] = np.zeros(sides, kind)
        found = operator_providers(path, device, feeds, half=half)
        for name in options:
            if name in found:
                print(f"{graph:12} {name:22} {', '.join(sorted(found[name]))}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu", choices=[str(each) for each in Device])
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--model", default="starter")
    options = parser.parse_args()
    model = random_decoder(
        options.width, options.layers, getattr(torch, options.dtype), options.device
    )
    print(f"{options.layers} layers of {options.width}, {options.dtype}, {options.device}")
    compare(model, options.questions, options.tokens)
    half = options.device == "cuda" and options.dtype != "float32"
    show_placement(find_bundle(options.model), Device(options.device), half)


if __name__ == "__main__":
    main()
