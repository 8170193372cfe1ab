"""Measure learning and forgetting when the starter is finetuned on two new things.

    python benchmarks/new_things.py DATA OUT [SET ...] [--cases CASE ...] [-- OPTION ...]

DATA holds `coco_small/` and, for the set `tiles`, `tiny_imagenet/`. Prints a row for each set and
case: accuracy on held-out answers, accuracy on old classes in the dev photos, optimizer steps,
CPU and wall minutes. OPTIONs are passed to `regionqa finetune`; without any, all is default.

Sets: `sixty` (60 boxes: a green star or a striped tower in each of 60 photos), `ten` (10 boxes of
each), `tiles` (150 boxes of each: goldfish and school buses, 64 px and unscaled, on grey). 100
other boxes are asked afterwards.

Cases: `own` (the default: the starter's own answers about random boxes in the new images), `none`
(no rehearsal), `file` (the starter's answers about boxes of COCO photos), `replay` (the same with
COCO's labels), `lora` (as `file`, with LoRA).
"""

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import regionqa
from regionqa.boxes.files import read_boxes
from regionqa.bundles.store import open_bundle
from regionqa.cli import main as command
from regionqa.data.english import with_article
from regionqa.data.files import read_training_data
from regionqa.evaluation.tasks.recognition import Recognition, recognise
from regionqa.finetune.finish import ask_held_out

IMAGE_SIZE = (160, 120)
TILE = 64
HELD_OUT = 50
"""Held-out boxes of each thing."""
SCALE = 4
"""Drawings are made so many times larger, and smoothed."""
TILES = ("goldfish", "school bus")
DRAWN = ("green star", "striped tower")
Rng = np.random.Generator


@dataclass(frozen=True)
class Pasted:
    """An image with one thing in it."""

    image: Image.Image
    box: tuple[int, int, int, int]
    name: str


def cases(coco: Path) -> dict[str, list[str]]:
    """Return the options of `regionqa finetune` by case."""
    train = str(coco / "instances_train.json")
    return {
        "own": [],
        "none": ["--rehearse", "0"],
        "file": ["--rehearse-on", train],
        "replay": ["--replay", train],
        "lora": ["--rehearse-on", train, "--lora", "8"],
    }


def green_star(rng: Rng) -> Image.Image:
    """Draw a star with five points, turned at random, on transparent ground."""
    side = int(rng.integers(40, 110)) * SCALE
    image = Image.new("RGBA", (side, side))
    turn, inner = rng.uniform(0, 2 * math.pi), rng.uniform(0.35, 0.5)
    points = []
    for corner in range(10):
        radius = side / 2 * (1.0 if corner % 2 == 0 else inner)
        angle = turn + corner * math.pi / 5
        points.append((side / 2 + radius * math.cos(angle), side / 2 + radius * math.sin(angle)))
    low, high = (10, 130, 20), (90, 220, 100)
    ImageDraw.Draw(image).polygon(points, fill=tuple(map(int, rng.integers(low, high))))
    return image


def striped_tower(rng: Rng) -> Image.Image:
    """Draw a tower with level stripes of two colours and a pointed roof."""
    width = int(rng.integers(24, 56)) * SCALE
    height = round(width * rng.uniform(1.8, 3.0))
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    dark, light = rng.integers(0, 130, 3), rng.integers(180, 255, 3)
    stripes, roof = int(rng.integers(6, 11)), height // 5
    edges = np.linspace(roof, height, stripes + 1)
    for number, (top, bottom) in enumerate(pairwise(edges)):
        colour = (dark, light)[number % 2]
        draw.rectangle((width * 0.1, top, width * 0.9, bottom), fill=tuple(map(int, colour)))
    draw.polygon([(0, roof), (width, roof), (width / 2, 0)], fill=tuple(map(int, dark)))
    return image


DRAWINGS: dict[str, Callable[[Rng], Image.Image]] = dict(
    zip(DRAWN, (green_star, striped_tower), strict=True)
)


def drawn_things(photos: Sequence[Path], count: int, seed: int) -> Iterator[Pasted]:
    """Paste so many of each drawn thing into photos, one in each."""
    rng = np.random.default_rng(seed)
    names = [name for name in DRAWN for _ in range(count)]
    for path, name in zip(photos, names, strict=False):
        thing = DRAWINGS[name](rng)
        thing = thing.crop(thing.getbbox())
        size = (thing.width // SCALE, thing.height // SCALE)
        thing = thing.resize(size, Image.Resampling.LANCZOS)
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        x = int(rng.integers(0, photo.width - size[0]))
        y = int(rng.integers(0, photo.height - size[1]))
        photo.paste(thing, (x, y), thing)
        yield Pasted(photo, (x, y, x + size[0], y + size[1]), name)


def tiles(folder: Path, part: str, count: int) -> Iterator[Pasted]:
    """Paste so many images of each of two classes of Tiny-ImageNet on grey."""
    rng = np.random.default_rng([0, len(part)])
    classes = json.loads((folder / "classes.json").read_text())
    for name in TILES:
        label = next(i for i, each in enumerate(classes) if name in each["name"].split(", "))
        files = ["val"] if part == "held-out" else ["train-0", "train-1"]
        found = [tile for file in files for tile in tiles_of(folder / f"{file}.npz", label)]
        for tile in found[:count]:
            x, y = (int(rng.integers(0, side - TILE)) for side in IMAGE_SIZE)
            grey = tuple(int(v) for v in rng.integers(60, 200, 3))
            image = Image.new("RGB", IMAGE_SIZE, grey)
            image.paste(tile, (x, y))
            yield Pasted(image, (x, y, x + TILE, y + TILE), name)


def tiles_of(path: Path, label: int) -> Iterator[Image.Image]:
    """Yield the images of a class in one file of Tiny-ImageNet."""
    with np.load(path) as archive:
        data, offsets = archive["data"].tobytes(), archive["offsets"]
        for index in np.flatnonzero(archive["label"] == label):
            with Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]])) as image:
                yield image.convert("RGB")


