"""The recipe of the starter: from photos and tiles to the bundle that ships.

    python -m regionqa.finetune.starter --data DATA --out runs/starter

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

from regionqa.boxfiles import read_boxes
from regionqa.bundles import find_bundle, open_bundle
from regionqa.cards import ModelCard, from_table
from regionqa.engine import Engine
from regionqa.evaluation.recognition import recognise
from regionqa.export.bundle import read_encoders, write_bundle, write_card
from regionqa.export.cuts import PATCH, PLACES, CutConfig, CutRegionEncoder
from regionqa.export.graphs import halve
from regionqa.export.parts import RegionModule, VisionModule
from regionqa.export.vision import ResNetConfig, ResNetVision
from regionqa.finetune.anywhere import views_anywhere
from regionqa.finetune.calibrate import calibrate
from regionqa.finetune.elsewhere import crops_elsewhere, wholes_elsewhere
from regionqa.finetune.hogwild import Course
from regionqa.finetune.language import new_language_model, tokenizer_texts, train_tokenizer
from regionqa.finetune.model import RegionLanguageModel
from regionqa.finetune.overview import OVERVIEW, presence_scores
from regionqa.finetune.pictures import PhotoSet, read_photos, split
from regionqa.finetune.probes import begin_as, name_directions, name_probe, picture_probe
from regionqa.finetune.saving import save_atomically
from regionqa.finetune.seeing import overviewed, report_sight, sighted
from regionqa.finetune.sight import SIGHT, SIGHT_AGAIN
from regionqa.finetune.startercard import ANSWER, CONTEXT, PICTURE, START, STOP, card_tables
from regionqa.finetune.views import View, ViewSettings, encode_views, load_views, save_views
from regionqa.finetune.words import (
    PLACES_FIRST,
    WORDS,
    WORDS_SETTINGS,
    WordsPlan,
    WordsSettings,
    WordsViews,
    train_words,
)
from regionqa.tokenizer import BundleTokenizer

VIEWS = ViewSettings()
CUTS = CutConfig()
WHOLE = ResNetConfig(
    input_size=128, widths=CUTS.widths[:3], depths=CUTS.depths[:3], levels=(), patch=PATCH
)
PLACE_WIDTH = 96
"""Hidden width of the embedding of a box's place."""
REGION_LOUDNESS, PICTURE_LOUDNESS = 0.5, 0.6
"""Root mean square of what regions and pictures say at first: as loud as where a box is."""
COLOUR_LOUDNESS = 4.0
"""What a new carrier's weights for colours are multiplied by, or names drown them."""
SOME = 500
"""Views that loudness is measured on."""
log = logging.getLogger("regionqa.finetune")


def seen(
    name: str,
    photos: PhotoSet,
    vision: VisionModule,
    region: RegionModule,
    settings: ViewSettings,
    out: Path,
    *,
    rough: bool = False,
) -> list[View]:
    """Views of photos through the encoders, kept in the output folder."""
    path = out / f"views-{name}.pt"
    if not path.exists():
        save_views(encode_views(vision, region, photos, settings, log.info, rough=rough), path)
    return load_views(path, photos.names)


def worded(
    vision: ResNetVision,
    region: CutRegionEncoder,
    photos: tuple[PhotoSet, PhotoSet],
    settings: WordsSettings,
    out: Path,
) -> tuple[LlamaForCausalLM, Path, list[View]]:
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
    views = seen("train", fresh, vision, region, VIEWS, out, rough=True)
    held = seen("held-out", held_out, vision, region, replace(VIEWS, random_views=0), out)
    done = out / "language-done.pt"
    modules = {"language": language, "projector": vision.projector, "region": region}
    if not done.exists():
        begin_with_probes(vision, region, language, tokenizer, views, settings.seed)
        card = from_table(ModelCard, card_tables(vision, region) | {"revision": ""}, "starter")
        moved = crops_elsewhere(views, settings.seed)
        asked = WordsViews(
            fresh=moved,
            anywhere=views_anywhere(views, region, settings.seed),
            elsewhere=[*moved, *wholes_elsewhere(views, settings.seed)],
            held_out=held,
            exact=region.config.vector_width - region.config.region_width,
        )
        plan = WordsPlan(card, tokenizer, asked, settings)
        train_words(plan, RegionLanguageModel(vision, region, language), out / "words")
        save_atomically({name: module.state_dict() for name, module in modules.items()}, done)
    for name, state in torch.load(done, weights_only=True).items():
        modules[name].load_state_dict(state)
    return language.eval(), tokenizer_file, held


def begin_with_probes(
    vision: ResNetVision,
    region: CutRegionEncoder,
    language: LlamaForCausalLM,
    tokenizer: BundleTokenizer,
    views: Sequence[View],
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
    begin_as(vision.projector, picture_probe(views, seed), directions, cells, PICTURE_LOUDNESS)


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


def finish(
    folder: Path,
    data: Path,
    vision: VisionModule,
    region: RegionModule,
    language: LlamaForCausalLM,
    tokenizer: Path,
    held: Sequence[View],
) -> None:
    """Write the bundle, calibrate it on views it has not learned from, and measure it."""
    card = card_tables(vision, region)
    for module in (vision, region, language):
        halve(module)
    language.to(torch.float16)
    bundle, reports = write_bundle(folder, card, vision, region, language, tokenizer)
    card["confidence"] = calibrate(bundle, vision, region, held, log.info)
    write_card(folder, card, vision, region)
    card["provenance"] |= measured(folder, data)
    write_card(folder, card, vision, region)
    log.info(card["provenance"]["measured"])
    for report in reports:
        log.info(
            "%s differs from torch by %.1e over %s", report.graph, report.difference, report.cases
        )
    log.info("wrote %s, %.1f MB", bundle.root, bundle.size / 1e6)


def encoders_of(model: str) -> tuple[ResNetVision, CutRegionEncoder]:
    """The encoders of a bundle of the starter's kind, such as the one that ships."""
    vision, region = read_encoders(find_bundle(model))
    if not (isinstance(vision, ResNetVision) and isinstance(region, CutRegionEncoder)):
        sys.exit(f"{model}: its encoders are of another kind than the starter's")
    return vision, region


def learned_encoders(
    data: Path, out: Path, photos: PhotoSet, sight: tuple[Course, Course], overview: Course
) -> tuple[ResNetVision, CutRegionEncoder]:
    """Stages one and two; photos: those to learn from."""
    dev = read_photos(data / "coco_small", "dev")
    named = sighted(data, out, photos, CUTS, *sight)
    report_sight(named, dev, "classifier over cuts, on dev")
    whole = overviewed(out, photos, named, WHOLE, overview)
    log.info("whole photos, on dev: %s", presence_scores(whole, dev))
    return whole.vision, named.namer.region


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that are not done yet."""
    parser = argparse.ArgumentParser(prog="python -m regionqa.finetune.starter")
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
    region = CutRegionEncoder.told_anew(trained, input_size=PICTURE, place_width=PLACE_WIDTH)
    language, tokenizer, held = worded(vision, region, parts, settings, options.out)
    finish(options.out / "starter", options.data, vision, region, language, tokenizer, held)


if __name__ == "__main__":
    main()
