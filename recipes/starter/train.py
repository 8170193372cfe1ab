"""The recipe of the starter: from photos and tiles to the bundle that ships.

    python -m recipes.starter.train --data DATA --out runs/starter

With `--encoders starter`, the last stage alone, on the encoders that ship.

DATA holds `tiny_imagenet/` and `coco_small/`. Every stage leaves a file in the output folder; a
stage whose file is there is skipped, one that was killed goes on from its checkpoint. The last line
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
from recipes.starter.language.probes import begin_as, image_probe, name_directions, name_probe
from recipes.starter.language.swapped_images import crops_elsewhere, wholes_elsewhere
from recipes.starter.language.train import (
    PLACES_FIRST,
    WORDS,
    WORDS_SETTINGS,
    LanguageFeatures,
    LanguagePlan,
    LanguageSettings,
    train_language,
)
from recipes.starter.questions.random_boxes import views_anywhere
from recipes.starter.saving import save_atomically
from recipes.starter.vision.async_sgd import TrainingSchedule
from recipes.starter.vision.crop_encoder import SIGHT, SIGHT_AGAIN
from recipes.starter.vision.image_encoder import OVERVIEW, presence_scores
from recipes.starter.vision.photos import PhotoSet, read_photos, split
from recipes.starter.vision.stages import overviewed, report_sight, sighted
from regionqa.boxes.files import read_boxes
from regionqa.bundles.card import ModelCard
from regionqa.bundles.store import find_bundle, open_bundle
from regionqa.engine import Engine
from regionqa.evaluation.tasks.recognition import recognise
from regionqa.export.bundle import read_encoders, write_bundle, write_card
from regionqa.export.modules.base import RegionModule, VisionModule
from regionqa.export.modules.crops import PATCH, PLACES, CropConfig, CropRegionEncoder
from regionqa.export.modules.resnet import ResNetConfig, ResNetVision
from regionqa.export.onnx.export import round_to_float16
from regionqa.finetune.model import RegionLanguageModel
from regionqa.language.tokenization import BundleTokenizer
from regionqa.schema import from_table

VIEWS = FeatureSettings()
CUTS = CropConfig()
WHOLE = ResNetConfig(
    input_size=128, widths=CUTS.widths[:3], depths=CUTS.depths[:3], levels=(), patch=PATCH
)
PLACE_WIDTH = 96
"""Hidden width of the embedding of a box's place."""
REGION_LOUDNESS, IMAGE_LOUDNESS = 0.5, 0.6
"""Root mean square of what regions and pictures say at first: as loud as where a box is."""
COLOUR_LOUDNESS = 4.0
"""What a new carrier's weights for colours are multiplied by, or names drown them."""
SOME = 500
"""Views that loudness is measured on."""
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
    """Views of photos through the encoders, kept in the output folder."""
    path = out / f"views-{name}.pt"
    if not path.exists():
        save_views(encode_views(vision, region, photos, settings, log.info, rough=rough), path)
    return load_views(path, photos.names)


