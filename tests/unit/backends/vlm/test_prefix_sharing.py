"""What questions about one image share, against computing everything anew."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.vlm.photos import noise
from regionqa.backends.vlm.backend import EncodedVlmPrompt, VlmBackend
from regionqa.backends.vlm.features import VisionTower
from regionqa.backends.vlm.language import VlmPrompt
from regionqa.engine import Engine
from regionqa.images.reading import InputImage
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.vlm.region_images import make_image

FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_5_vl", "internvl",
            "smolvlm", "lfm2_vl", "gemma4", "gemma4_unified", "llava",
            "llava_onevision")  # fmt: skip
REGIONS = (Region(Box(10, 20, 100, 110)), Region(Box(50, 60, 70, 80)))
ANSWERS = ([5], [40, 7, 90], [200, 11], [33, 33, 33, 33])


def load(folder: Path, way: RegionWay | None = None) -> VlmBackend:
    backend = Engine.load(folder, device="cpu", way=way).backend
    assert isinstance(backend, VlmBackend)
    return backend


def encoded(backend: VlmBackend, source: InputImage, *questions: str) -> list[EncodedVlmPrompt]:
    requests = [Request("image", question, REGIONS, source) for question in questions]
    prompts = backend.encode(source, [backend.render(each, 6) for each in requests])
    assert all(isinstance(prompt, EncodedVlmPrompt) for prompt in prompts)
    return [prompt for prompt in prompts if isinstance(prompt, EncodedVlmPrompt)]


def tokenized(backend: VlmBackend, source: InputImage, *questions: str) -> list[VlmPrompt]:
    return [each.prompt for each in encoded(backend, source, *questions)]


def alone(prompt: VlmPrompt) -> VlmPrompt:
    """The same prompt, computed as a whole."""
    return replace(prompt, shared=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefixes_change_no_logits(
    family: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    backend = load(tiny_checkpoint(family))
    prompts = tokenized(
        backend, noise(200, 120, 1), "what is <region1>?", "is <region2> left of <region1>?"
    )
    other = noise(200, 120, 2)
    (swapped,) = tokenized(backend, other, "what is <region1>?")
    assert all(prompt.shared > 0 for prompt in prompts)
    for prompt in (*prompts, prompts[0]):  # the state is used again
        shared = backend.language.score(prompt, ANSWERS)
        assert shared == pytest.approx(backend.language.score(alone(prompt), ANSWERS), rel=1e-5)
    assert swapped.ids == prompts[0].ids  # another image, whose prefix must not be taken
    swap = backend.language.score(swapped, ANSWERS)
    first = backend.language.score(prompts[0], ANSWERS)
    assert swap == pytest.approx(backend.language.score(alone(swapped), ANSWERS), rel=1e-5)
    assert swap != pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_over_images_and_lengths_equal_single_prompts(
    family: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    backend = load(tiny_checkpoint(family))
    questions = "what is <region1>?", "is <region2> left of <region1>?", "where is <region2>?"
    # two of the images have the same size, so that their prompts have the same length
    prompts = [prompt for seed, width in ((1, 200), (2, 90), (3, 90))
               for prompt in tokenized(backend, noise(width, 120, seed), *questions)]  # fmt: skip
    together = backend.language.generate(prompts, 5)
    assert len({len(prompt.ids) for prompt in prompts}) > 2
    for prompt, answer in zip(prompts, together, strict=True):
        (single,) = backend.language.generate([prompt], 5)
        assert answer == single
        assert answer.confidence == pytest.approx(single.confidence, rel=1e-3)
    unshared = backend.language.generate([alone(prompt) for prompt in prompts], 5)
    assert unshared == together


def test_pixels_are_not_kept_beyond_the_encoder(tiny_checkpoint: Callable[[str], Path]) -> None:
    for family in ("qwen3_vl", "internvl", "smolvlm"):
        (prompt,) = encoded(load(tiny_checkpoint(family)), noise(90, 60, 1), "what is <region1>?")
        kept = {name for image in prompt.images for name in image.inputs}
        assert not {name for name in kept if name.startswith("pixel")}


class RecordingTower:
    """Keeps what the vision encoder was given."""

    runtime = "torch"

    def __init__(self, tower: VisionTower) -> None:
        self.tower = tower
        self.given: list[Mapping[str, Tensor]] = []

    def encode(self, inputs: Mapping[str, Tensor]) -> Any:
        self.given.append(inputs)
        return self.tower.encode(inputs)


def test_the_whole_image_is_encoded_once_beside_many_crops(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regionqa.backends.vlm.backend.IMAGES_KEPT", 3)
    backend = load(tiny_checkpoint("qwen3_vl"), RegionWay.crop)
    backend.tower = tower = RecordingTower(backend.tower)
    source = noise(420, 60, 1)
    for place in range(6):
        region = Region(Box(place * 60 + 30, 5, place * 60 + 60, 50))
        backend.encode(source, [backend.render(Request("image", "what?", (region,), source), 6)])
    assert len(tower.given) == 1 + 6


@pytest.mark.parametrize("family", FAMILIES[:8])
def test_pixels_equal_those_of_the_processor_for_the_whole_prompt(
    family: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    backend = load(tiny_checkpoint(family), RegionWay.crop)
    source = noise(230, 140, 3)
    backend.tower = tower = RecordingTower(backend.tower)
    backend.encode(source, [backend.render(Request("image", "what?", (), source), 6)])
    request = Request("image", "what is <region1>?", REGIONS[:1], source)
    prompt = backend.render(request, 6)
    backend.encode(source, [prompt])
    assert len(tower.given) == len(prompt.told.images) == 2  # the image, once, and the crop
    whole = backend.processor.processor(
        text=[prompt.text],
        images=[[make_image(part, source.load()) for part in prompt.told.images]],
        images_kwargs=dict(backend.card.images.cpu),
        return_tensors="pt",
    )
    for name in whole.keys() & tower.given[0].keys():
        pieces = [given[name].flatten() for given in tower.given]
        assert torch.equal(torch.cat(pieces), whole[name].flatten()), name
    assert "pixel_values" in whole


@pytest.mark.parametrize(("family", "end"), [
    ("qwen3_vl", "<|im_end|>"), ("qwen3_5", "<|im_end|>"), ("internvl", "<|im_end|>"),
    ("lfm2_vl", "<|im_end|>"), ("smolvlm", "<end_of_utterance>"),
])  # fmt: skip
def test_scored_answers_end_as_in_the_chat_template(
    family: str, end: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    once = load(tiny_checkpoint(family))
    assert once.processor.tokenizer.decode([once.processor.answer_end]) == end
    source = noise(200, 120, 1)
    (prompt,) = encoded(once, source, "what is <region1>?")
    scores = once.score(prompt, ["yes", "no"])
    twice = shutil.copytree(tiny_checkpoint(family), tmp_path / "twice")
    file = twice / "generation_config.json"  # released ones list several tokens
    settings = json.loads(file.read_text())
    first = min(once.processor.tokenizer.all_special_ids)
    file.write_text(json.dumps({**settings, "eos_token_id": [settings["eos_token_id"], first]}))
    again = load(twice)
    assert again.language.stops[0] == first
    assert again.score(encoded(again, source, "what is <region1>?")[0], ["yes", "no"]) == scores
