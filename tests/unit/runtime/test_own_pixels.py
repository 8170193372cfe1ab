"""Region encoders with their own pixels, of fixed or dynamic size: answers and errors."""

import json
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn
from transformers import LlamaForCausalLM

from helpers.tiny_models import TINY_CLIP, record_json, tiny_language
from regionqa.bundles.store import CARD, Bundle
from regionqa.engine import Engine
from regionqa.errors import BundleError, ImageError
from regionqa.export.bundle import read_encoders, write_bundle
from regionqa.export.modules.regionclip import RegionClipEncoder
from regionqa.export.modules.registry import architecture_table
from regionqa.images.preprocessing import Fit
from regionqa.images.reading import InputImage, open_image
from regionqa.language.tokenization import BundleTokenizer
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.runtime.devices import Device
from regionqa.runtime.encoders import Floats, RegionEncoder

if TYPE_CHECKING:
    from conftest import Command

CPU = ("--device", "cpu")
RULES = {
    "squash": {"size": 384, "fit": "squash"},
    "shortest": {"size": 160, "fit": "shortest", "longest": 266},
}
"""How the two bundles of these tests fit the image to the region encoder."""


@pytest.fixture(scope="module")
def bundles(
    tiny: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Bundle]:
    """The tiny model with two other region encoders, which are untrained."""
    root = tmp_path_factory.mktemp("own-pixels")
    base = tiny("pixels")
    table: dict[str, Any] = tomllib.loads((base.root / CARD).read_text(encoding="utf-8"))
    for found in ("revision", "architecture", "files"):
        del table[found]
    vision, _ = read_encoders(base)
    tokenizer = base.root / "llm" / "tokenizer.json"
    config = tiny_language(BundleTokenizer(tokenizer).size).config
    config.update({"tie_word_embeddings": False, "initializer_range": 0.5})
    torch.manual_seed(2)
    language = LlamaForCausalLM(config)  # one that answers different inputs differently
    written: dict[str, Bundle] = {}
    for name, rule in RULES.items():
        torch.manual_seed(0)
        fixed = 384 if rule["fit"] == "squash" else None
        region = RegionClipEncoder(replace(TINY_CLIP, input_size=fixed))
        for module in region.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(region.prompt_projector.weight, std=3)  # so that the region is noticed
        nn.init.normal_(region.bbox_fc.weight, std=3)  # so that an answer depends on the box
        card = {**table, "name": name}
        card["region"] = {**table["region"], "image": {**table["image"], **rule}}
        written[name], _ = write_bundle(
            root / name, card, vision, region, language, tokenizer,
            {"vision.onnx": base.root / "vision.onnx"},
        )  # fmt: skip
    return written


@pytest.fixture(scope="module", params=list(RULES))
def bundle(request: pytest.FixtureRequest, bundles: dict[str, Bundle]) -> Bundle:
    """Each of the two."""
    return bundles[request.param]


@pytest.fixture
def images(photos: Path) -> list[InputImage]:
    return [open_image(path) for path in sorted(photos.iterdir())]


@pytest.fixture
def mixed(images: list[InputImage]) -> list[Request]:
    """Three images of three sizes, each asked about one region, two regions and none."""
    first, second = Region(Box(5, 5, 90, 100)), Region(Box(60, 40, 140, 120))
    kinds = (("what is this?", (first,)), ("what are these?", (first, second)), ("describe.", ()))
    return [
        Request(image.name, question, regions, image)
        for image in images
        for question, regions in kinds
    ]


# -- what the user sees ----------------------------------------------------------------------------


def test_model_answers(
    regionqa: "Command", bundle: Bundle, cat: Path, photos: Path, tmp_path: Path
) -> None:
    asked = regionqa(
        "ask", cat, "what is this?", "--box", "120,20,345,240", "--model", bundle.root, *CPU
    )
    assert (asked.status, len(asked.lines)) == (0, 1), asked.err
    names = [path.name for path in sorted(photos.iterdir())]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({name: [[5, 5, 90, 100], [60, 40, 140, 120]] for name in names}))
    words = ("--boxes", boxes, "--model", bundle.root, "--format", "jsonl", *CPU)
    ran = regionqa("caption", photos, *words)
    assert ran.status == 0, ran.err
    captions = [json.loads(line) for line in ran.lines]
    named = [Path(caption["image"]).name for caption in captions]
    assert named == [name for name in names for _ in range(2)]
    assert all(caption["answer"] and not caption["error"] for caption in captions)
    assert {caption["model"] for caption in captions} == {bundle.card.name}


