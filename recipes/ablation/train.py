"""The four systems of PVIT's table 1 at the starter's scale, on the same data and budget.

    python -m recipes.ablation.train --data DATA/coco_small --out runs/ablation

All start from one base, which has learned from whole images only, as PVIT starts from LLaVA: the
starter's vision encoder, and a language model trained from nothing on captions, counts and what is
there. Each then learns to name boxes. What differs is how it is told of a box: not at all (LLaVA),
coordinates as text (Shikra), RoIAlign of the vision encoder's maps (GPT4RoI), or an encoder of its
own on more pixels that has learned from boxes (PVIT). The last two are trained in two stages and,
with as many steps, in one. A run that was stopped continues where it was.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recipes.starter.decoder import new_language_model
from recipes.starter.photos import Photo, read_photos
from recipes.starter.records.mixture import write_records
from recipes.starter.records.scenes import Scene, annotated_scene
from regionqa.boxes.files import read_boxes
from regionqa.bundles.store import CARD, Bundle, find_bundle, open_bundle
from regionqa.data.english import with_article
from regionqa.engine import Engine
from regionqa.evaluation.tasks.recognition import Recognition, recognise
from regionqa.export.backbones import new_pixel_encoder, new_roi_encoder
from regionqa.export.bundle import given_tables, read_encoders, write_bundle
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.timm_vision import TimmVision
from regionqa.export.onnx.export import round_to_float16
from regionqa.finetune.config import (
    SETTINGS,
    TRAINING,
    FinetuneSettings,
    RegionPart,
    Stages,
    StageSettings,
)
from regionqa.finetune.run import finetune
from regionqa.requests import NAMING_QUESTION

SMALLEST = 16.0
"""Shorter side in pixels of the boxes that are learned from."""
WHOLE = {
    "caption": 0.5, "presence: yes": 0.15, "presence: no": 0.15,
    **{f"count: {number}": 0.04 for number in range(1, 6)},
}  # fmt: skip
"""Kinds of questions that the base is asked about whole images, and how often."""
COORDINATES = "[{x0}, {y0}, {x1}, {y1}] "
"""As Shikra writes a box."""


@dataclass(frozen=True)
class Row:
    """One system of the table."""

    name: str
    kind: str
    """none, coordinates, features or pixels."""
    stages: tuple[str, ...]
    """Which stages run."""


ROWS = (
    Row("whole picture (LLaVA)", "none", ("instruct",)),
    Row("coordinates as text (Shikra)", "coordinates", ("instruct",)),
    Row("RoI features (GPT4RoI)", "features", ("align", "instruct")),
    Row("RoI features, one stage", "features", ("instruct",)),
    Row("region encoder (PVIT)", "pixels", ("align", "instruct")),
    Row("region encoder, one stage", "pixels", ("instruct",)),
)


@dataclass(frozen=True)
class Budget:
    """How much every row may train."""

    base_steps: int = 1500
    """Steps of the base on whole pictures."""
    steps: int = 800
    """Steps of a row on boxes, over all its stages."""
    align_share: float = 0.25
    """Share of them that two-stage rows spend on the first."""
    batch: int = 32
    """Questions a step."""


def scenes_of(photos: Sequence[Photo], names: tuple[str, ...]) -> list[Scene]:
    """Describe photos by their annotations."""
    return [annotated_scene(photo, names) for photo in photos]


def write_whole_records(scenes: Sequence[Scene], each: int, path: Path) -> Path:
    """Write questions about whole images, so many for each, unless the file is there."""
    if not path.exists():
        write_records(scenes, WHOLE, each * len(scenes), 0, path)
    return path


def box_records(photos: Sequence[Photo], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What each box is, for boxes that are not too small."""
    for photo in photos:
        for box, label in zip(photo.boxes, photo.labels, strict=True):
            if (box[2:] - box[:2]).min() >= SMALLEST:
                answer = f"{with_article(names[label])}."
                yield line(photo, [box.tolist()], NAMING_QUESTION, answer)


