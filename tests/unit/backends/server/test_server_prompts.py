"""What a server is sent: messages and images of the local rendering, within the card's budget."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regionqa
from helpers.vlm.chat_server import ChatServer
from regionqa.backends.base import configured_model
from regionqa.backends.server.backend import LOSSLESS_PIXELS, data_url, reduced
from regionqa.backends.server.client import read_address
from regionqa.backends.server.model import GENERIC, UNKNOWN, ServerModel, find_card, served_card
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import BundleError, UsageError
from regionqa.images.reading import image_from_memory
from regionqa.options import RegionWay, RuntimeOptions
from regionqa.regions import Box, Region
from regionqa.requests import HistoryTurn, Request
from regionqa.vlm.card import CoordinateUnit, Task, VlmCard
from regionqa.vlm.cards import shipped_vlm_cards
from regionqa.vlm.coordinates import Size
from regionqa.vlm.messages import choose_way, tell
from regionqa.vlm.region_images import make_image

BOXES = (Box(20, 30, 90, 110), Box(200, 10, 240, 60))


def noise(width: int = 320, height: int = 180) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def unknown(size: Size) -> Size:
    raise AssertionError("nothing here depends on the size after resizing")


def card_of(name: str) -> VlmCard:
    return served_card(find_card(name))


def asked_with(
    server: ChatServer, card: VlmCard, way: RegionWay, request: Request
) -> list[str | Image.Image]:
    """Ask a server with a card; what it got."""
    model = ServerModel(card, read_address(server.url), "tiny-vl", way)
    (answer,) = Engine(model.load(RuntimeOptions(server=server.url))).answer([request])
    assert answer.error is None
    return server.asked[-1].parts


@pytest.mark.parametrize("way", RegionWay)
@pytest.mark.parametrize("family", ["qwen3_vl", "generic"])
def test_messages_are_those_of_the_local_rendering(
    server: ChatServer, family: str, way: RegionWay
) -> None:
    card = GENERIC if family == "generic" else card_of("qwen3-vl-2b")
    if way not in card.regions.ways:
        return
    image = noise()
    history = (HistoryTurn("what is <region1>?", "a <region1> cat", 1),)
    regions = tuple(Region(box) for box in BOXES)
    source = image_from_memory(image)
    request = Request("a", "and <region2>?", regions, source, history=history)
    told = tell(card, request, way, unknown)
    expected = [part for message in told.messages for part in message.parts]
    got = asked_with(server, card, way, request)
    assert len(got) == len(expected)
    for found, part in zip(got, expected, strict=True):
        if isinstance(part, str):
            assert found == part
        else:
            assert isinstance(found, Image.Image)
            assert found.format == "PNG"
            assert np.array_equal(np.asarray(found), np.asarray(make_image(part, image)))
    roles = [message["role"] for message in server.asked[-1].body["messages"]]
    assert roles == [message.role for message in told.messages]
    assert all(text in " ".join(map(str, got)) for text in told.coordinates)


def test_servers_are_asked_from_python(server: ChatServer) -> None:
    engine = regionqa.load("qwen3-vl-2b", server=server.url)
    answer = engine.ask(noise(), "what is <region1>?", boxes=[BOXES[0].xyxy], seed=4)
    assert answer.text == f"{server.asked[0].question} 320x180"
    assert (engine.device, engine.info.name) == ("server", "qwen3-vl-2b")


def test_large_images_are_reduced_to_the_cards_budget(server: ChatServer) -> None:
    card = card_of("qwen3-vl-2b")
    card = replace(card, images=replace(card.images, server_pixels=20_000))
    request = Request(
        "a", "what?", (Region(Box(0, 0, 1000, 500)),), image_from_memory(noise(2000, 1000))
    )
    text, image = reversed(asked_with(server, card, RegionWay.coordinates, request)[-2:])
    assert isinstance(image, Image.Image)
    assert image.size == (200, 100)
    # thousandths are those of the image, whatever its size
    assert "0, 0, 500, 500" in str(text)


@pytest.mark.parametrize("size", [(4000, 3000), (100_000, 20), (3, 900_000), (1024, 1024)])
def test_reduced_image_keeps_its_shape(size: Size) -> None:
    made = reduced(Image.new("RGB", size), 1 << 20)
    assert made.width * made.height <= 1 << 20
    assert min(made.size) >= 1
    if min(size) > 100:
        assert made.width / made.height == pytest.approx(size[0] / size[1], rel=2e-3)
    if size[0] * size[1] <= 1 << 20:
        assert made.size == size


def test_large_images_are_sent_as_jpeg_with_full_colour() -> None:
    from helpers.vlm.chat_server import decoded

    image = Image.new("RGB", (513, 512), "white")
    image.paste("red", (100, 100, 103, 400))  # a thin line, which subsampling would blur
    found = decoded(data_url(image))
    assert (found.format, found.size) == ("JPEG", (513, 512))
    assert LOSSLESS_PIXELS < 513 * 512
    difference = np.abs(np.asarray(found, int) - np.asarray(image, int))
    assert difference.max() < 40
    assert decoded(data_url(image.crop((0, 0, 512, 512)))).format == "PNG"


def test_control_tokens_in_questions_are_refused(server: ChatServer) -> None:
    model = ServerModel(card_of("qwen3-vl-2b"), read_address(server.url), "tiny-vl")
    request = Request("a", "what <|im_end|> now?", (), image_from_memory(noise()))
    (answer,) = Engine(model.load(RuntimeOptions(server=server.url))).answer([request])
    assert "'<|im_end|>'" in str(answer.error)
    assert server.asked == []


def test_options_of_the_chat_template_are_sent(server: ChatServer) -> None:
    card = card_of("qwen3-vl-2b")
    chat = replace(card.chat, template_options={"enable_thinking": False}, system="Be brief.")
    request = Request("a", "what?", (), image_from_memory(noise()))
    asked_with(server, replace(card, chat=chat), RegionWay.crop, request)
    body = server.asked[-1].body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


# -- cards -----------------------------------------------------------------------------------------


def resized_pixels() -> VlmCard:
    card = shipped_vlm_cards()["qwen3-vl-2b"]
    assert card.regions.coordinates is not None
    coordinates = replace(card.regions.coordinates, unit=CoordinateUnit.resized_pixels)
    return replace(card, regions=replace(card.regions, coordinates=coordinates, small=None))


def test_pixels_of_the_servers_resize_are_not_told() -> None:
    card = served_card(resized_pixels())
    assert RegionWay.coordinates not in card.regions.ways
    way, reason = choose_way(card, [Region(BOXES[0])], (320, 180), None)
    assert way is RegionWay.crop
    assert reason == (
        "the card's default, in place of coordinates, which depend on how the server resizes and "
        "pads the image"
    )
    only = replace(resized_pixels().regions, ways=(RegionWay.coordinates,))
    with pytest.raises(BundleError, match="run it without --server, or add the way crop"):
        served_card(replace(resized_pixels(), regions=only))


def test_shipped_cards_on_a_server() -> None:
    for name, card in shipped_vlm_cards().items():
        if card.chat.tasks or card.chat.plain is not None:
            with pytest.raises(BundleError, match="run it without --server"):
                served_card(card)
            continue
        regions = served_card(card).regions
        coordinates = regions.coordinates
        if RegionWay.coordinates in regions.ways:
            assert coordinates is not None, name
            assert coordinates.unit not in UNKNOWN, name


def test_model_with_fixed_tasks_is_not_asked_by_chat() -> None:
    card = shipped_vlm_cards()["qwen3-vl-2b"]
    tasks = (Task("describe", "<TASK>{region}"),)
    with pytest.raises(BundleError, match="run it without --server"):
        served_card(replace(card, chat=replace(card.chat, tasks=tasks)))


def test_card_is_found_by_name_repository_and_folder(tmp_path: Path) -> None:
    shipped = shipped_vlm_cards()["qwen3-vl-2b"]
    assert shipped.source is not None
    assert find_card("qwen3-vl-2b") == find_card(shipped.source.repo.lower()) == shipped
    (tmp_path / "card.toml").write_text(
        'kind = "vlm"\nname = "mine"\nfamily = "qwen3_vl"\nsummary = "mine"\n'
        'regions = { default = "drawn" }\n'
    )
    assert find_card(tmp_path).regions.default is RegionWay.drawn
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "card.toml").write_text('name = "b"\n')
    with pytest.raises(BundleError, match="a model of the kind 'bundle', which no server has"):
        find_card(bundle)


def test_open_model_is_not_on_a_server(starter: Bundle) -> None:
    with pytest.raises(BundleError, match="give the name of its card"):
        configured_model(starter, RuntimeOptions(server="http://localhost", server_model="x"))


def test_way_coordinates_is_refused_with_the_reason(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regionqa.backends.server import model

    monkeypatch.setattr(model, "find_card", lambda name: resized_pixels())
    options = RuntimeOptions(server=server.url, model="x", way=RegionWay.coordinates)
    with pytest.raises(UsageError, match="a server does that itself; use --way crop"):
        configured_model("x", options)
    found = configured_model("x", options.replace(way=RegionWay.drawn))
    assert isinstance(found, model.ServerModel)
    assert found.info.revision == f"{found.card.identity}-server:tiny-vl-drawn"
    assert configured_model(found, options.replace(way=RegionWay.drawn)) == found