def test_answers_do_not_depend_on_order(bundle: Bundle, mixed: list[Request]) -> None:
    engine = Engine.load(bundle, device="cpu")
    together = [answer.text for answer in engine.answer(mixed)]
    assert len(set(together)) > 3, "or equal answers would say nothing"
    assert together == [next(engine.answer([one])).text for one in mixed]
    backwards = [answer.text for answer in engine.answer(mixed[::-1])]
    assert together == backwards[::-1]


def test_image_is_preprocessed_once_at_its_own_size(
    bundle: Bundle, mixed: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], Floats]] = []
    encode = RegionEncoder.encode

    def noting(self: RegionEncoder, sources: Sequence[Floats], boxes: Floats) -> Floats:
        (pixel_values,) = sources
        seen.append((pixel_values.shape, boxes))
        return encode(self, sources, boxes)

    monkeypatch.setattr(RegionEncoder, "encode", noting)
    assert not [
        answer.error for answer in Engine.load(bundle, device="cpu").answer(mixed) if answer.error
    ]
    sizes = [
        (request.source.width, request.source.height) for request in mixed[::3] if request.source
    ]
    assert len(set(sizes)) == 3
    if bundle.card.name == "squash":
        assert [shape for shape, _ in seen] == [(1, 3, 384, 384)] * 3
    else:
        assert [shape for shape, _ in seen] == [
            (1, 3, *sides) for sides in ((160, 160), (160, 241), (160, 240))
        ]
    for (_, boxes), (width, height) in zip(seen, sizes, strict=True):
        first = (5 / width, 5 / height, 90 / width, 100 / height)
        second = (60 / width, 40 / height, 140 / width, 120 / height)
        assert boxes == pytest.approx(np.array([first, first, second]), abs=1e-6)


def test_no_region_pixels_without_regions(
    bundle: Bundle, mixed: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RegionEncoder, "encode", lambda *_: pytest.fail("no region was given"))
    answers = list(Engine.load(bundle, device="cpu").answer(mixed[2::3]))
    assert all(answer.text and not answer.error for answer in answers)


