"""The engine: order, batches, encoding once, errors of single requests."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regionqa
from helpers.backends import ToyBackend, toy_info
from regionqa.backends.base import Completion
from regionqa.backends.bundle import BundleModel
from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import BoxError, BundleError, ImageError, QuestionError, UsageError
from regionqa.images.reading import InputImage, open_image
from regionqa.options import DeviceChoice, GenerationOptions, RuntimeOptions
from regionqa.regions import Box, Region
from regionqa.requests import LONGEST_WINDOW, Request, windows
from regionqa.runtime.encoders import EncodedImage, Floats, RegionEncoder, VisionEncoder

HEAD = (120.0, 20.0, 345.0, 240.0)


def request(
    image: InputImage, *boxes: tuple[float, float, float, float], ask: str = "what is this?"
) -> Request:
    return Request(image.name, ask, tuple(Region(Box(*box)) for box in boxes), image)


@pytest.fixture
def images(photos: Path) -> list[InputImage]:
    return [open_image(path) for path in sorted(photos.iterdir())]


@pytest.fixture
def mixed(images: list[InputImage]) -> list[Request]:
    """Requests of every kind: several regions, one, none, one named twice; three images."""
    asked = []
    for image in images:
        asked += [
            request(image, (5, 5, 90, 100)),
            request(image, (5, 5, 90, 100), (40, 30, 140, 120), ask="what are these?"),
            request(image, ask="describe this picture, and say what is in it."),
            request(image, (60, 10, 61, 100), ask="is <region1> left of <region1>?"),
        ]
    return asked


def texts(engine: Engine, requests: list[Request]) -> list[str]:
    return [answer.text for answer in engine.answer(requests)]


def test_ask_takes_a_path_an_image_or_an_array(engine: Engine, cat: Path) -> None:
    with Image.open(cat) as image:
        pixels = image.convert("RGB")
    answers = [
        engine.ask(form, "what is this?", [HEAD]).text
        for form in (cat, str(cat), pixels, np.asarray(pixels))
    ]
    assert answers[0]
    assert answers == [answers[0]] * 4


def test_load_returns_an_engine(cat: Path, engine: Engine) -> None:
    loaded = regionqa.load("starter", device="cpu", batch_size=2)
    assert (
        loaded.ask(cat, "what is this?", [HEAD]).text
        == engine.ask(cat, "what is this?", [HEAD]).text
    )
    with pytest.raises(BundleError, match="no such model"):
        regionqa.load("no-such-model")


def test_ask_raises_item_errors(engine: Engine, cat: Path) -> None:
    with pytest.raises(BoxError, match="lies outside the image"):
        engine.ask(cat, "what is this?", [(1000, 1000, 1100, 1100)])
    with pytest.raises(ImageError, match="no such file"):
        engine.ask("nowhere.jpg", "what is this?")
    with pytest.raises(QuestionError, match="names <region2>, but 1 region was given"):
        engine.ask(cat, "what is <region2>?", [HEAD])
    with pytest.raises(
        QuestionError, match="17 regions in one question, the model starter takes 16"
    ):
        engine.ask(cat, "what are these?", [HEAD] * 17)
    with pytest.raises(QuestionError, match="is empty"):
        engine.ask(cat, "  ")


def test_answers_do_not_depend_on_batches(engine: Engine, mixed: list[Request]) -> None:
    alone = [next(engine.answer([one])).text for one in mixed]
    rng = np.random.default_rng(0)
    for batch_size in (16, 3, 7):
        order = rng.permutation(len(mixed)).tolist()
        batched = Engine(engine.backend, batch_size)
        assert texts(batched, [mixed[row] for row in order]) == [alone[row] for row in order]


def test_image_is_encoded_once_and_its_regions_together(
    engine: Engine, mixed: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    cut: list[int] = []
    encode, encode_regions = VisionEncoder.encode, RegionEncoder.encode

    def counting(self: VisionEncoder, pixel_values: Floats) -> list[EncodedImage]:
        seen.append(len(pixel_values))
        return encode(self, pixel_values)

    def counting_regions(self: RegionEncoder, sources: Sequence[Floats], boxes: Floats) -> Floats:
        cut.append(len(boxes))
        return encode_regions(self, sources, boxes)

    monkeypatch.setattr(VisionEncoder, "encode", counting)
    monkeypatch.setattr(RegionEncoder, "encode", counting_regions)
    assert len(list(engine.answer(mixed, max_new_tokens=1))) == 12
    assert seen == [1, 1, 1]
    assert cut == [4, 4, 4]
    list(Engine(engine.backend, batch_size=1).answer(mixed, max_new_tokens=1))
    assert seen == [1] * 6, "the image asked about last is remembered"


def test_errors_keep_their_position(
    engine: Engine, images: list[InputImage], tmp_path: Path
) -> None:
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(Path(images[0].name).read_bytes()[:3000])
    requests = [
        request(images[0], (5, 5, 90, 100)),
        Request("gone.jpg", "what is this?", error=ImageError("gone.jpg: no such file")),
        request(open_image(torn), (5, 5, 90, 100)),
        request(open_image(torn), ask="what is <region1>?"),
        request(images[1], ask="what is <region1>?"),
        request(images[1]),
    ]
    answers = list(engine.answer(requests))
    assert [answer.request for answer in answers] == requests
    assert [type(answer.error) for answer in answers] == [
        type(None), ImageError, ImageError, QuestionError, QuestionError, type(None),
    ]  # fmt: skip
    assert answers[0].text == engine.ask(images[0].name, "what is this?", [(5, 5, 90, 100)]).text
    assert all(not answer.text and not answer.tokens for answer in answers if answer.error)


def test_windows_are_bounded_and_end_with_an_image(images: list[InputImage]) -> None:
    many = [request(images[0])] * (LONGEST_WINDOW + 10) + [request(images[1])] * 3
    assert [len(window) for window in windows(many, 16)] == [LONGEST_WINDOW, 10 + 3]
    assert [len(window) for window in windows(many[-5:], 16)] == [2, 3]
    assert [len(window) for window in windows(many[-5:], 1)] == [1] * 5
    assert list(windows([], 4)) == []


def test_max_new_tokens_limits_answers(engine: Engine, mixed: list[Request]) -> None:
    assert all(answer.tokens <= 2 for answer in engine.answer(mixed, max_new_tokens=2))
    with pytest.raises(QuestionError, match="there is room for"):
        engine.ask(mixed[0].image, "what " * 300)


def test_options_are_groups_or_keywords(engine: Engine, cat: Path) -> None:
    asked = partial(engine.ask, cat, "what is this?", [HEAD])
    guess = GenerationOptions(guess=True)
    short = asked(GenerationOptions(guess=True, max_new_tokens=1))
    assert short.tokens == 1
    assert short.text == asked(guess=True, max_new_tokens=1).text
    assert short.text == asked(guess, max_new_tokens=1).text, "keywords replace fields"
    with pytest.raises(UsageError, match="unknown option 'max_tokens'; known are max_new_tokens"):
        engine.answer([], max_tokens=1)
    with pytest.raises(UsageError, match="box format 'xy': must be one of xyxy, xywh, cxcywh"):
        asked(box_format="xy")


def test_load_takes_options(starter: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[RuntimeOptions] = []

    def load(model: BundleModel, options: RuntimeOptions) -> ToyBackend:
        received.append(options)
        return ToyBackend(model.info)

    monkeypatch.setattr(BundleModel, "load", load)
    options = RuntimeOptions(model="no-such-model", device=DeviceChoice.cpu, batch_size=2)
    Engine.load(starter, options, batch_size=3)
    Engine.load(options=RuntimeOptions())
    assert received == [options.replace(batch_size=3), RuntimeOptions()]


def test_batch_size_is_at_least_one(starter: Bundle) -> None:
    with pytest.raises(UsageError, match="--batch-size 0: must be 1 or more"):
        Engine.load(starter, device="cpu", batch_size=0)


def test_a_learned_refusal_is_the_models_text_for_unsure(cat: Path) -> None:
    """Also in parts, in whatever case the model has learned it, and without a threshold."""
    own = {"one": "i am NOT sure.", "another": "i am not sure.", "third": "i am a cat."}
    backend = ToyBackend(
        toy_info(confidence=ConfidenceCard(threshold=0.0)),
        script=lambda asked: Completion(own[asked.question], 4, 0.9),
    )
    image, parts = open_image(cat), {question: list[str]() for question in own}

    def on_text(asked: Request, text: str) -> None:
        parts[asked.question].append(text)

    requests = [Request("a", question, (), image) for question in own]
    answers = Engine(backend).answer(requests, on_text=on_text)
    told = ["I am not sure.", "I am not sure.", "i am a cat."]
    assert [answer.text for answer in answers] == told
    assert ["".join(part) for part in parts.values()] == told
    assert len(parts["third"]) > 1, "what cannot become it is given in parts"


# -- choices ---------------------------------------------------------------------------------------


def test_likeliest_choice_is_the_answer(engine: Engine, cat: Path) -> None:
    """The choices include the greedy answer, the likeliest of all."""
    image = open_image(cat)
    open_ended = request(image, HEAD)
    generated = engine.ask(cat, "what is this?", [HEAD], unsure_below=0).text
    choices = ("no, it is not.", generated, "four hundred.")
    asked = [replace(open_ended, choices=choices), open_ended]
    chosen, free = engine.answer(asked, unsure_below=0)
    assert (chosen.text, chosen.tokens) == (generated, 0)
    assert free.text == generated
    assert chosen.confidence is not None
    assert 0.5 < chosen.confidence <= 1


def test_single_choice_has_confidence_1(engine: Engine, cat: Path) -> None:
    [answer] = engine.answer([replace(request(open_image(cat), HEAD), choices=("a pear.",))])
    assert (answer.text, answer.confidence) == ("a pear.", 1.0)
