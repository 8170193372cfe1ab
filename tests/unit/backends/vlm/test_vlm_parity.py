"""Answers of vision-language models against transformers' own processor and `generate`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.vlm.checkpoints import WRITERS
from regionqa.backends.vlm.backend import RenderedVlmPrompt, VlmBackend
from regionqa.engine import Engine
from regionqa.images.reading import image_from_memory
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import HistoryTurn, Request
from regionqa.vlm.card import VlmCard
from regionqa.vlm.cards import family_tables
from regionqa.vlm.region_images import make_image

FAMILIES = tuple(WRITERS)
TOKENS = 6


def small(folder: Path, family: str, copy: Path) -> Path:
    """A checkpoint whose card lets images have fewer tokens, for speed."""
    if not family.startswith("gemma4"):
        return folder
    shutil.copytree(folder, copy)
    (copy / "card.toml").write_text(
        f'kind = "vlm"\nname = "small"\nfamily = "{family}"\nsummary = "few tokens"\n'
        "[images.cpu]\nmax_soft_tokens = 70\n"
    )
    return copy


def photo(width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def requests(card: VlmCard, way: RegionWay) -> list[Request]:
    """Two images of other shapes; what the model takes of regions, repetitions and history."""
    wide, tall = image_from_memory(photo(200, 120, 1)), image_from_memory(photo(90, 170, 2))
    first, second = Region(Box(10, 20, 100, 110)), Region(Box(50, 60, 70, 80))
    if card.chat.tasks:
        return [
            Request("wide", "what is this?", (first,), wide),
            Request("wide", "Read the text", (first,), wide),
            Request("wide", "Describe this image in detail.", (), wide),
            Request("tall", "describe <region1>", (second,), tall),
        ]
    if way is RegionWay.crop_only and not card.chat.multi_image:
        return [
            Request("wide", "what is this?", (first,), wide),
            Request("wide", "what is <region1>?", (second,), wide),
            Request("wide", "how many things are there?", (), wide),
            Request("tall", "what is <region1>?", (second,), tall),
        ]
    history = (HistoryTurn("what is <region1>?", "a cup", 1),) if card.chat.multi_turn else ()
    return [
        Request("wide", "what is this?", (first,), wide),
        Request("wide", "is <region1> left of <region2>, or is <region1> right?",
                (first, second), wide),
        Request("wide", "how many things are there?", (), wide),
        Request("tall", "what is <region1>?", (second,), tall),
        Request("tall", "and <region2>?", (second, first), tall, history=history),
    ]  # fmt: skip


def by_hand(backend: VlmBackend, request: Request) -> tuple[list[int], list[int]]:
    """Prompt ids by the processor, given the whole prompt, and the ids that `generate` adds."""
    assert request.source is not None
    prompt = backend.render(request, TOKENS)
    pixels = request.source.load()
    images = [make_image(part, pixels) for part in prompt.told.images]
    if backend.card.images.square:
        images = [padded(image) for image in images]
    start = backend.processor.tokenizer.bos_token
    starts = start is not None and prompt.text.startswith(start)  # as apply_chat_template does
    inputs = backend.processor.processor(
        text=[whole_text(backend, prompt)],
        images=[images],
        images_kwargs=dict(backend.card.images.cpu),
        return_tensors="pt",
        add_special_tokens=not starts,
    )
    model = backend.language.model
    with torch.inference_mode():
        ids = model.generate(
            **inputs, max_new_tokens=TOKENS, do_sample=False, num_beams=1, early_stopping=False
        )[0].tolist()
    given: list[int] = inputs["input_ids"][0].tolist()
    return given, ids[1:] if model.config.is_encoder_decoder else ids[len(given) :]


def whole_text(backend: VlmBackend, prompt: RenderedVlmPrompt) -> str:
    """What the processor is given: rendered by the chat template, or the bare question."""
    chat = backend.card.chat
    if chat.plain is None and not chat.tasks:
        return prompt.text
    question = "".join(part for part in prompt.told.messages[-1].parts if isinstance(part, str))
    if chat.tasks:
        return question
    assert chat.plain is not None
    return "<image>" * len(prompt.told.images) + chat.plain.format(question=question)


def padded(image: Image.Image) -> Image.Image:
    """Pad to a square as LLaVA's own image processor does where it is told to."""
    from transformers import LlavaImageProcessor
    from transformers.image_utils import OPENAI_CLIP_MEAN

    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    color = tuple(int(channel * 255) for channel in OPENAI_CLIP_MEAN)
    square = LlavaImageProcessor().pad_to_square(values, color)
    return Image.fromarray(square.permute(1, 2, 0).numpy())


def ways() -> list[tuple[str, RegionWay]]:
    """Each family with each way that its table lists."""
    return [(family, RegionWay(way)) for family in FAMILIES
            for way in family_tables()[family]["regions"]["ways"]]  # fmt: skip


@pytest.mark.parametrize(("family", "way"), ways())
def test_prompts_and_answers_equal_those_of_transformers(
    family: str, way: RegionWay, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = small(tiny_checkpoint(family), family, tmp_path / "copy")
    engine = Engine.load(folder, device="cpu", way=way)
    backend = engine.backend
    assert isinstance(backend, VlmBackend)
    asked = requests(backend.card, way)
    answers = list(engine.answer(asked, max_new_tokens=TOKENS, guess=True))
    for request, answer in zip(asked, answers, strict=True):
        ids, expected = by_hand(backend, request)
        assert request.source is not None
        (encoded,) = backend.encode(request.source, [backend.render(request, TOKENS)])
        assert not isinstance(encoded, Exception)
        assert list(encoded.prompt.ids) == ids
        (alone,) = backend.language.generate([encoded.prompt], TOKENS)
        ids, end = list(alone.ids), expected[len(alone.ids) :]
        assert ids + end == expected
        assert end == [] or end[0] in backend.language.stops
        text = backend.processor.decode(expected).strip()
        assert (answer.error, answer.text) == (None, text)
    assert len({answer.text for answer in answers}) > 1
