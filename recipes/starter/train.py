"""Train the starter: from photos and tiles to the shipped bundle.

    python -m recipes.starter.train --data DATA --out runs/starter

With `--encoders starter`, train the last stage alone, on the shipped encoders.

DATA holds `tiny_imagenet/` and `coco_small/`. Every stage leaves a file in the output folder; a
finished stage is skipped, an interrupted one continues from its checkpoint. The last line
names the folder of the finished bundle.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from recipes.starter.calibration import calibrate_starter
from recipes.starter.card import ANSWER, CONTEXT, IMAGE, START, STOP, starter_card
from recipes.starter.language.features import (
    FeatureSettings,
    ImageView,
    encode_views,
    load_views,
    save_views,
)
from recipes.starter.language.model import new_language_model, tokenizer_texts, train_tokenizer
from recipes.starter.language.probes import (
    image_probe,
    initialize_from_probe,
    name_directions,
    name_probe,
)
from recipes.starter.language.swapped_images import swap_crop_images, swap_photo_images
from recipes.starter.language.train import (
    LANGUAGE_SETTINGS,
    LANGUAGE_STAGE,
    POSITION_STAGE,
    LanguageFeatures,
    LanguagePlan,
    LanguageSettings,
    train_language,
)
from recipes.starter.questions.random_boxes import views_anywhere
from recipes.starter.saving import save_atomically
from recipes.starter.vision.async_sgd import TrainingSchedule
from recipes.starter.vision.crop_encoder import CROP_SCHEDULE, SECOND_CROP_SCHEDULE
from recipes.starter.vision.image_encoder import IMAGE_SCHEDULE, presence_scores
from recipes.starter.vision.photos import PhotoSet, read_photos, split
from recipes.starter.vision.stages import (
    report_crop_accuracy,
    train_crop_encoder,
    train_image_encoder,
)
from regionqa.boxes.files import read_boxes
from regionqa.bundles.card import ModelCard
from regionqa.bundles.store import find_bundle, open_bundle
from regionqa.engine import Engine
from regionqa.evaluation.tasks.recognition import recognise
from regionqa.export.bundle import read_encoders, write_bundle, write_card
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.crops import PATCH, CropConfig, CropRegionEncoder
from regionqa.export.modules.positions import PLACES
from regionqa.export.modules.resnet import ResNetConfig, ResNetVision
from regionqa.export.onnx.export import round_to_float16
from regionqa.finetune.model import RegionLanguageModel
from regionqa.language.tokenization import BundleTokenizer
from regionqa.schema import from_table

VIEWS = FeatureSettings()
CROPS = CropConfig()
WHOLE = ResNetConfig(
    input_size=128, widths=CROPS.widths[:3], depths=CROPS.depths[:3], levels=(), patch=PATCH
)
PLACE_WIDTH = 96
"""Hidden width of the embedding of a box's place."""
REGION_SCALE, IMAGE_SCALE = 0.5, 0.6
"""Initial root mean square of region and image tokens, that of a box's position embedding."""
COLOUR_SCALE = 4.0
"""Factor of a new projector's weights for colours, which those for names would outweigh."""
SOME = 500
"""Views that rms is measured on."""
log = logging.getLogger("regionqa.finetune")


def encode_photos(
    name: str,
    photos: PhotoSet,
    vision: VisionModule,
    region: RegionModule,
    settings: FeatureSettings,
    out: Path,
    *,
    rough: bool = False,
) -> list[ImageView]:
    """Encode views of photos, cached in the output folder."""
    path = out / f"views-{name}.pt"
    if not path.exists():
        save_views(encode_views(vision, region, photos, settings, log.info, rough=rough), path)
    return load_views(path, photos.names)


