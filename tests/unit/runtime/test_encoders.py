"""Encoder sessions: outputs, and graphs checked against the card."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w

from regionqa.bundles.store import CARD, Bundle, open_bundle
from regionqa.errors import BundleError
from regionqa.runtime.devices import Device, open_session
from regionqa.runtime.encoders import EncodedImage, Floats, RegionEncoder, VisionEncoder

TOLERANCE = 1e-4
Alter = Callable[..., Bundle]


@pytest.fixture(scope="module")
def by_maps(tiny: Callable[[str], Bundle]) -> Bundle:
    """A model whose region encoder reads the maps of its vision encoder, in the starter's place."""
    return tiny("levels")


@pytest.fixture
def alter(tmp_path: Path, by_maps: Bundle) -> Alter:
    """The model in a folder of its own, with one key of its card changed."""

    def altered(key: str, value: object) -> Bundle:
        for path in by_maps.root.iterdir():
            if path.name != CARD:
                (tmp_path / path.name).symlink_to(path)
        table: dict[str, Any] = tomllib.loads((by_maps.root / CARD).read_text(encoding="utf-8"))
        outer, inner = key.split(".")
        table[outer][inner] = value
        (tmp_path / CARD).write_text(tomli_w.dumps(table), encoding="utf-8")
        return open_bundle(tmp_path)

    return altered


@pytest.fixture(scope="module")
def vision(by_maps: Bundle) -> VisionEncoder:
    return VisionEncoder(by_maps, Device.cpu)


@pytest.fixture(scope="module")
def region(by_maps: Bundle) -> RegionEncoder:
    return RegionEncoder(by_maps, Device.cpu)


@pytest.fixture(scope="module")
def pixels(by_maps: Bundle) -> Floats:
    """Three different images (3, 3, S, S)."""
    size = by_maps.card.image.size
    return np.random.default_rng(0).normal(0, 1, (3, 3, size, size)).astype(np.float32)


@pytest.fixture(scope="module")
def encoded(vision: VisionEncoder, pixels: Floats) -> EncodedImage:
    return vision.encode(pixels[:1])[0]


@pytest.fixture(scope="module")
def boxes() -> Floats:
    """Boxes of every size and place, as xyxy in [0, 1]."""
    rng = np.random.default_rng(1)
    corners = np.sort(rng.random((6, 2, 2)), axis=1).reshape(6, 4)  # (6, 4)
    edges = np.array([[0, 0, 1, 1], [0.5, 0.5, 0.501, 0.501], [0.99, 0.99, 1, 1]])
    return np.concatenate([corners, edges]).astype(np.float32)


def same(actual: Floats, expected: Floats) -> None:
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def differ(first: Floats, second: Floats) -> bool:
    """They differ by more than rounding."""
    return bool(np.abs(first - second).max() > 100 * TOLERANCE * np.abs(first).max())


# -- what they give --------------------------------------------------------------------------------


def test_encode_image(vision: VisionEncoder, pixels: Floats, by_maps: Bundle) -> None:
    images = vision.encode(pixels)
    assert len(images) == 3
    for image in images:
        assert image.image_tokens.shape == (by_maps.card.vision.image_tokens, vision.hidden_size)
        assert len(image.levels) == len(by_maps.card.vision.levels)
        sides = [level.shape[2:] for level in image.levels]
        assert all(level.shape[0] == 1 for level in image.levels)
        assert sides == sorted(sides, reverse=True), "shallowest first"
        for array in (image.image_tokens, *image.levels):
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
    assert differ(images[0].image_tokens, images[1].image_tokens)


def test_images_of_a_batch_are_independent(vision: VisionEncoder, pixels: Floats) -> None:
    together = vision.encode(pixels)
    for row, image in enumerate(together):
        [alone] = vision.encode(pixels[row : row + 1])
        same(image.image_tokens, alone.image_tokens)
        for level, level_alone in zip(image.levels, alone.levels, strict=True):
            same(level, level_alone)


