"""The bundle backend: decoding and encoding once, regions of the right request."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from PIL import Image

from regionqa.backends.bundle import BundleModel
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import QuestionError
from regionqa.images import reading
from regionqa.images.reading import InputImage, PixelBudget, open_image
from regionqa.options import RuntimeOptions
from regionqa.regions import Box, Region
from regionqa.requests import Request

HEAD, EAR = Region(Box(120, 20, 345, 240)), Region(Box(130, 10, 200, 80))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded, one entry each time."""
    names: list[str] = []
    decode = InputImage._decode

    def counting(self: InputImage) -> Image.Image:
        names.append(Path(self.name).name)
        return decode(self)

    monkeypatch.setattr(InputImage, "_decode", counting)
    return names


def test_image_is_decoded_once_for_both_encoders(
    engine: Engine, cat: Path, decoded: list[str]
) -> None:
    image = open_image(cat)
    requests = [Request("cat", "what is this?", (box,), image) for box in (HEAD, EAR)]
    assert not any(answer.error for answer in engine.answer(requests, max_new_tokens=1))
    assert decoded == ["chelsea.png"]


def test_drawing_reuses_the_decoded_image(
    regionqa: Command, photos: Path, tmp_path: Path, decoded: list[str]
) -> None:
    ran = regionqa("caption", photos, "-b", "5,5,90,100", "--draw", tmp_path / "drawn")
    assert ran.status == 0
    assert decoded == ["astronaut.jpg", "cat.jpg", "cup.jpg"]
    assert len(list((tmp_path / "drawn").iterdir())) == 3


def test_pixels_are_kept_within_a_budget_and_dropped_after_use(photos: Path) -> None:
    first, second, third = (open_image(path) for path in sorted(photos.iterdir()))
    budget = PixelBudget(first.width * first.height + second.width * second.height)
    for image in (first, first, second, third):
        budget.keep(image)
    assert first.load() is first.load()
    assert second.load() is second.load()
    assert third.load() is not third.load(), "there is no room for a third"
    budget.release(first)
    budget.release(first)
    assert first.load() is not first.load()
    budget.release(third)
    budget.keep(third)
    room = first.width * first.height - third.width * third.height
    assert (third.load() is third.load()) == (room >= 0)


def test_consecutive_arrays_are_different_images(starter: Bundle, cat: Path) -> None:
    """Both are named "image"."""
    with Image.open(cat) as image:
        photo = np.asarray(image.convert("RGB"))
    other = np.zeros_like(photo)
    loaded = BundleModel(starter).load(RuntimeOptions.parse(device="cpu"))
    images = [reading.image_from_memory(array) for array in (photo, other)]
    tokens = []
    for source in images:
        prompt = loaded.render(Request("image", "what?", (), source), 8)
        [encoded] = loaded.encode(source, [prompt])
        tokens.append(encoded.image_tokens)
    assert np.abs(tokens[0] - tokens[1]).max() > 0.1


def test_failed_request_does_not_shift_regions(
    engine: Engine, cat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image(cat)
    good = Request("cat", "what is this?", (EAR,), image)
    bad = Request("cat", "what is <region2>?", (HEAD,), image)
    asked: list[Any] = []
    generate = engine.backend.generate

    def spy(prompts: Any, *rest: Any) -> Any:
        asked.extend(prompts)
        return generate(prompts, *rest)

    monkeypatch.setattr(engine.backend, "generate", spy)
    failed, _ = engine.answer([bad, good], max_new_tokens=1)
    assert isinstance(failed.error, QuestionError)
    list(engine.answer([good], max_new_tokens=1))
    np.testing.assert_allclose(asked[0].region_tokens, asked[1].region_tokens, atol=1e-5)
    list(engine.answer([replace(good, regions=(HEAD,))], max_new_tokens=1))
    assert np.abs(asked[0].region_tokens - asked[2].region_tokens).max() > 1e-2


def test_image_is_decoded_again_for_its_first_region_only(
    tiny: Callable[[str], Bundle], cat: Path, decoded: list[str]
) -> None:
    """Maps of the vision encoder are kept; no region encoder reads pixels here."""
    loaded = BundleModel(tiny("levels")).load(RuntimeOptions.parse(device="cpu"))
    image = open_image(cat)
    for regions in ((), (HEAD,), (EAR,)):
        prompt = loaded.render(Request("cat", "what is this?", regions, image), 4)
        loaded.encode(image, [prompt])
    assert decoded == ["chelsea.png"]