def train_language_stage(
    vision: ResNetVision,
    region: CropRegionEncoder,
    photos: tuple[PhotoSet, PhotoSet],
    settings: LanguageSettings,
    out: Path,
) -> tuple[LlamaForCausalLM, Path, list[ImageView]]:
    """Train tokenizer, projectors and language model: stage three.

    Args:
        vision: The trained vision encoder.
        region: The trained region encoder.
        photos: Photos for training, and held-out photos.
        settings: Settings of the stage.
        out: Output folder.

    Returns:
        Language model, tokenizer file, and held-out views to calibrate on.
    """
    log.info("stage 3 of 3: questions and answers")
    fresh, held_out = photos
    tokenizer_file = out / "tokenizer.json"
    if not tokenizer_file.exists():
        texts = tokenizer_texts(fresh, settings.seed)
        train_tokenizer(iter(texts), settings.vocabulary, (START, STOP, ANSWER), tokenizer_file)
    tokenizer = BundleTokenizer(tokenizer_file)
    torch.manual_seed(settings.seed)
    stop = tokenizer.token_id(STOP)
    hidden = vision.config.hidden_size
    language = new_language_model(tokenizer.size, hidden, CONTEXT, stop, settings.layers)
    views = encode_photos("train", fresh, vision, region, VIEWS, out, rough=True)
    held = encode_photos("held-out", held_out, vision, region, replace(VIEWS, random_views=0), out)
    done = out / "language-done.pt"
    modules = {"language": language, "projector": vision.projector, "region": region}
    if not done.exists():
        initialize_from_probes(vision, region, language, tokenizer, views, settings.seed)
        card = from_table(ModelCard, starter_card(vision, region) | {"revision": ""}, "starter")
        moved = swap_crop_images(views, settings.seed)
        asked = LanguageFeatures(
            fresh=moved,
            anywhere=views_anywhere(views, region, settings.seed),
            swapped=[*moved, *swap_photo_images(views, settings.seed)],
            held_out=held,
            exact=region.config.vector_width - region.config.region_width,
        )
        plan = LanguagePlan(card, tokenizer, asked, settings)
        train_language(plan, RegionLanguageModel(vision, region, language), out / "words")
        save_atomically({name: module.state_dict() for name, module in modules.items()}, done)
    for name, state in torch.load(done, weights_only=True).items():
        modules[name].load_state_dict(state)
    return language.eval(), tokenizer_file, held


def initialize_from_probes(
    vision: ResNetVision,
    region: CropRegionEncoder,
    language: LlamaForCausalLM,
    tokenizer: BundleTokenizer,
    views: Sequence[ImageView],
    seed: int,
) -> None:
    """Initialize the projectors of region and image tokens from linear probes for class names."""
    names, width = views[0].scene.names, region.config.region_width
    embeddings = language.get_input_embeddings().weight
    directions = name_directions(embeddings, tokenizer, names)
    found = torch.cat([view.vectors[:, :width] for view in views[:SOME]]).float()  # (N, width)
    probe = name_probe(views, width, seed)
    initialize_from_probe(region.carry_linear, probe, directions, found, REGION_SCALE)
    with torch.no_grad():
        region.carry_linear.weight[:, width + PLACES :] *= COLOUR_SCALE
    cells = torch.cat([view.image for view in views[:SOME]]).float()  # (N, C)
    initialize_from_probe(
        vision.projector, image_probe(views, seed), directions, cells, IMAGE_SCALE
    )


def measure_on_dev(folder: Path, data: Path) -> dict[str, str]:
    """Measure the bundle in `folder` on the dev photos; return entries of its card."""
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


