"""The starter's stages that teach it to see: cuts of boxes and tiles, then whole photos.

    crops-done.pt      the region encoder that ships, with its classifiers
    image-done.pt   the vision encoder that ships, with its classifiers

Every stage leaves its file in the output folder; a stage whose file is there is skipped.
"""

import logging
from pathlib import Path

import torch

from recipes.starter.saving import save_atomically
from recipes.starter.vision.async_sgd import TrainingSchedule, train_async
from recipes.starter.vision.classifier import CropClassifier, TrainedClassifier, read_classifier
from recipes.starter.vision.crop_batches import CropSettings, CropSource
from recipes.starter.vision.crop_encoder import CropTask, named_boxes, scores
from recipes.starter.vision.image_encoder import ImageClassifier, ImageTask, begin
from recipes.starter.vision.mixup import MIXED
from recipes.starter.vision.photos import PhotoSet, Tiles, read_tiles
from regionqa.export.modules.crops import CropConfig
from regionqa.export.modules.resnet import ResNetConfig, ResNetVision

TILE_NAMES = 200
log = logging.getLogger("regionqa.finetune")


def all_tiles(data: Path) -> Tiles:
    """The tiles to learn from."""
    folder = data / "tiny_imagenet"
    return read_tiles(folder, sorted(path.stem for path in folder.glob("train-*.npz")))


def train_crop_encoder(
    data: Path,
    out: Path,
    photos: PhotoSet,
    config: CropConfig,
    schedule: TrainingSchedule,
    again: TrainingSchedule,
) -> TrainedClassifier:
    """Stage one: the region encoder, which looks at cuts; photos: those to learn from."""
    done = out / "crops-done.pt"
    if not done.exists():
        log.info("stage 1 of 3: names of tiles, and of boxes close and with their surroundings")
        torch.manual_seed(schedule.seed)
        trained = CropClassifier(config, len(photos.names), TILE_NAMES)
        source = CropSource(photos, all_tiles(data), config, CropSettings())
        for each, mixed, file in (
            (schedule, 0.0, "crop-steps.pt"),
            (again, MIXED, "second-crop-steps.pt"),
        ):
            task = CropTask(source, mixed=mixed)
            trained = train_async(trained, task, each, out / file, log.info)
        save_atomically(
            {
                "namer": trained.state_dict(),
                "names": list(photos.names),
                "counts": torch.tensor(source.counts),
            },
            done,
        )
    return read_classifier(done, config)


def report_crop_accuracy(named: TrainedClassifier, photos: PhotoSet, what: str) -> None:
    """Log how often the namer's classifier names a box of at least 32 px rightly."""
    logits, labels = named_boxes(named.namer, photos)
    log.info("%s: %s", what, scores(logits, labels, named.names))


def train_image_encoder(
    out: Path,
    photos: PhotoSet,
    named: TrainedClassifier,
    config: ResNetConfig,
    schedule: TrainingSchedule,
) -> ImageClassifier:
    """Stage two: the vision encoder, which looks at whole photos; photos: those to learn from."""
    done = out / "image-done.pt"
    torch.manual_seed(schedule.seed)
    model = ImageClassifier(ResNetVision(config), len(photos.names))
    if not done.exists():
        log.info("stage 2 of 3: what whole photos show, and where")
        begin(model.vision, named.namer.region.trunk)
        task = ImageTask(photos, config.token_grid)
        model = train_async(model, task, schedule, out / "image-steps.pt", log.info)
        save_atomically(model.state_dict(), done)
    model.load_state_dict(torch.load(done, weights_only=True))
    return model.eval()