def line(photo: Photo, regions: list[list[float]], question: str, answer: str) -> dict[str, Any]:
    """One record of training data."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    image = str(photo.path.absolute())
    return {"image": image, "regions": regions, "conversations": turns}


def write_lines(path: Path, records: Iterator[Mapping[str, Any]]) -> Path:
    """JSON lines, unless the file is there."""
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in records))
        partial.replace(path)
    return path


def untrained(folder: Path, starter: Bundle) -> Bundle:
    """The starter's vision encoder and a language model of its shape that knows nothing."""
    if (folder / CARD).exists():
        return open_bundle(folder)
    vision = with_levels(read_encoders(starter)[0], None)
    tokenizer = starter.file(f"{starter.card.language.folder}/tokenizer.json")
    config = json.loads(starter.file(f"{starter.card.language.folder}/config.json").read_text())
    torch.manual_seed(0)
    language = new_language_model(
        config["vocab_size"], config["hidden_size"], starter.card.language.context,
        config["eos_token_id"],
    )  # fmt: skip
    card = variant_card(starter, "none", {}) | {"untrained": ["projector", "language model"]}
    return write_bundle(folder, card, vision, None, language, tokenizer)[0]


def variant(folder: Path, base: Bundle, starter: Bundle, kind: str) -> Bundle:
    """The base, told of regions in one of the four ways; what is new is untrained."""
    if (folder / CARD).exists():
        return open_bundle(folder)
    torch.manual_seed(1)
    like = read_encoders(starter)[0] if kind == "features" else None
    vision = with_levels(read_encoders(base)[0], like)
    region, region_table = untrained_region_encoder(vision, kind)
    if region is not None:
        round_to_float16(region)
    folder_of_words = base.file(base.card.language.folder)
    tokenizer = folder_of_words / "tokenizer.json"
    card = variant_card(base, kind, region_table)
    return write_bundle(folder, card, vision, region, folder_of_words, tokenizer)[0]


def with_levels(vision: VisionModule, like: VisionModule | None) -> TimmVision:
    """Copy a vision encoder with the levels of another one on the same backbone; None: without."""
    assert isinstance(vision, TimmVision)
    levels: tuple[int, ...] = ()
    pixels = 0
    if like is not None:
        assert isinstance(like, TimmVision)
        levels, pixels = like.config.levels, like.config.pixels
    copied = TimmVision(replace(vision.config, levels=levels, pixels=pixels))
    copied.load_state_dict(vision.state_dict())
    return copied.eval()


def untrained_region_encoder(
    vision: TimmVision, kind: str
) -> tuple[RegionModule | None, dict[str, Any]]:
    """Create the region encoder of a row, and its [region] table; None and no keys without one.

    That on pixels is the starter's, except for its projector: it has learned from boxes, as PVIT's
    RegionCLIP has.
    """
    if kind == "features":
        return new_roi_encoder(vision), {"graph": "region.onnx", "tokens": 1}
    if kind == "pixels":
        return new_pixel_encoder(vision.config.hidden_size)
    return None, {}


def variant_card(base: Bundle, kind: str, region_table: Mapping[str, Any]) -> dict[str, Any]:
    """Change the tables of the base's card that are about regions.

    region_table: [region]; empty without a region encoder.
    """
    table = given_tables(base)
    for key in ("provenance", "region", "untrained", "detector"):
        table.pop(key, None)
    table["name"] = f"ablation-{kind}"
    table["summary"] = f"ablation: regions as {kind}"
    table["language"]["folder"] = "llm"
    patterns = {"none": "", "coordinates": COORDINATES}
    table["prompt"]["region"] = patterns.get(kind, "{region}")
    if region_table:
        table |= {"untrained": ["region encoder"], "region": dict(region_table)}
    return table