def test_broken_image_fails_alone(
    bundle: Bundle, mixed: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is decoded once for both encoders, so its requests fail together."""
    load = InputImage.load

    def failing(self: InputImage) -> object:
        if self is mixed[3].source:
            raise ImageError(f"{self.name}: no such file")
        return load(self)

    monkeypatch.setattr(InputImage, "load", failing)
    answers = list(Engine.load(bundle, device="cpu").answer(mixed))
    assert [type(answer.error) for answer in answers[3:6]] == [ImageError] * 3
    assert not [answer.error for answer in answers[:3] + answers[6:] if answer.error]


# -- the graph and the card ------------------------------------------------------------------------


def test_tokens_depend_on_the_box(bundle: Bundle, cat: Path) -> None:
    assert bundle.card.region and bundle.card.region.image
    pixels = bundle.card.region.image.pixel_values(open_image(cat).load())[np.newaxis]
    encoder = RegionEncoder(bundle, Device.cpu)
    boxes = np.array([[0.1, 0.1, 0.4, 0.5], [0.5, 0.4, 0.9, 0.9], [0.1, 0.1, 0.4, 0.5]], np.float32)
    tokens = encoder.encode([pixels], boxes)
    assert tokens.shape == (3, 1, encoder.hidden_size)
    assert np.allclose(tokens[0], tokens[2], atol=1e-5)
    assert np.abs(tokens[0] - tokens[1]).max() > 0.1
    other = encoder.encode([pixels[..., ::-1].copy()], boxes)
    assert np.abs(tokens - other).max() > 0.1, "and the same box in another image does"
    assert encoder.encode([pixels], boxes[:0]).shape == (0, 1, encoder.hidden_size)


def refused(bundle: Bundle, **changes: object) -> str:
    """The error of a bundle with a changed [region.image]."""
    card = bundle.card
    assert card.region and card.region.image
    image = replace(card.region.image, **changes)  # type: ignore[arg-type]
    changed = replace(card, region=replace(card.region, image=image))
    with pytest.raises(BundleError) as caught:
        RegionEncoder(Bundle(changed, bundle.root), Device.cpu)
    return str(caught.value)


def test_fixed_sides(bundles: dict[str, Bundle]) -> None:
    message = refused(bundles["squash"], size=400)
    assert message.startswith("region.onnx: pixel_values is (")
    assert message.endswith("the card expects (None, 3, 400, 400)")
    message = refused(bundles["squash"], fit=Fit.shortest, longest=600)
    assert "with fit shortest the sides vary from image to image" in message
    RegionEncoder(bundles["shortest"], Device.cpu)  # no side of its graph is fixed


@pytest.mark.parametrize("sides", [(64, "w"), ("h", 64)])
def test_one_fixed_side(
    sides: tuple[int | str, ...], bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = SimpleNamespace(
        get_inputs=lambda: [
            SimpleNamespace(name=name, shape=["B", 3, *sides])
            for name in ("pixel_values", "boxes", "image_index")
        ],
        get_outputs=lambda: [SimpleNamespace(name="region_tokens", shape=["N", 1, 32])],
    )
    monkeypatch.setattr("regionqa.runtime.encoders.open_session", lambda *_, **how: session)
    assert "with fit shortest the sides vary" in refused(bundles["shortest"])
    assert "the card expects (None, 3, " in refused(
        bundles["shortest"], fit=Fit.squash, size=65, longest=None
    )


def test_dynamic_sides(bundles: dict[str, Bundle]) -> None:
    card = bundles["shortest"].card
    assert card.region and card.region.image
    for fit in (Fit.squash, Fit.pad, Fit.crop):
        image = replace(card.region.image, fit=fit, size=100, longest=None)
        changed = replace(card, region=replace(card.region, image=image))
        bundle = Bundle(changed, bundles["shortest"].root)
        assert (
            Engine.load(bundle, device="cpu")
            .ask(np.zeros((50, 80, 3), np.uint8), "what is this?", [(1, 1, 20, 20)])
            .text
        )


def test_card_with_levels_for_a_graph_with_pixels(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["squash"]
    assert bundle.card.region
    card = replace(
        bundle.card,
        vision=replace(bundle.card.vision, levels=("level0",)),
        region=replace(bundle.card.region, image=None),
    )
    with pytest.raises(BundleError, match=r"expects \['level0', 'boxes'.* has \['pixel_values'"):
        RegionEncoder(Bundle(card, bundle.root), Device.cpu)


def test_encoder_round_trip(bundle: Bundle) -> None:
    vision, region = read_encoders(bundle)
    assert isinstance(region, RegionClipEncoder)
    assert region.config.input_size == (384 if bundle.card.name == "squash" else None)
    assert region.source_shapes == ((3, region.config.input_size, region.config.input_size),)
    assert vision.level_shapes == ()
    table = bundle.card.architecture["region"]
    assert table["kind"] == "regionclip"
    tuples = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    assert architecture_table(region) == tuples


def test_unknown_encoder_answers_but_does_not_train(
    bundles: dict[str, Bundle], regionqa: "Command", cat: Path, tmp_path: Path
) -> None:
    """Version 0.1 had a kind called "pixels"; its graphs need no torch definition."""
    root = tmp_path / "old"
    shutil.copytree(bundles["squash"].root, root)
    table = tomllib.loads((root / CARD).read_text(encoding="utf-8"))
    table["architecture"]["region"] = {"kind": "pixels", "roi_level": 2, "hidden_size": 32}
    (root / CARD).write_text(tomli_w.dumps(table), encoding="utf-8")
    words = (cat, "what is this?", "--box", "120,20,345,240", *CPU, "--model")
    before = regionqa("ask", *words, bundles["squash"].root)
    asked = regionqa("ask", *words, root)
    assert (asked.status, asked.out) == (0, before.out), asked.err
    data = tmp_path / "data.jsonl"
    data.write_text(
        json.dumps(record_json(str(cat), [[1, 2, 90, 90]], ("what is <region1>?", "a cat")))
    )
    trained = regionqa("finetune", "--data", data, "--model", root, "--out", tmp_path / "out", *CPU)
    assert trained.status == 1
    assert (
        "architecture.region: kind 'pixels' has no torch definition here, so the model can be "
        "asked but not trained; known are backbone, cuts, multilevel, regionclip"
    ) in trained.err
