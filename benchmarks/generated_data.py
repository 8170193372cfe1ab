"""Does data beside names help? Train on growing mixtures, and measure each on held-out questions.

    PYTHONPATH=. python benchmarks/generated_data.py DATA/coco_small OUT [--steps 200] [--batch 16]
        [--start starter|untrained] [--only ROW ...]

Trains a model on three mixtures, with the same number of questions for each:

- names: `regionqa data convert` of COCO's instances, "what is this?"
- captions: the same, and COCO's captions, "describe this picture."
- generated: the same, and relations and attributes that rules generate from the annotations:
  comparisons of two or three boxes (question_kinds.py), shape and material by class
  (choice_kinds.py), and colours named from a box's pixels (recipes/starter/colours.py). No language
  model writes any of them.

Each source of a mixture has as many questions in a pass as the others. `starter` is finetuned
without rehearsal, and has been taught such questions before: the row "as shipped" is what it knew,
and the others show what is kept. `untrained` has its encoders and a language model of its shape
that has learned nothing, and needs thousands of steps.

Prints a row for each: names of dev boxes of at least 32 px; relations of two boxes as yes or no, as
one of two sides, and as which region; the colour of 100 boxes labelled by hand; shape and material
by the likeliest of four choices; CIDEr-D of captions. All are about photos that are not trained on,
and every question is answered, however uncertain. A model that is there is measured again, not
trained again.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import starter_questions
from choice_kinds import MATERIALS, SHAPES
from labelled_photos import LabelledPhoto, PhotoScene, read_labelled_photos
from PIL import Image
from question_kinds import relation, side, which
from starter import values

from recipes.starter.colours import colour_of
from regionqa.bundles.store import CARD, find_bundle
from regionqa.cli import main as command
from regionqa.evaluation.options import EvaluationOptions
from regionqa.evaluation.report import result_document
from regionqa.evaluation.results import EvalResult
from regionqa.evaluation.runner import EvalSettings, EvalTask, evaluate_models
from regionqa.evaluation.tasks.captions import CaptionTask
from regionqa.evaluation.tasks.recognition import RecognitionTask
from regionqa.evaluation.tasks.vqa import VqaTask
from regionqa.options import DeviceChoice, RuntimeOptions
from regionqa.pipeline.console import Console

MIN_SIDE = 24
"""Minimum of a box's shorter side, in pixels, for generated questions."""
PAIRS = ((relation, 4), (side, 2), (which, 2))
"""Makers of relations, and how often each is tried for a photo."""
SOURCES: Mapping[str, tuple[str, ...]] = {
    "names": ("names",),
    "captions": ("names", "captions"),
    "generated": ("names", "captions", "relations", "attributes"),
}
"""The sources of each row's mixture."""
ASKED = ("relation", "side", "which", "colour", "choice: shape", "choice: material")
SETTINGS = """held_out_share = 0
rehearse = 0
evaluate_every = 1000000
[instruct]
learning_rate = {rate}
orthogonal_rate = {orthogonal}
region = "projector"
weight_decay = 0.01
warm_up = 0.1
"""
RATES = {"starter": (2e-4, 0.0), "untrained": (1.5e-3, 10.0)}
"""Learning rate, and Muon's as a multiple of it."""
COLUMNS = (
    *("trained on", "names", "no person", "yes/no", "side", "which", "colour", "shape", "material"),
    "CIDEr-D",
)
Records = Iterator[dict[str, object]]


# -- training data ---------------------------------------------------------------------------------


def record(
    image: Path, regions: list[list[float]], question: str, answer: str
) -> dict[str, object]:
    """Return a training record of one question."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": str(image.absolute()), "regions": regions, "conversations": turns}


def captions(coco: Path) -> Records:
    """Yield COCO's captions of the training photos."""
    found = json.loads((coco / "captions_train.json").read_text(encoding="utf-8"))
    for number, texts in found.items():
        for text in texts:
            image = coco / "images" / f"{int(number):012}.jpg"
            yield record(image, [], "describe this picture.", text.strip().lower())


def relations(coco: Path) -> Records:
    """Yield comparisons of boxes, computed from their coordinates."""
    rng = np.random.default_rng(0)
    photos = read_labelled_photos(coco / "instances_train.json")
    for photo in photos.photos:
        large = np.flatnonzero(photo.sides >= MIN_SIDE)
        if len(large) < 2:
            continue
        kept = LabelledPhoto(
            photo.name, photo.width, photo.height, photo.boxes[large], photo.labels[large]
        )
        scene = PhotoScene.of(kept, photos.names, MIN_SIDE)
        samples = (maker(scene, rng) for maker, times in PAIRS for _ in range(times))
        for each in dict.fromkeys(sample for sample in samples if sample is not None):
            path = coco / "images" / kept.name
            yield record(path, kept.written(each.rows), each.question, each.answer)


def attributes(coco: Path) -> Records:
    """Yield colours, named from the pixels of boxes, and shapes and materials, from their class."""
    photos = read_labelled_photos(coco / "instances_train.json")
    for photo in photos.photos:
        path = coco / "images" / photo.name
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        for row in np.flatnonzero(photo.sides >= MIN_SIDE).tolist():
            box, name = photo.written([row]), photos.names[int(photo.labels[row])]
            colour = colour_of(pixels, photo.fractions[row])
            if colour is not None:
                yield record(path, box, "what colour is this?", f"{colour}.")
            for table, question in (
                (SHAPES, "what shape is <region1>?"),
                (MATERIALS, "what is <region1> mostly made of?"),
            ):
                for answer, classes in table.items():
                    if name in classes:
                        yield record(path, box, question, answer)