def row_stages(budget: Budget, row: Row) -> Stages:
    """The same number of steps for every row, however many stages it has."""
    first = round(budget.steps * budget.align_share) if len(row.stages) == 2 else 0
    part = RegionPart.projector if row.kind == "pixels" else RegionPart.all
    align = StageSettings(
        learning_rate=1e-3, steps=max(1, first), batch=budget.batch, region=part, warm_up=0.1,
        weight_decay=0.01,
    )  # fmt: skip
    instruct = replace(
        align, learning_rate=5e-4, orthogonal_rate=10, steps=budget.steps - first, projector=True,
        language=True,
    )  # fmt: skip
    return Stages(align, instruct)


def trained(settings: FinetuneSettings, out: Path) -> Bundle:
    """A run, started or gone on with."""
    bundle = finetune(settings, out, resume=(out / TRAINING / SETTINGS).exists())
    assert bundle is not None  # this is the one process there is
    return bundle


def run_row(row: Row, start: Bundle, data: Path, out: Path, budget: Budget) -> Bundle:
    """Train one row of the table."""
    settings = FinetuneSettings(
        model=str(start.root), data=(str(data),), stages=row_stages(budget, row), run=row.stages,
        rehearse=0, held_out_share=0.03, evaluate_every=200, save_every=200,
    )  # fmt: skip
    return trained(settings, out)


def train_base(out: Path, starter: Bundle, data: Path, budget: Budget) -> Bundle:
    """The model that knows whole pictures only."""
    start = untrained(out / "untrained", starter)
    whole = StageSettings(
        learning_rate=1.5e-3, orthogonal_rate=10, steps=budget.base_steps, batch=budget.batch,
        warm_up=0.1, weight_decay=0.1, projector=True, language=True,
    )  # fmt: skip
    settings = FinetuneSettings(
        model=str(start.root), data=(str(data),), stages=Stages(whole, whole), run=("instruct",),
        rehearse=0, held_out_share=0.03, evaluate_every=200, save_every=200,
    )  # fmt: skip
    return trained(settings, out / "base")


def table_line(row: Row, result: Recognition) -> str:
    """A row of the printed table."""
    return (
        f"| {row.name} | {result.accuracy():.1f} % | {result.accuracy(without='person'):.1f} % | "
        f"{result.class_mean:.1f} % |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m recipes.ablation.train")
    parser.add_argument("--data", type=Path, required=True, help="folder of the COCO photos")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything made")
    parser.add_argument("--base-steps", type=int, default=Budget.base_steps)
    parser.add_argument("--steps", type=int, default=Budget.steps)
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of rows, from 1; else all")
    options = parser.parse_args(arguments)
    budget = Budget(base_steps=options.base_steps, steps=options.steps)
    options.out.mkdir(parents=True, exist_ok=True)
    photos, names = read_photos(options.data, "train")
    labelled = [photo for photo in photos if len(photo.labels)]
    whole = write_whole_records(scenes_of(labelled, names), 6, options.out / "whole.jsonl")
    boxes = write_lines(options.out / "boxes.jsonl", box_records(photos, names))
    starter = find_bundle("starter")
    base = train_base(options.out, starter, whole, budget)
    lines = []
    for number, row in enumerate(ROWS, start=1):
        if options.rows and number not in options.rows:
            continue
        start = variant(options.out / f"start-{row.kind}", base, starter, row.kind)
        bundle = run_row(row, start, boxes, options.out / f"row-{number}-{row.kind}", budget)
        engine = Engine.load(bundle, device="cpu")
        result = recognise(
            engine, read_boxes(options.data / "instances_dev.json"), options.data / "images"
        )
        lines.append(table_line(row, result))
        print(lines[-1], flush=True)  # noqa: T201 (the program's answer)
    print("\n| told of a box by | all boxes | no person | mean over classes |")  # noqa: T201
    print("|---|---|---|---|", *lines, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