def test_encode_box(
    region: RegionEncoder,
    vision: VisionEncoder,
    encoded: EncodedImage,
    boxes: Floats,
    by_maps: Bundle,
) -> None:
    tokens = region.encode(encoded.levels, boxes)
    assert by_maps.card.region is not None
    assert tokens.shape == (len(boxes), by_maps.card.region.tokens, region.hidden_size)
    assert region.hidden_size == vision.hidden_size
    assert tokens.dtype == np.float32
    assert np.isfinite(tokens).all()
    assert differ(tokens[0], tokens[1])


def test_batched_boxes_equal_single_boxes(
    region: RegionEncoder, encoded: EncodedImage, boxes: Floats
) -> None:
    together = region.encode(encoded.levels, boxes)
    alone = [region.encode(encoded.levels, boxes[row : row + 1]) for row in range(len(boxes))]
    same(together, np.concatenate(alone))
    backwards = region.encode(encoded.levels, np.ascontiguousarray(boxes[::-1]))
    same(together, backwards[::-1])


def test_no_boxes_give_no_tokens(
    region: RegionEncoder, encoded: EncodedImage, by_maps: Bundle
) -> None:
    assert by_maps.card.region is not None
    tokens = region.encode(encoded.levels, np.zeros((0, 4), np.float32))
    assert tokens.shape == (0, by_maps.card.region.tokens, region.hidden_size)


def test_regions_depend_on_their_image(
    region: RegionEncoder, vision: VisionEncoder, pixels: Floats, boxes: Floats
) -> None:
    first, second, _ = vision.encode(pixels)
    assert differ(region.encode(first.levels, boxes), region.encode(second.levels, boxes))


# -- the card --------------------------------------------------------------------------------------


def refused(encoder: Callable[[Bundle, Device], object], bundle: Bundle) -> str:
    with pytest.raises(BundleError) as caught:
        encoder(bundle, Device.cpu)
    return str(caught.value)


def test_compatible_card_is_accepted(alter: Alter) -> None:
    bundle = alter("image.mean", [0.1, 0.2, 0.3])
    VisionEncoder(bundle, Device.cpu)
    RegionEncoder(bundle, Device.cpu)


def test_wrong_number_of_image_tokens(alter: Alter, by_maps: Bundle) -> None:
    actual = by_maps.card.vision.image_tokens
    message = refused(VisionEncoder, alter("vision.image_tokens", actual + 1))
    assert message.startswith("vision.onnx: image_tokens is (")
    assert f", {actual}, " in message
    assert message.endswith(f"the card expects (None, {actual + 1}, None)")