def sets(data: Path) -> dict[str, tuple[Iterator[Pasted], Iterator[Pasted]]]:
    """Return the training and held-out things of every set."""
    photos = sorted((data / "coco_small" / "images").iterdir())
    known = {name for name, _ in images_of(data / "coco_small" / "instances_dev.json")}
    photos = [path for path in photos if path.name not in known]
    order = np.random.default_rng(0).permutation(len(photos))
    held_out, rest = ([photos[i] for i in part] for part in (order[:100], order[100:]))
    tiny = data / "tiny_imagenet"
    return {
        "sixty": (drawn_things(rest, 30, 1), drawn_things(held_out, HELD_OUT, 2)),
        "ten": (drawn_things(rest, 10, 3), drawn_things(held_out, HELD_OUT, 2)),
        "tiles": (tiles(tiny, "train", 150), tiles(tiny, "held-out", HELD_OUT)),
    }


def images_of(coco: Path) -> Iterator[tuple[str, int]]:
    """Yield name and number of every image of a COCO file."""
    for image in json.loads(coco.read_text())["images"]:
        yield image["file_name"], image["id"]


def write_records(things: Iterator[Pasted], path: Path) -> Path:
    """Write images into a folder beside `path`, and a record about each into it."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, thing in enumerate(things):
        name = f"{path.stem}/{number}.png"
        thing.image.save(path.parent / name)
        asked, said = "what is this?", f"{with_article(thing.name)}."
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
        record = {"image": name, "regions": [list(thing.box)], "conversations": turns}
        lines.append(json.dumps(record) + "\n")
    path.write_text("".join(lines))
    return path


def new_accuracy(model: Path, held_out: Path) -> float:
    """Share of held-out boxes that a model names, in percent."""
    records = read_training_data(held_out).records
    return 100 * float(ask_held_out(open_bundle(model), records).right.mean())


def old_classes(model: str, coco: Path) -> Recognition:
    """Measure how the model names boxes of the dev photos."""
    boxes = read_boxes(coco / "instances_dev.json")
    return recognise(regionqa.load(model, device="cpu"), boxes, coco / "images")


def table_cells(result: Recognition) -> str:
    """Format three cells of the table."""
    without = result.accuracy(without="person")
    return f"{result.accuracy():.1f} % | {without:.1f} % | {result.class_mean:.1f} %"


def steps_of(model: Path) -> str:
    """Describe the steps that a run took in each stage, and which of them it kept."""
    cells = []
    for stage in open_bundle(model).card.provenance["stages"]:
        plan = stage.get("plan")
        own = f"{plan['taken']} (kept {plan['kept']})" if plan else str(stage["steps"])
        cells.append(own)
    return " + ".join(cells)


def main() -> None:
    """Train and measure every chosen set and case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("sets", nargs="*", default=["sixty", "ten", "tiles"])
    parser.add_argument("--cases", nargs="*", default=["own"])
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options, passed = parser.parse_args(words[:end]), words[end + 1 :]
    coco = options.data / "coco_small"
    print("| set | case | new things | old: all | no person | class mean | steps | CPU min | min |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(f"| starter | | | {table_cells(old_classes('starter', coco))} | | | |", flush=True)
    known = sets(options.data)
    for name in options.sets:
        folder = options.out / name
        train, held_out = (
            write_records(things, folder / f"{part}.jsonl")
            for part, things in zip(("train", "held-out"), known[name], strict=True)
        )
        for case in options.cases:
            model = folder / case
            started, used = time.perf_counter(), time.process_time()
            words = ["--data", str(train), "--out", str(model), *cases(coco)[case], *passed]
            if command(["finetune", *words]):
                raise SystemExit(1)
            minutes = (time.perf_counter() - started) / 60
            cpu = (time.process_time() - used) / 60
            new, old = new_accuracy(model, held_out), table_cells(old_classes(str(model), coco))
            cells = f"{new:.1f} % | {old} | {steps_of(model)} | {cpu:.1f} | {minutes:.1f}"
            print(f"| {name} | {case} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
