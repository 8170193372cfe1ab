"""The recipe of the starter: from photos and tiles to the bundle that ships.

    python -m regionqa.finetune.starter --data DATA --out runs/starter

DATA holds `tiny_imagenet/` and `coco_small/`. Every stage leaves a file in the output folder; a
stage whose file is there is skipped, one that was killed goes on from its checkpoint. The last line
names the folder of the finished bundle.
"""

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from regionqa.boxfiles import read_boxes
from regionqa.bundles import open_bundle
from regionqa.engine import Engine
from regionqa.evaluation.recognition import recognise
from regionqa.export.bundle import write_bundle, write_card
from regionqa.export.graphs import halve
from regionqa.export.vision import ResNetConfig
from regionqa.finetune.language import (
    LANGUAGE,
    Connector,
    LanguageSettings,
    Splicer,
    encode_views,
    new_language_model,
    train_language,
    train_tokenizer,
)
from regionqa.finetune.pictures import PhotoSet, read_photos
from regionqa.finetune.pretrain import PHOTOS, TILES, Recogniser
from regionqa.finetune.questions import Scene, draw_sample
from regionqa.finetune.seeing import pretrained, report_recognition
from regionqa.prompts import PromptRules
from regionqa.tokenizer import BundleTokenizer

START, STOP, ANSWER = "<s>", "</s>", "<answer>"
CONTEXT = 256
RULES = PromptRules(
    template=f"{START}{{image}}{{question}}{ANSWER}",
    region="{region}",
    picture_question="describe this picture.",
    region_question="describe <region1>.",
    introduction="{regions}",
    separator="",
)
log = logging.getLogger("regionqa.finetune")


def card_tables(config: ResNetConfig) -> dict[str, Any]:
    """The starter's card, without what is found when the bundle is written."""
    return {
        "name": "starter",
        "summary": "small GPT4RoI-kind model: 80 everyday things in photos; runs anywhere, offline",
        "max_regions": 16,
        "picture": {
            "size": config.input_size,
            "fit": "squash",
            "resample": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "vision": {
            "graph": "vision.onnx",
            "image_tokens": config.token_grid**2,
            "levels": [f"level{index}" for index in range(len(config.levels))],
        },
        "region": {"graph": "region.onnx", "tokens": 1},
        "language": {
            "folder": "llm",
            "runtime": "native",
            "context": CONTEXT,
            "max_new_tokens": 48,
            "stop": [STOP],
        },
        "prompt": {
            "template": RULES.template,
            "region": RULES.region,
            "picture_question": RULES.picture_question,
            "region_question": RULES.region_question,
            "introduction": RULES.introduction,
            "separator": RULES.separator,
        },
        "provenance": {
            "data": "Tiny-ImageNet-200 (100,000 pictures of 64 px) for pretraining; 2,478 COCO "
            "2017 photos of at most 320 px with their boxes and captions",
            "licence": "weights: for research, not for commercial use, as Tiny-ImageNet's "
            "(ImageNet's) terms ask of what was trained on it; COCO annotations CC BY 4.0, COCO "
            "photos under their own Flickr licences",
            "recipe": "python -m regionqa.finetune.starter",
        },
    }


def tokenizer_texts(photos: PhotoSet, seed: int) -> list[str]:
    """Captions and drawn questions with answers, for the tokenizer to learn from."""
    rng = np.random.default_rng(seed)
    texts = [caption for photo in photos.photos for caption in photo.captions]
    for photo in photos.photos:
        if not len(photo.labels):
            continue
        boxes = photo.boxes / photo.scale
        weights = np.ones(len(photo.labels), np.float32)
        scene = Scene(boxes, photo.labels, photo.captions, photos.names, True, weights)
        for _ in range(8):
            sample = draw_sample(scene, rng)
            texts += [sample.question, sample.answer]
    return texts


def train_words(
    model: Recogniser, photos: PhotoSet, settings: LanguageSettings, out: Path
) -> tuple[LlamaForCausalLM, Path]:
    """Stage four: tokenizer, connector and language model."""
    log.info("stage 4 of 4: questions and answers")
    config = model.vision.config
    tokenizer_file = out / "tokenizer.json"
    if not tokenizer_file.exists():
        texts = tokenizer_texts(photos, settings.seed)
        train_tokenizer(iter(texts), settings.vocabulary, (START, STOP, ANSWER), tokenizer_file)
    tokenizer = BundleTokenizer(tokenizer_file)
    torch.manual_seed(settings.seed)
    stop = tokenizer.token_id(STOP)
    language = new_language_model(tokenizer.size, config.hidden_size, CONTEXT, stop)
    connector = Connector(model)
    done = out / "language-done.pt"
    if not done.exists():
        views = encode_views(model, photos, settings, log.info)
        splicer = Splicer(RULES, tokenizer, config.token_grid**2, stop, settings.noise)
        checkpoint = out / "language.pt"
        train_language(language, connector, views, splicer, settings, checkpoint, log.info)
        states = {"model": language.state_dict(), "connector": connector.state_dict()}
        torch.save(states, done)
    states = torch.load(done, weights_only=True)
    language.load_state_dict(states["model"])
    connector.load_state_dict(states["connector"])
    return language.eval(), tokenizer_file


def measured(folder: Path, data: Path) -> dict[str, str]:
    """What the bundle in `folder` reaches on the dev photos, in words for its card."""
    engine = Engine.load(open_bundle(folder), device="cpu")
    photos = data / "coco_small"
    result = recognise(engine, read_boxes(photos / "instances_dev.json"), photos / "images")
    name, always = result.most_frequent(without="person")
    return {
        "measured": "what is this? on boxes of at least 32 px in 200 dev photos, 80 classes: "
        f"{result.accuracy():.1f} % of {result.count()} boxes, "
        f"{result.accuracy(without='person'):.1f} % of the {result.count(without='person')} that "
        f"are no person (always {name!r}: {always:.1f} %), mean over classes "
        f"{result.class_mean:.1f} %",
        "measured_by": "regionqa eval recognition --boxes INSTANCES.json --images PICTURES",
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not done yet."""
    parser = argparse.ArgumentParser(prog="python -m regionqa.finetune.starter")
    parser.add_argument("--data", type=Path, required=True, help="folder of the two data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and bundle")
    parser.add_argument("--tile-epochs", type=float, default=TILES.epochs)
    parser.add_argument("--photo-epochs", type=float, help="of each round")
    parser.add_argument("--language-steps", type=int, default=LANGUAGE.steps)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    photos = read_photos(options.data / "coco_small", "train")
    tiles = replace(TILES, epochs=options.tile_epochs)
    rounds = [replace(each, epochs=options.photo_epochs or each.epochs) for each in PHOTOS]
    model = pretrained(options.data, options.out, photos, ResNetConfig(), tiles, rounds)
    report_recognition(model, read_photos(options.data / "coco_small", "dev"))
    settings = replace(LANGUAGE, steps=options.language_steps)
    language, tokenizer = train_words(model, photos, settings, options.out)
    folder, card = options.out / "starter", card_tables(model.vision.config)
    for module in (model.vision, model.region, language):
        halve(module)
    language.to(torch.float16)
    bundle, reports = write_bundle(folder, card, model.vision, model.region, language, tokenizer)
    card["provenance"] |= measured(folder, options.data)
    write_card(folder, card, model.vision, model.region)
    log.info(card["provenance"]["measured"])
    for report in reports:
        log.info(
            "%s differs from torch by %.1e over %s", report.graph, report.difference, report.cases
        )
    log.info("wrote %s, %.1f MB", bundle.root, bundle.size / 1e6)


if __name__ == "__main__":
    main()
