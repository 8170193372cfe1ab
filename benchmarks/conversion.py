"""Memory and time of `regionqa download` for a 7B model, with generated files.

    python benchmarks/conversion.py FOLDER [--layers 32] [--dtype auto]

Writes GPT4RoI's published files to FOLDER in their shapes and types with random weights: a LLaMA of
--layers layers and its delta as .bin shards, and a CLIP ViT-L/14. Then runs the command on them,
monitors its process and children, and prints one line of JSON. FOLDER needs 45 GB at 32 layers;
everything in it is removed at the end.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from processes import watched
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from regionqa.export.modules.multilevel import MultiLevelConfig, MultiLevelRegionEncoder
from regionqa.export.sources.checkpoints import quiet_transformers

REPOSITORY = Path(__file__).resolve().parents[1]
ADDED = 6
SHARD = 2_000_000_000
"""Bytes of a shard; published ones have up to 10 GB, which makes no difference when mapped."""
Shapes = dict[str, torch.Size]


def language_shapes(layers: int, added: int) -> tuple[Shapes, LlamaConfig]:
    """Shapes of a LLaMA of 7B's width, with `added` rows of embeddings."""
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=32000 + added, rms_norm_eps=1e-6)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return {name: value.shape for name, value in model.state_dict().items()}, config


def part_shapes() -> Shapes:
    """Shapes of GPT4RoI's projector and region encoder, by published names."""
    config = MultiLevelConfig(
        input_size=224, in_channels=(1024,) * 4, sizes=(128, 64, 32, 16), width=1024, rounds=5,
        groups=64, roi_size=14, position_width=256, region_width=1024, hidden_size=4096,
        sides=(16,) * 4,
    )  # fmt: skip
    with torch.device("meta"):
        module = MultiLevelRegionEncoder(config)
    found = {f"model.spi_module.{name}": v.shape for name, v in module.state_dict().items()}
    projector = {"weight": torch.Size((4096, 1024)), "bias": torch.Size((4096,))}
    return found | {f"model.mm_projector.{name}": shape for name, shape in projector.items()}


class Numbers:
    """Normal numbers, drawn once and read from changing offsets, as billions are needed."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.block = torch.randn(1 << 24, generator=generator).half()
        self.at = 0

    def tensor(self, shape: torch.Size, deviation: float, mean: float = 0.0) -> torch.Tensor:
        """A float16 tensor of these numbers, scaled."""
        flat = torch.empty(shape.numel(), dtype=torch.float16)
        done = 0
        while done < len(flat):
            self.at = (self.at + 1_000_003) % len(self.block)
            piece = self.block[self.at : self.at + len(flat) - done]
            flat[done : done + len(piece)] = piece
            done += len(piece)
        return flat.mul_(deviation).add_(mean).view(shape)


def write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Tensors as pytorch_model-*.bin with their index, one shard in memory at a time."""
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    number = 0

    def write() -> None:
        nonlocal number
        number += 1
        name = f"pytorch_model-{number:05}.bin"
        torch.save(shard, folder / name)
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > SHARD:
            write()
        shard[name] = tensor
    write()
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index)


def write_checkpoints(root: Path, layers: int) -> None:
    """Folders delta, base and vision."""
    numbers = Numbers()
    for part, added, deviation in (("base", 0, 0.02), ("delta", ADDED, 0.002)):
        shapes, config = language_shapes(layers, added)
        folder = root / part
        folder.mkdir(parents=True)
        whole = part_shapes() if added else {}

        def tensors(
            shapes: Shapes = shapes, deviation: float = deviation, whole: Shapes = whole
        ) -> Iterator[tuple[str, torch.Tensor]]:
            for name, shape in shapes.items():
                mean = 1.0 if len(shape) == 1 and not whole else 0.0
                yield name, numbers.tensor(shape, deviation, mean)
            for name, shape in whole.items():
                yield name, numbers.tensor(shape, 0.02)
            for index in range(layers):
                yield f"model.layers.{index}.self_attn.rotary_emb.inv_freq", torch.ones(64).half()

        write_shards(folder, tensors())
        (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    toy = REPOSITORY / "tests" / "golden" / "gpt4roi" / "toy_llama.model"
    shutil.copyfile(toy, root / "delta" / "tokenizer.model")
    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224, patch_size=14, projection_dim=768,
    )  # fmt: skip
    with quiet_transformers():
        CLIPVisionModel(tower).half().float().save_pretrained(root / "vision")


def main() -> None:
    """Write, convert, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    root: Path = options.folder / "conversion"
    try:
        started = time.monotonic()
        write_checkpoints(root, options.layers)
        written = time.monotonic() - started
        print(f"written in {written:.0f} s", file=sys.stderr, flush=True)
        files = [path for path in root.rglob("*") if path.is_file()]
        places = [word for part in ("delta", "base", "vision")
                  for word in (f"--{part}", str(root / part))]  # fmt: skip
        words = [sys.executable, "-m", "regionqa", "download", "gpt4roi-7b", *places, "--out",
                 str(root / "model"), "--dtype", options.dtype]  # fmt: skip
        print(
            json.dumps(
                {
                    "layers": options.layers,
                    "read_gb": round(sum(path.stat().st_size for path in files) / 1e9, 1),
                    **watched(words),
                }
            )
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
