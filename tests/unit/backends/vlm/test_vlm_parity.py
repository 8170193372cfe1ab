"""Answers of vision-language models against transformers' own processor and `generate`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.vlm.checkpoints import WRITERS
from regionqa.backends.vlm.backend import VlmBackend
from regionqa.engine import Engine
from regionqa.images.reading import image_from_memory
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import HistoryTurn, Request
from regionqa.vlm.cards import family_tables
from regionqa.vlm.region_images import make_image

FAMILIES = tuple(WRITERS)
TOKENS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: WRITERS[family](root / family) for family in FAMILIES}


def photo(width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def requests() -> list[Request]:
    """Two images of other shapes; one, two and no regions, a repeated one, and a history."""
    wide, tall = image_from_memory(photo(200, 120, 1)), image_from_memory(photo(90, 170, 2))
    first, second = Region(Box(10, 20, 100, 110)), Region(Box(50, 60, 70, 80))
    history = (HistoryTurn("what is <region1>?", "a cup", 1),)
    return [
        Request("wide", "what is this?", (first,), wide),
        Request("wide", "is <region1> left of <region2>, or is <region1> right?",
                (first, second), wide),
        Request("wide", "how many things are there?", (), wide),
        Request("tall", "what is <region1>?", (second,), tall),
        Request("tall", "and <region2>?", (second, first), tall, history=history),
    ]  # fmt: skip


def by_hand(backend: VlmBackend, request: Request) -> tuple[list[int], str]:
    """Prompt ids by the processor, given the whole prompt, and the answer of `generate`."""
    assert request.source is not None
    prompt = backend.render(request, TOKENS)
    pixels = request.source.load()
    inputs = backend.processor.processor(
        text=[prompt.text],
        images=[[make_image(part, pixels) for part in prompt.told.images]],
        images_kwargs=dict(backend.card.images.cpu),
        return_tensors="pt",
    )
    model = backend.language.model
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
    length = inputs["input_ids"].shape[1]
    return ids[:length], backend.processor.decode(ids[length:]).strip()


def ways() -> list[tuple[str, RegionWay]]:
    """Each family with each way that its table lists."""
    return [(family, RegionWay(way)) for family in FAMILIES
            for way in family_tables()[family]["regions"]["ways"]]  # fmt: skip


@pytest.mark.parametrize(("family", "way"), ways())
def test_prompts_and_answers_equal_those_of_transformers(
    family: str, way: RegionWay, folders: dict[str, Path]
) -> None:
    engine = Engine.load(folders[family], device="cpu", way=way)
    backend = engine.backend
    assert isinstance(backend, VlmBackend)
    asked = requests()
    answers = list(engine.answer(asked, max_new_tokens=TOKENS, guess=True))
    for request, answer in zip(asked, answers, strict=True):
        ids, text = by_hand(backend, request)
        assert request.source is not None
        (encoded,) = backend.encode(request.source, [backend.render(request, TOKENS)])
        assert not isinstance(encoded, Exception)
        assert list(encoded.prompt.ids) == ids
        assert (answer.error, answer.text) == (None, text)
    assert len({answer.text for answer in answers}) > 1