def test_wrong_image_size(alter: Alter, by_maps: Bundle) -> None:
    size = by_maps.card.image.size
    message = refused(VisionEncoder, alter("image.size", size // 2))
    assert message.startswith("vision.onnx: pixel_values is (")
    assert f", 3, {size}, {size})" in message
    assert message.endswith(f"the card expects (None, 3, {size // 2}, {size // 2})")


def test_wrong_rank_of_image_tokens(by_maps: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    card = by_maps.card
    count, size = card.vision.image_tokens, card.image.size

    def port(name: str, *shape: int | str) -> SimpleNamespace:
        return SimpleNamespace(name=name, shape=list(shape))

    levels = [port(name, "B", 8, 2, 2) for name in card.vision.levels]
    session = SimpleNamespace(
        get_inputs=lambda: [port("pixel_values", "B", 3, size, size)],
        get_outputs=lambda: [port("image_tokens", "B", count), *levels],
    )
    monkeypatch.setattr("regionqa.runtime.encoders.open_session", lambda *_, **how: session)
    message = refused(VisionEncoder, by_maps)
    assert message.endswith(
        f"image_tokens is ('B', {count}), the card expects (None, {count}, None)"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda levels: levels[:-1],
        lambda levels: levels[::-1],
        lambda levels: [*levels, "level9"],
        lambda levels: [*levels[:-1], "deepest"],
    ],
)
@pytest.mark.parametrize("encoder", [VisionEncoder, RegionEncoder])
def test_wrong_levels(
    alter: Alter,
    by_maps: Bundle,
    encoder: Callable[[Bundle, Device], object],
    wrong: Callable[[list[str]], list[str]],
) -> None:
    levels = list(by_maps.card.vision.levels)
    message = refused(encoder, alter("vision.levels", wrong(levels)))
    expected, actual = message.split(", the graph has ")
    graph = "vision.onnx" if encoder is VisionEncoder else "region.onnx"
    assert expected.startswith(f"{graph}: the card expects [")
    assert ", ".join(map(repr, wrong(levels))) in expected
    assert ", ".join(map(repr, levels)) in actual


def test_wrong_number_of_region_tokens(alter: Alter, by_maps: Bundle) -> None:
    assert by_maps.card.region is not None
    actual = by_maps.card.region.tokens
    message = refused(RegionEncoder, alter("region.tokens", actual + 2))
    assert message.startswith("region.onnx: region_tokens is (")
    assert message.endswith(f"the card expects (None, {actual + 2}, None)")


@pytest.mark.parametrize(
    ("key", "encoder", "graph"),
    [
        ("vision.graph", VisionEncoder, "region.onnx"),
        ("region.graph", RegionEncoder, "vision.onnx"),
    ],
)
def test_swapped_graphs(
    alter: Alter, key: str, encoder: Callable[[Bundle, Device], object], graph: str
) -> None:
    message = refused(encoder, alter(key, graph))
    assert message.startswith(f"{graph}: the card expects [")
    assert "image_index" in message
    assert "pixel_values" in message


def test_missing_graph(alter: Alter) -> None:
    message = refused(VisionEncoder, alter("vision.graph", "eyes.onnx"))
    assert "eyes.onnx: missing from the model 'tiny-levels'" in message


def test_card_without_region_encoder(by_maps: Bundle) -> None:
    prompt = replace(by_maps.card.prompt, region="")
    bundle = Bundle(replace(by_maps.card, prompt=prompt, region=None), by_maps.root)
    assert refused(RegionEncoder, bundle) == "card of tiny-levels: has no [region]"


# -- float16 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [VisionEncoder, RegionEncoder])
def test_the_session_has_the_precision_of_the_encoder(
    by_maps: Bundle, encoder: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def opened(graph: Path, device: Device, *, half: bool = False) -> object:
        asked.append(half)
        return open_session(graph, device)

    monkeypatch.setattr("regionqa.runtime.encoders.open_session", opened)
    for how in ({}, {"half": False}, {"half": True}):
        encoder(by_maps, Device.cpu, **how)
    assert asked == [False, False, True]


class Outputs:
    """A session that gives these arrays."""

    def __init__(self, *outputs: Floats) -> None:
        self._outputs = list(outputs)

    def run(self, names: list[str], feeds: dict[str, Floats]) -> list[Floats]:
        return self._outputs


def finite(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


def overflowing(value: float, *shape: int) -> Floats:
    values = finite(*shape)
    values.flat[-1] = value
    return values


@pytest.mark.parametrize(
    "outputs",
    [
        (overflowing(np.inf, 1, 4, 32), finite(1, 8, 2, 2), finite(1, 8, 1, 1)),
        (finite(1, 4, 32), overflowing(-np.inf, 1, 8, 2, 2), finite(1, 8, 1, 1)),
        (finite(1, 4, 32), finite(1, 8, 2, 2), overflowing(np.nan, 1, 8, 1, 1)),
    ],
    ids=["tokens", "first level", "last level"],
)
def test_an_overflow_of_any_output_alone_is_reported(
    by_maps: Bundle, outputs: tuple[Floats, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = VisionEncoder(by_maps, Device.cpu)
    monkeypatch.setattr(encoder, "_session", Outputs(*outputs))
    encoder.encode(finite(1, 3, 64, 64))  # not in float32: the graph's own affair
    monkeypatch.setattr(encoder, "_half", True)
    with pytest.raises(BundleError, match=r"vision\.onnx: .*float16; use --dtype float32"):
        encoder.encode(finite(1, 3, 64, 64))


def test_an_overflow_of_region_tokens_is_reported(
    by_maps: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = RegionEncoder(by_maps, Device.cpu)
    monkeypatch.setattr(encoder, "_session", Outputs(overflowing(np.inf, 1, 1, 32)))
    encoder.encode([finite(1, 8, 2, 2)] * 2, finite(1, 4))
    monkeypatch.setattr(encoder, "_half", True)
    with pytest.raises(BundleError, match=r"region\.onnx: .*float16"):
        encoder.encode([finite(1, 8, 2, 2)] * 2, finite(1, 4))