def finish_bundle(
    folder: Path,
    data: Path,
    vision: VisionModule,
    region: RegionModule,
    language: LlamaForCausalLM,
    tokenizer: Path,
    held: Sequence[ImageView],
) -> None:
    """Write the bundle, calibrate it on views it has not learned from, and measure it."""
    card = starter_card(vision, region)
    for module in (vision, region, language):
        round_to_float16(module)
    language.to(torch.float16)
    bundle, reports = write_bundle(folder, card, vision, region, language, tokenizer)
    card["confidence"] = calibrate_starter(bundle, vision, region, held, log.info)
    write_card(folder, card, vision, region)
    card["provenance"] |= measure_on_dev(folder, data)
    write_card(folder, card, vision, region)
    log.info(card["provenance"]["measured"])
    for report in reports:
        log.info(
            "%s differs from torch by %.1e over %s", report.graph, report.difference, report.cases
        )
    log.info("wrote %s, %.1f MB", bundle.root, bundle.size / 1e6)


def encoders_of(model: str) -> tuple[ResNetVision, CropRegionEncoder]:
    """The encoders of a bundle of the starter's kind, such as the one that ships."""
    vision, region = read_encoders(find_bundle(model))
    if not (isinstance(vision, ResNetVision) and isinstance(region, CropRegionEncoder)):
        sys.exit(f"{model}: its encoders are of another kind than the starter's")
    return vision, region


def train_encoders(
    data: Path,
    out: Path,
    photos: PhotoSet,
    crop_schedules: tuple[TrainingSchedule, TrainingSchedule],
    image_schedule: TrainingSchedule,
) -> tuple[ResNetVision, CropRegionEncoder]:
    """Stages one and two; photos: those to learn from."""
    dev = read_photos(data / "coco_small", "dev")
    named = train_crop_encoder(data, out, photos, CROPS, *crop_schedules)
    report_crop_accuracy(named, dev, "classifier over cuts, on dev")
    whole = train_image_encoder(out, photos, named, WHOLE, image_schedule)
    log.info("whole photos, on dev: %s", presence_scores(whole, dev))
    return whole.vision, named.namer.region


def main(arguments: list[str] | None = None) -> None:
    """Run the unfinished stages."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.train")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the two data sets.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of checkpoints and bundle.")
    parser.add_argument("--crop-steps", type=int, default=CROP_SCHEDULE.steps)
    parser.add_argument("--second-crop-steps", type=int, default=SECOND_CROP_SCHEDULE.steps)
    parser.add_argument("--image-steps", type=int, default=IMAGE_SCHEDULE.steps)
    parser.add_argument("--encoders", help="Model whose encoders are used unchanged.")
    parser.add_argument("--position-steps", type=int, default=POSITION_STAGE.steps)
    parser.add_argument("--language-steps", type=int, default=LANGUAGE_STAGE.steps)
    parser.add_argument("--last-steps", type=int, help="Steps of each run of the last rounds.")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = split(read_photos(options.data / "coco_small", "train"))
    if options.encoders:
        vision, trained = encoders_of(options.encoders)
    else:
        crop_schedules = (
            replace(CROP_SCHEDULE, steps=options.crop_steps),
            replace(SECOND_CROP_SCHEDULE, steps=options.second_crop_steps),
        )
        image_schedule = replace(IMAGE_SCHEDULE, steps=options.image_steps)
        vision, trained = train_encoders(
            options.data, options.out, parts[0], crop_schedules, image_schedule
        )
    rounds = LANGUAGE_SETTINGS.rounds
    if options.last_steps is not None:
        rounds = tuple(
            replace(each, stage=replace(each.stage, steps=options.last_steps)) for each in rounds
        )
    settings = replace(
        LANGUAGE_SETTINGS,
        where=replace(POSITION_STAGE, steps=options.position_steps),
        stage=replace(LANGUAGE_STAGE, steps=options.language_steps),
        rounds=rounds,
    )
    torch.manual_seed(LANGUAGE_SETTINGS.seed)
    region = CropRegionEncoder.with_new_projector(
        trained, input_size=IMAGE, place_width=PLACE_WIDTH
    )
    language, tokenizer, held = train_language_stage(vision, region, parts, settings, options.out)
    finish_bundle(options.out / "starter", options.data, vision, region, language, tokenizer, held)


if __name__ == "__main__":
    main()
