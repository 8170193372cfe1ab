"""Measure the vision encoder in ONNX Runtime against torch, and the cache of encoded images.

    PYTHONPATH=tests:benchmarks python benchmarks/vlm_vision.py [--folder DIR] [--rounds 3]
    PYTHONPATH=tests:benchmarks python benchmarks/vlm_vision.py --families

Writes the checkpoint of `vlm_questions.py` (vision encoder of 12 layers, 768 wide, 3 deepstack
layers; random weights) with two language layers, or reads one from DIR, exports its encoder, and
encodes images of three sizes in both runtimes, which alternate. Then a folder of images is encoded
twice with a cache; what counts is the time in the encoder's stage, hashes and files included.
Prints medians and ratios.

`--families` exports the tiny checkpoint of every family instead, and prints as a table how far the
graphs differ from torch, relative to the largest feature.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from vlm_questions import write_checkpoint

from helpers.vlm.checkpoints import WRITERS
from helpers.vlm.photos import noise
from regionqa.backends.vlm.backend import VlmBackend
from regionqa.backends.vlm.feature_cache import CachedTower, FeatureCache
from regionqa.engine import Engine
from regionqa.errors import RegionQAError
from regionqa.export.vlm.vision import compare, export_vision_encoder
from regionqa.options import VisionRuntime
from regionqa.vlm.cards import card_of_checkpoint

SIZES = ((320, 240), (640, 480), (800, 600))
IMAGES = 6
"""Images of the folder that is encoded twice."""


def calm(folder: Path) -> Path:
    """Scale the encoder's weights to those of a model that is not trained yet.

    In the tests' checkpoints they are so large that a deep encoder amplifies rounding errors.
    """
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, value in weights.items():
        if "visual" in name and value.ndim > 1:
            value.mul_(0.02 / 0.3)
    save_file(weights, path, {"format": "pt"})
    return folder


def load(folder: Path, runtime: VisionRuntime) -> VlmBackend:
    """Load the checkpoint with its encoder in one runtime."""
    backend = Engine.load(folder, device="cpu", vision_runtime=runtime).backend
    assert isinstance(backend, VlmBackend)
    return backend


def seconds(tower: Any, inputs: Mapping[str, Tensor]) -> float:
    """Time one image."""
    started = time.perf_counter()
    tower.encode(inputs)
    return time.perf_counter() - started


def compare_runtimes(backends: Mapping[str, VlmBackend], rounds: int) -> None:
    """Print the time per image in both runtimes."""
    print(f"{'image':>10} {'tokens':>7} {'torch':>8} {'onnx':>8} {'ratio':>6} {'difference':>10}")
    for size in SIZES:
        inputs = backends["torch"].processor.prepare(noise(*size, 0).load()).inputs
        outputs = [each.tower.encode(inputs) for each in backends.values()]  # warms up, too
        difference, tokens = compare(*outputs)
        times: dict[str, list[float]] = {name: [] for name in backends}
        for _ in range(rounds):
            for name, backend in backends.items():
                times[name].append(seconds(backend.tower, inputs))
        taken = {name: statistics.median(each) for name, each in times.items()}
        print(
            f"{size[0]:>5}x{size[1]:<4} {tokens:>7} {taken['torch']:>7.2f}s {taken['onnx']:>7.2f}s "
            f"{taken['torch'] / taken['onnx']:>6.2f} {difference:>10.1e}"
        )


def measure_cache(backend: VlmBackend, folder: Path) -> None:
    """Print the time of the encoder's stage of two runs over the same images."""
    inputs = [
        backend.processor.prepare(noise(640, 480, number).load()).inputs for number in range(IMAGES)
    ]
    runs = []
    for _ in range(2):
        cache = FeatureCache(folder / "cache", 10**9)
        tower = CachedTower(
            backend.tower, cache, ("benchmark",), torch.device("cpu"), torch.float32
        )
        runs.append(sum(seconds(tower, each) for each in inputs))
        print(*cache.take_notes(), sep="\n")
    first, second = runs
    print(
        f"encoder stage of {IMAGES} images: {first:.2f} s, with the cache {second:.3f} s "
        f"({second / first:.1%})"
    )


def compare_families(folder: Path) -> None:
    """Export every family's tiny checkpoint and print the table."""
    print("| family | graphs | difference from torch |\n|---|---|---|")
    for family, write in sorted(WRITERS.items()):
        checkpoint = write(folder / family)
        try:
            export, _ = export_vision_encoder(card_of_checkpoint(checkpoint, family), checkpoint)
        except RegionQAError as error:
            print(f"| `{family}` | in torch | {str(error).partition(': ')[2]} |", flush=True)
            continue
        parts = ", ".join(part.name for part in export.manifest.parts)
        found = ", ".join(f"{check.difference:.0e}" for check in export.manifest.checks)
        print(f"| `{family}` | {parts} | {found} |", flush=True)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--families", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as own:
        from huggingface_hub import constants

        constants.HF_HOME = own  # exports are not kept
        if given.families:
            compare_families(Path(own))
            return
        folder = given.folder or calm(write_checkpoint(Path(own) / "model", 2))
        print(f"{torch.get_num_threads()} threads of torch, {os.cpu_count()} cores")
        started = time.perf_counter()
        export, _ = export_vision_encoder(card_of_checkpoint(folder, "benchmark"), folder)
        size = sum(export.manifest.files.values())
        print(f"export: {time.perf_counter() - started:.0f} s, {size / 1e9:.2f} GB")
        backends = {each.value: load(folder, each) for each in list(VisionRuntime)[1:]}
        compare_runtimes(backends, given.rounds)
        measure_cache(backends["onnx"], Path(own))


if __name__ == "__main__":
    main()