def train_words_stage(
    vision: ResNetVision,
    region: CropRegionEncoder,
    photos: tuple[PhotoSet, PhotoSet],
    settings: LanguageSettings,
    out: Path,
) -> tuple[LlamaForCausalLM, Path, list[ImageView]]:
    """Stage three: tokenizer, carrier and language model; also views to calibrate on.

    photos: to learn from, and held out.
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
        begin_with_probes(vision, region, language, tokenizer, views, settings.seed)
        card = from_table(ModelCard, starter_card(vision, region) | {"revision": ""}, "starter")
        moved = crops_elsewhere(views, settings.seed)
        asked = LanguageFeatures(
            fresh=moved,
            anywhere=views_anywhere(views, region, settings.seed),
            elsewhere=[*moved, *wholes_elsewhere(views, settings.seed)],
            held_out=held,
            exact=region.config.vector_width - region.config.region_width,
        )
        plan = LanguagePlan(card, tokenizer, asked, settings)
        train_language(plan, RegionLanguageModel(vision, region, language), out / "words")
        save_atomically({name: module.state_dict() for name, module in modules.items()}, done)
    for name, state in torch.load(done, weights_only=True).items():
        modules[name].load_state_dict(state)
    return language.eval(), tokenizer_file, held


def begin_with_probes(
    vision: ResNetVision,
    region: CropRegionEncoder,
    language: LlamaForCausalLM,
    tokenizer: BundleTokenizer,
    views: Sequence[ImageView],
    seed: int,
) -> None:
    """Let regions and pictures say the names of things from the first step on."""
    names, width = views[0].scene.names, region.config.region_width
    embeddings = language.get_input_embeddings().weight
    directions = name_directions(embeddings, tokenizer, names)
    found = torch.cat([view.vectors[:, :width] for view in views[:SOME]]).float()  # (N, width)
    probe = name_probe(views, width, seed)
    begin_as(region.carry_linear, probe, directions, found, REGION_LOUDNESS)
    with torch.no_grad():
        region.carry_linear.weight[:, width + PLACES :] *= COLOUR_LOUDNESS
    cells = torch.cat([view.image for view in views[:SOME]]).float()  # (N, C)
    begin_as(vision.projector, image_probe(views, seed), directions, cells, IMAGE_LOUDNESS)


def measure_dev(folder: Path, data: Path) -> dict[str, str]:
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
    card["provenance"] |= measure_dev(folder, data)
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


def learned_encoders(
    data: Path,
    out: Path,
    photos: PhotoSet,
    sight: tuple[TrainingSchedule, TrainingSchedule],
    overview: TrainingSchedule,
) -> tuple[ResNetVision, CropRegionEncoder]:
    """Stages one and two; photos: those to learn from."""
    dev = read_photos(data / "coco_small", "dev")
    named = sighted(data, out, photos, CUTS, *sight)
    report_sight(named, dev, "classifier over cuts, on dev")
    whole = overviewed(out, photos, named, WHOLE, overview)
    log.info("whole photos, on dev: %s", presence_scores(whole, dev))
    return whole.vision, named.namer.region


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not done yet."""
    parser = argparse.ArgumentParser(prog="python -m recipes.starter.train")
    parser.add_argument("--data", type=Path, required=True, help="folder of the two data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints and bundle")
    parser.add_argument("--sight-steps", type=int, default=SIGHT.steps)
    parser.add_argument("--sight-again-steps", type=int, default=SIGHT_AGAIN.steps)
    parser.add_argument("--overview-steps", type=int, default=OVERVIEW.steps)
    parser.add_argument("--encoders", help="take those of this model; only words are learned then")
    parser.add_argument("--where-steps", type=int, default=PLACES_FIRST.steps)
    parser.add_argument("--language-steps", type=int, default=WORDS.steps)
    parser.add_argument("--last-steps", type=int, help="of each run of the last rounds")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    parts = split(read_photos(options.data / "coco_small", "train"))
    if options.encoders:
        vision, trained = encoders_of(options.encoders)
    else:
        sight = (
            replace(SIGHT, steps=options.sight_steps),
            replace(SIGHT_AGAIN, steps=options.sight_again_steps),
        )
        overview = replace(OVERVIEW, steps=options.overview_steps)
        vision, trained = learned_encoders(options.data, options.out, parts[0], sight, overview)
    rounds = WORDS_SETTINGS.rounds
    if options.last_steps is not None:
        rounds = tuple(
            replace(each, stage=replace(each.stage, steps=options.last_steps)) for each in rounds
        )
    settings = replace(
        WORDS_SETTINGS,
        where=replace(PLACES_FIRST, steps=options.where_steps),
        stage=replace(WORDS, steps=options.language_steps),
        rounds=rounds,
    )
    torch.manual_seed(WORDS_SETTINGS.seed)
    region = CropRegionEncoder.with_new_carrier(trained, input_size=IMAGE, place_width=PLACE_WIDTH)
    language, tokenizer, held = train_words_stage(vision, region, parts, settings, options.out)
    finish_bundle(options.out / "starter", options.data, vision, region, language, tokenizer, held)


if __name__ == "__main__":
    main()
