"""Measure the speed of the second stage: tokens per second and model FLOPs utilisation (MFU).

    python benchmarks/training.py                 # every size that fits, on the GPU if there is one
    python benchmarks/training.py tiny --steps 3
    python benchmarks/training.py tiny --packing  # four questions an image, in one row or in four

Models have random weights in LLaMA's shapes; all weights and LoRA train, in fp32 and bf16. The peak
is that of one large matrix product on the same device in the same run. Operations are counted as 6
per weight and token for trained weights and 4 for frozen ones that gradients pass through (Kaplan
et al. 2020, section 2.1), without attention's own products. `--packing` compares the time of a step
whose rows share the tokens of an image with that of one row for each question.
"""

import argparse
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from regionqa.export.modules.resnet import ResNetConfig, ResNetVision
from regionqa.finetune.batches.collate import Batch
from regionqa.finetune.batches.dataset import IGNORE_INDEX
from regionqa.finetune.config import FinetuneSettings, Stages, StageSettings
from regionqa.finetune.model import (
    RegionLanguageModel,
    add_lora,
    make_optimizers,
    select_trainable,
)
from regionqa.finetune.trainer import enable_gradient_checkpointing
from regionqa.language.packing import pack_prompts

IMAGE_TOKENS = 256
SHAPES = {
    "tiny": (4, 256, 688, 4),
    "1b": (16, 2048, 8192, 32),
    "7b": (32, 4096, 11008, 32),
}
"""Layers, width, inner width and heads."""


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    size: str
    bf16: bool
    lora: int
    batch: int
    length: int
    image_tokens: int = IMAGE_TOKENS
    questions: int = 1
    """Questions about each image."""
    packed: bool = False


def synthetic(case: Case, vocabulary: int, device: torch.device) -> Batch:
    """Make a batch of full length; labels are on the last half of what follows the image."""
    ids = torch.randint(0, vocabulary, (case.batch, case.length))
    labels = ids.clone()
    shared = 1 + case.image_tokens
    first = case.length // 2 if case.questions == 1 else (case.length + shared) // 2
    labels[:, :first] = IGNORE_INDEX
    rows = torch.arange(case.batch) // case.questions
    lengths = [case.length] * case.batch
    packed = pack_prompts(rows.tolist(), lengths, shared, case.length) if case.packed else None
    return Batch(
        input_ids=ids,
        labels=labels,
        mask=torch.ones_like(ids),
        features=torch.randn(int(rows.max()) + 1, case.image_tokens, 1024),
        image_rows=rows,
        image_starts=torch.ones_like(rows),
        sources=[],
        boxes=torch.zeros(0, 4),
        places=torch.zeros(0, 2, dtype=torch.long),
        vectors=None,
        region_slots=torch.zeros(0, 3, dtype=torch.long),
        distilled=torch.zeros(case.batch, dtype=torch.bool),
        packed=packed,
    ).to(device)


def build(case: Case, device: torch.device) -> RegionLanguageModel:
    """Build projector and language model with random weights."""
    layers, width, inner, heads = SHAPES[case.size]
    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=2048,
    )  # fmt: skip
    # frozen weights may be bf16; trained ones stay float32
    dtype = torch.bfloat16 if case.bf16 and case.lora else torch.float32
    with torch.device(device):
        language = LlamaForCausalLM(config).to(dtype)
        vision = ResNetVision(ResNetConfig(hidden_size=width))
        vision.projector = nn.Linear(1024, width)
    return RegionLanguageModel(vision, None, language)


def measure(case: Case, device: torch.device, steps: int) -> tuple[float, float]:
    """Return tokens per second and counted operations per second."""
    settings = StageSettings(
        learning_rate=1e-5, projector=True, language=True, gradient_checkpointing=True
    )  # fmt: skip
    model = build(case, device)
    run = FinetuneSettings(
        model="random", data=("none",), stages=Stages(settings, settings), lora_rank=case.lora
    )
    add_lora(model.language, run)
    enable_gradient_checkpointing(model.language)
    named = dict(select_trainable(model, settings))
    (optimizer,) = make_optimizers(model, settings)
    batch = synthetic(case, 32000, device)
    model.train()
    started = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            wait(device)
            started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
            metrics = model(batch)
            (metrics.loss / metrics.tokens).backward()
        nn.utils.clip_grad_norm_(list(named.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    wait(device)
    seconds = time.perf_counter() - started
    tokens = steps * case.batch * case.length
    weights = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in named.values())
    operations = tokens * (6 * trained + 4 * (weights - trained))
    return tokens / seconds, operations / seconds


def compare_packing(size: str, device: torch.device, steps: int) -> None:
    """Print the speed with four questions about an image, in a row each and in packed rows."""
    print("size  image tokens  tokens of a prompt  packed  single  times as fast")
    for image_tokens, length in ((17, 45), (256, 300), (576, 620)):
        case = Case(size, False, 16, 8, length, image_tokens, questions=4)
        speeds = [
            measure(replace(case, packed=packed), device, steps)[0] for packed in (True, False)
        ]
        packed, single = speeds
        print(
            f"{size:5} {image_tokens:12} {length:19} {packed:7.0f} {single:7.0f} "
            f"{packed / single:14.2f}",
            flush=True,
        )


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations per second of one large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        product: Tensor = a @ a
        wait(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    del product
    return best


def wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print one line per case, or that it does not fit into memory."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", default=[], help="tiny, 1b, 7b")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--packing", action="store_true", help="compare packed with single rows")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = options.sizes or (["1b", "7b"] if device.type == "cuda" else ["tiny"])
    if options.packing:
        for size in sizes:
            compare_packing(size, device, options.steps)
        return
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peaks = {
        bf16: peak(device, torch.bfloat16 if bf16 else torch.float32) for bf16 in (True, False)
    }
    print(
        f"{name}: bf16 {peaks[True] / 1e12:.2f}, fp32 {peaks[False] / 1e12:.2f} TFLOP/s a product"
    )
    print("size  precision  weights  tokens/s  TFLOP/s   MFU")
    for size in sizes:
        for bf16 in (True, False):
            for lora in (16, 0):
                case = Case(size, bf16, lora, options.batch, options.length)
                words = f"{size:5} {'bf16' if bf16 else 'fp32':9}  {'LoRA' if lora else 'full':7}"
                try:
                    tokens, operations = measure(case, device, options.steps)
                except torch.OutOfMemoryError:
                    print(f"{words}  does not fit")
                    continue
                share = 100 * operations / peaks[bf16]
                print(
                    f"{words}  {tokens:8.0f}  {operations / 1e12:7.2f}  {share:4.1f} %", flush=True
                )
                if device.type == "cuda":
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