def write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> int:
    """Write records as JSON lines; return their number."""
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in records]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def write_sources(coco: Path, out: Path) -> dict[str, int]:
    """Write the data files of all mixtures; return the number of records of each."""
    names = out / "names.jsonl"
    words = ("data", "convert", coco / "instances_train.json", "--images", coco / "images")
    if command([*map(str, words), "--out", str(names), "--overwrite"]):
        raise SystemExit(1)
    with names.open(encoding="utf-8") as file:
        counts = {"names": sum(1 for _ in file)}
    for name, records in (
        ("captions", captions(coco)),
        ("relations", relations(coco)),
        ("attributes", attributes(coco)),
    ):
        counts[name] = write_lines(out / f"{name}.jsonl", records)
    return counts


def write_mixture(path: Path, sources: Sequence[str], counts: Mapping[str, int]) -> Path:
    """Write a mixture in which every source has as many questions in a pass as the largest."""
    most = max(counts[name] for name in sources)
    tables = [
        f'[[source]]\nfile = "{name}.jsonl"\nweight = {most / counts[name]:.3f}\n'
        for name in sources
    ]
    path.write_text("\n".join(tables), encoding="utf-8")
    return path


# -- training and measuring ------------------------------------------------------------------------


def untrained(folder: Path) -> Path:
    """Write the starter's encoders with a language model of its shape that knows nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from regionqa.export.bundle import given_tables, read_encoders, write_bundle

    starter = find_bundle("starter")
    language = starter.file(f"{starter.card.language.folder}/config.json").parent
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(language)
    card = given_tables(starter)
    for key in ("provenance", "confidence"):
        card.pop(key, None)
    card |= {"name": "untrained", "summary": "the starter's encoders, an untrained language model"}
    model = LlamaForCausalLM(config).float()
    write_bundle(folder, card, *read_encoders(starter), model, language / "tokenizer.json")
    return folder


def trained(out: Path, row: str, start: str, model: Path | str, steps: int, batch: int) -> Path:
    """Train a row, unless it is there."""
    folder = out / f"{start}-{row}"
    if not (folder / CARD).exists():
        rate, orthogonal = RATES[start]
        settings = out / f"{start}.toml"
        settings.write_text(SETTINGS.format(rate=rate, orthogonal=orthogonal), encoding="utf-8")
        words = [
            *("finetune", "--mixture", out / f"{row}.toml", "--model", model, "--out", folder),
            *("--settings", settings, "--stage", "instruct", "--steps", steps, "--batch", batch),
        ]
        if command([*map(str, words)]):
            raise SystemExit(1)
    return folder


def held_out_questions(coco: Path) -> Records:
    """Yield the questions about dev photos."""
    every = starter_questions.all_questions(coco, "dev")
    yield from (each for each in every if each["kind"] in ASKED)


def evaluate(model: str, task: EvalTask) -> dict[str, Any]:
    """Run a task as `regionqa eval --unsure-below 0` does; return what its --json writes."""
    runtime = RuntimeOptions(model=model, device=DeviceChoice.cpu)
    settings = EvalSettings(runtime, evaluation=EvaluationOptions(unsure_below=0))
    with Console() as console:
        result = evaluate_models(task, settings, console)
    assert isinstance(result, EvalResult)
    return result_document(result)


def measured(model: str, coco: Path) -> str:
    """Return the cells of a row: percent, but for CIDEr-D, the last."""
    images = coco / "images"
    names = values(evaluate(model, RecognitionTask(coco / "instances_dev.json", images)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "questions.jsonl")
        write_lines(file, held_out_questions(coco))
        asked = evaluate(model, VqaTask(file, images))
    free, likely = values(asked, "kind"), values(asked, "kind, by likelihood")
    told = values(evaluate(model, CaptionTask(coco / "captions_dev.json", images)))
    cells = [
        *(names["accuracy"], names["without_most_frequent"]),
        *(free[kind] for kind in ASKED[:4]),
        *(likely[kind] for kind in ASKED[4:]),
        told["cider_d"],
    ]
    return " | ".join(f"{value:.1f}" for value in cells)


def main() -> None:
    """Train and measure every row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder coco_small")
    parser.add_argument("out", type=Path, help="folder of everything made")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--start", choices=list(RATES), default="starter")
    parser.add_argument("--only", nargs="*", choices=list(SOURCES), default=list(SOURCES))
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    counts = write_sources(options.data, out)
    print(*(f"{name}: {count:,} records" for name, count in counts.items()), sep="\n")
    model: Path | str = "starter"
    if options.start == "untrained":
        model = out / "untrained"
        if not (model / CARD).exists():
            untrained(model)
    for row, sources in SOURCES.items():
        write_mixture(out / f"{row}.toml", sources, counts)
    lines = []
    if options.start == "starter":
        lines.append(f"| nothing, as shipped | {measured('starter', options.data)} |")
        print(lines[-1], flush=True)
    for row in options.only:
        folder = trained(out, row, options.start, model, options.steps, options.batch)
        lines.append(f"| {' + '.join(SOURCES[row])} | {measured(str(folder), options.data)} |")
        print(lines[-1], flush=True)
    print("", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *lines, sep="\n")


if __name__ == "__main__":
    main()
