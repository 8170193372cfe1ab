"""The starter's stages that teach it to see: tiles, photos, then cuts of boxes.

    photos-*-done.pt   vision encoder, and a region encoder that only helps it to learn
    sight-done.pt      the region encoder that ships, with its classifier

Every stage leaves its file in the output folder; a stage whose file is there is skipped. It does
not know about language or bundles.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from regionqa.export.cuts import CutConfig
from regionqa.export.vision import ResNetConfig
from regionqa.finetune.cutting import CutSource, CuttingSettings
from regionqa.finetune.namer import Named, Namer, read_namer
from regionqa.finetune.pictures import PhotoSet, read_tiles
from regionqa.finetune.pretrain import (
    PretrainSettings,
    Recogniser,
    new_encoders,
    pretrain_on_photos,
    pretrain_on_tiles,
    recognise_photos,
    save_atomically,
)
from regionqa.finetune.sight import SightSettings, begin, named_boxes, scores, train_sight

TILE_NAMES = 200
log = logging.getLogger("regionqa.finetune")


def pretrained(
    data: Path,
    out: Path,
    photos: PhotoSet,
    config: ResNetConfig,
    tiles: PretrainSettings,
    rounds: Sequence[PretrainSettings],
) -> Recogniser:
    """Stages one and two: encoders that name boxes from maps of the whole picture."""
    torch.manual_seed(tiles.seed)
    done = [out / f"photos-{number}-done.pt" for number in range(1, len(rounds) + 1)]
    model = Recogniser(*new_encoders(config), TILE_NAMES)
    if not any(path.exists() for path in done):
        if not (out / "tiles-done.pt").exists():
            log.info("stage 1 of 4: names of tiles")
            pictures = read_tiles(data / "tiny_imagenet", [f"train-{part}" for part in range(4)])
            model = pretrain_on_tiles(model, pictures, tiles, out / "tiles.pt", log.info)
            save_atomically(model.state_dict(), out / "tiles-done.pt")
        model.load_state_dict(torch.load(out / "tiles-done.pt", weights_only=True))
    model.classifier = torch.nn.Linear(model.classifier.in_features, len(photos.names))
    for number, (settings, path) in enumerate(zip(rounds, done, strict=True), start=1):
        if not path.exists():
            if any(later.exists() for later in done[number:]):
                continue
            log.info("stage 2 of 4, round %d: names of boxes in photos", number)
            checkpoint = out / f"photos-{number}.pt"
            model = pretrain_on_photos(model, photos, settings, checkpoint, log.info)
            save_atomically(model.state_dict(), path)
        model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def report_recognition(model: Recogniser, dev: PhotoSet) -> None:
    """Log how often the classifier alone names a box of at least 32 px rightly."""
    rows = [row for row in recognise_photos(model, dev) if row[2] >= 32]
    person = dev.names.index("person")
    right = [label == predicted for label, predicted, _ in rows]
    others = [label == predicted for label, predicted, _ in rows if label != person]
    log.info("classifier on %d dev boxes: %.3f", len(rows), np.mean(right))
    log.info("classifier on %d dev boxes that are no person: %.3f", len(others), np.mean(others))


def sighted(
    data: Path,
    out: Path,
    photos: PhotoSet,
    seen: Recogniser,
    config: CutConfig,
    settings: SightSettings,
) -> Named:
    """Stage three: the region encoder that looks at cuts; photos: those to learn from."""
    done = out / "sight-done.pt"
    if not done.exists():
        log.info("stage 3 of 4: names of boxes, close and with their surroundings")
        torch.manual_seed(settings.seed)
        namer = Namer(config, len(photos.names))
        begin(namer, seen.vision)
        source = CutSource(photos, data / "tiny_imagenet", config, CuttingSettings())
        trained = train_sight(namer, source, settings, out / "sight-steps.pt", log.info)
        save_atomically(
            {
                "namer": trained.state_dict(),
                "names": list(photos.names),
                "counts": torch.tensor(source.counts),
            },
            done,
        )
    return read_namer(done, config)


def report_sight(named: Named, photos: PhotoSet, what: str) -> None:
    """Log how often the namer's classifier names a box of at least 32 px rightly."""
    logits, labels = named_boxes(named.namer, photos)
    log.info("%s: %s", what, scores(logits, labels, named.names))
