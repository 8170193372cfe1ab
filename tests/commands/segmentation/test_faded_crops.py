"""`--masks` and `--fade`: masks of box files, and crops that are grey outside of a mask."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from helpers.vlm.chat_server import ChatServer
from regionqa.images.reading import image_from_memory
from regionqa.masks import Mask
from regionqa.options import RegionWay
from regionqa.regions import Box, Region
from regionqa.requests import Request
from regionqa.vlm.cards import shipped_vlm_cards
from regionqa.vlm.messages import tell
from regionqa.vlm.region_images import describe_image, make_image

if TYPE_CHECKING:
    from conftest import Command

POLYGON = [20, 10, 60, 10, 60, 50, 20, 50]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    images = [{"id": 1, "file_name": "photo.png", "width": 80, "height": 60}]
    shape = {"id": 1, "image_id": 1, "bbox": [20, 10, 40, 40], "segmentation": [POLYGON]}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": [shape]}))
    return path


def test_a_server_is_sent_faded_crops(
    regionqa: "Command", server: ChatServer, photo: Path, boxes: Path
) -> None:
    given = ("ask", photo, "what is this?", "--server", server.url, "--way", "crop-only")
    masks = ("--boxes", boxes, "--masks", "--format", "jsonl")
    plain = regionqa(*given, *masks)
    assert plain.status == 0, plain.err
    first = next(part for part in server.asked[-1].parts if isinstance(part, Image.Image))
    faded = regionqa(*given, *masks, "--fade", "1", "--show-prompt")
    assert faded.status == 0 and "grey by 1 outside of its mask" in faded.err
    second = next(part for part in server.asked[-1].parts if isinstance(part, Image.Image))
    before, after = np.asarray(first).astype(int), np.asarray(second).astype(int)
    assert before.shape == after.shape
    middle, corner = np.s_[180:270, 180:270], np.s_[:40, :40]  # the crop shows 80 x 60 pixels
    assert np.array_equal(before[middle], after[middle])
    assert np.all(after[corner] == 128) and not np.all(before[corner] == 128)
    records = [json.loads(each.out) for each in (plain, faded)]
    assert records[0]["regions"] == records[1]["regions"]
    mask = Mask.parse(records[0]["regions"][0]["mask"], "an answer")
    assert (mask.bounds, mask.area) == ((20, 10, 60, 50), 1600)
    assert records[1]["revision"] == f"{records[0]['revision']}+fade1"


def test_crops_are_blended_with_grey() -> None:
    image = Image.fromarray(np.full((60, 80, 3), 28, np.uint8))
    inside = np.zeros((60, 80), bool)
    inside[10:50, 20:60] = True
    region = Region(Box(20, 10, 60, 50), mask=Mask.of_array(inside))
    card = shipped_vlm_cards()["qwen3-vl-2b"]
    request = Request("a", "what?", (region, Region(region.box)), image_from_memory(image))
    for fade, outside in ((0.0, 28), (0.5, 78), (1.0, 128)):
        asked = Request(request.image, request.question, request.regions, request.source, fade=fade)
        _, crop, plain = tell(card, asked, RegionWay.crop, lambda size: size).images
        pixels = np.asarray(make_image(crop, image))
        assert pixels[0, 0].tolist() == [outside] * 3
        assert pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].tolist() == [28] * 3
        assert np.all(np.asarray(make_image(plain, image)) == 28)  # it has no mask
        assert ("outside of its mask" in describe_image(crop, (1, 1))) == (fade > 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fade", "0.5"), "--fade: has no effect without --way"),
        (("--fade", "0.5", "--way", "drawn"), "--fade: fades crops; add --way crop or --way crop"),
        (("--fade", "2", "--way", "crop"), "should be less than or equal to 1"),
        (("--masks",), "--masks: has no effect without --boxes"),
        (("--masks", "--boxes", "auto"), "--masks: has no effect on detected boxes; drop it"),
    ],
)
def test_refused(
    regionqa: "Command", server: ChatServer, photo: Path, words: tuple[str, ...], message: str
) -> None:
    refused = regionqa("ask", photo, "what is this?", "--server", server.url, *words)
    assert (refused.status, refused.out) == (2, "")
    assert message in refused.err
