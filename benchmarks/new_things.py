"""Measure learning and forgetting when the starter is finetuned on two new classes.

    python benchmarks/new_things.py DATA OUT [CASE ...] [--names goldfish "school bus"]

DATA holds `tiny_imagenet/` and `coco_small/`. 150 images of each class, 64 px and unscaled, are
pasted on grey and trained on with their boxes; 50 more of each are held out. Prints for each case
the accuracy on held-out answers, the accuracy on old classes in the dev photos, and minutes.
Cases: none (no rehearsal), own (random boxes in the new images), file (boxes of COCO photos, with
the starter's own answers), replay (the same with COCO's labels), lora (as file, with LoRA).
"""

import argparse
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import regionqa
from regionqa.boxes.files import read_boxes
from regionqa.bundles.store import open_bundle
from regionqa.cli import main as command
from regionqa.data.english import with_article
from regionqa.evaluation.tasks.recognition import Recognition, recognise

IMAGE_SIZE = (160, 120)
TILE = 64
TRAINED, HELD_OUT = 150, 50
"""Images of each thing."""


def cases(coco: Path) -> dict[str, list[str]]:
    """Return the options of `regionqa finetune` by case."""
    train = str(coco / "instances_train.json")
    return {
        "none": ["--rehearse", "0"],
        "own": [],
        "file": ["--rehearse-on", train],
        "replay": ["--replay", train],
        "lora": ["--rehearse-on", train, "--lora", "8"],
    }


def tiles(folder: Path, part: str, label: int) -> Iterator[Image.Image]:
    """Yield the images of a class in one part of Tiny-ImageNet."""
    with np.load(folder / f"{part}.npz") as archive:
        data, offsets = archive["data"].tobytes(), archive["offsets"]
        for index in np.flatnonzero(archive["label"] == label):
            with Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]])) as image:
                yield image.convert("RGB")


def write_records(folder: Path, out: Path, names: list[str]) -> tuple[Path, Path]:
    """Write training and held-out records, with their images, below `out`."""
    classes = json.loads((folder / "classes.json").read_text())
    rng = np.random.default_rng(0)
    (out / "images").mkdir(parents=True, exist_ok=True)
    paths = (out / "train.jsonl", out / "held-out.jsonl")
    lines: dict[Path, list[str]] = {path: [] for path in paths}
    for name in names:
        label = next(i for i, each in enumerate(classes) if name in each["name"].split(", "))
        for path, part, count in zip(paths, ("train-0", "val"), (TRAINED, HELD_OUT), strict=True):
            images = list(tiles(folder, part, label))
            if path == paths[0]:
                images += tiles(folder, "train-1", label)
            for number, tile in enumerate(images[:count]):
                image = f"images/{part}-{label}-{number}.png"
                x, y = (int(rng.integers(0, side - TILE)) for side in IMAGE_SIZE)
                pasted = Image.new(
                    "RGB", IMAGE_SIZE, tuple(int(v) for v in rng.integers(60, 200, 3))
                )
                pasted.paste(tile, (x, y))
                pasted.save(out / image)
                turns = [
                    {"from": "human", "value": "what is this?"},
                    {"from": "gpt", "value": f"{with_article(name)}."},
                ]
                record = {
                    "image": image,
                    "regions": [[x, y, x + TILE, y + TILE]],
                    "conversations": turns,
                }
                lines[path].append(json.dumps(record) + "\n")
    for path, each in lines.items():
        path.write_text("".join(each))
    return paths


def old_classes(model: str, coco: Path) -> Recognition:
    """Measure how the model names boxes of the dev photos."""
    boxes = read_boxes(coco / "instances_dev.json")
    return recognise(regionqa.load(model, device="cpu"), boxes, coco / "images")


def table_cells(result: Recognition) -> str:
    """Format three cells of the table."""
    without = result.accuracy(without="person")
    return f"{result.accuracy():.1f} % | {without:.1f} % | {result.class_mean:.1f} %"


def main() -> None:
    """Train and measure every chosen case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="*", default=["none", "own", "file", "replay"])
    parser.add_argument("--names", nargs="*", default=["goldfish", "school bus"])
    options = parser.parse_args()
    coco = options.data / "coco_small"
    train, held_out = write_records(options.data / "tiny_imagenet", options.out, options.names)
    print("| case | new things | old: all | no person | class mean | minutes |")
    print("|---|---|---|---|---|---|")
    print(f"| starter | | {table_cells(old_classes('starter', coco))} | |", flush=True)
    for case in options.cases:
        model = options.out / case
        started = time.perf_counter()
        words = ["--data", str(train), "--held-out", str(held_out), "--out", str(model)]
        if command(["finetune", *words, *cases(coco)[case], "--quiet"]):
            raise SystemExit(1)
        minutes = (time.perf_counter() - started) / 60
        new = open_bundle(model).card.provenance["held_out_accuracy"]
        old = table_cells(old_classes(str(model), coco))
        print(f"| {case} | {new:.1f} % | {old} | {minutes:.1f} |", flush=True)


if __name__ == "__main__":
    main()
