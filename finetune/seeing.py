"""The starter's stages that teach it to see: cuts of boxes and tiles, then whole photos.

    sight-done.pt      the region encoder that ships, with its classifiers
    overview-done.pt   the vision encoder that ships, with its classifiers

Every stage leaves its file in the output folder; a stage whose file is there is skipped. It does
not know about language or bundles.
"""

import logging
from pathlib import Path

import torch

from regionqa.export.cuts import CutConfig
from regionqa.export.vision import ResNetConfig, ResNetVision
from regionqa.finetune.cutting import CutSource, CuttingSettings
from regionqa.finetune.hogwild import Course, train
from regionqa.finetune.mixing import MIXED
from regionqa.finetune.namer import Named, Namer, read_namer
from regionqa.finetune.overview import Overview, OverviewLesson, begin
from regionqa.finetune.pictures import PhotoSet, Tiles, read_tiles
from regionqa.finetune.saving import save_atomically
from regionqa.finetune.sight import SightLesson, named_boxes, scores

TILE_NAMES = 200
log = logging.getLogger("regionqa.finetune")


def all_tiles(data: Path) -> Tiles:
    """The tiles to learn from."""
    folder = data / "tiny_imagenet"
    return read_tiles(folder, sorted(path.stem for path in folder.glob("train-*.npz")))


def sighted(
    data: Path,
    out: Path,
    photos: PhotoSet,
    config: CutConfig,
    course: Course,
    again: Course,
) -> Named:
    """Stage one: the region encoder, which looks at cuts; photos: those to learn from."""
    done = out / "sight-done.pt"
    if not done.exists():
        log.info("stage 1 of 3: names of tiles, and of boxes close and with their surroundings")
        torch.manual_seed(course.seed)
        trained = Namer(config, len(photos.names), TILE_NAMES)
        source = CutSource(photos, all_tiles(data), config, CuttingSettings())
        for each, mixed, file in (
            (course, 0.0, "sight-steps.pt"),
            (again, MIXED, "sight-again-steps.pt"),
        ):
            lesson = SightLesson(source, mixed=mixed)
            trained = train(trained, lesson, each, out / file, log.info)
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


def overviewed(
    out: Path, photos: PhotoSet, named: Named, config: ResNetConfig, course: Course
) -> Overview:
    """Stage two: the vision encoder, which looks at whole photos; photos: those to learn from."""
    done = out / "overview-done.pt"
    torch.manual_seed(course.seed)
    model = Overview(ResNetVision(config), len(photos.names))
    if not done.exists():
        log.info("stage 2 of 3: what whole photos show, and where")
        begin(model.vision, named.namer.region.trunk)
        lesson = OverviewLesson(photos, config.token_grid)
        model = train(model, lesson, course, out / "overview-steps.pt", log.info)
        save_atomically(model.state_dict(), done)
    model.load_state_dict(torch.load(done, weights_only=True))
    return model.eval()
