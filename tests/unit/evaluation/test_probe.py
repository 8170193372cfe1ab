"""The probe finds faults that are planted in a card, and none in a sound one."""

import pytest
from PIL import Image

from helpers.vlm.reader import ReadingBackend
from regionqa.engine import Engine
from regionqa.evaluation.probe.images import ROTATED, SIZES, ProbeItem, probe_items, probe_layouts
from regionqa.evaluation.probe.readings import center
from regionqa.evaluation.probe.report import probe_table
from regionqa.evaluation.probe.run import ProbeOutcome, ask_items
from regionqa.images.reading import open_image
from regionqa.options import RegionWay
from regionqa.vlm.card import CoordinateOrder, CoordinateUnit, VlmCard
from regionqa.vlm.cards import make_card

UNITS = [unit for unit in CoordinateUnit if unit is not CoordinateUnit.bins]
XYXY, YXYX = CoordinateOrder
COORDINATES = (RegionWay.coordinates,)


def card(unit: CoordinateUnit, order: CoordinateOrder = XYXY) -> VlmCard:
    coordinates = {"unit": unit.value, "order": order.value}
    table = {"name": "reader", "family": "qwen3_vl", "summary": "a test's"}
    return make_card(table | {"regions": {"coordinates": coordinates}}, "a test")


ITEMS: list[ProbeItem] = []


@pytest.fixture(scope="module", autouse=True)
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeItem, ...]:
    """The questions; their images are written once, and the scripted model reads no pixels."""
    ITEMS[:] = probe_items(tmp_path_factory.mktemp("probe"))
    return tuple(ITEMS)


def probe(backend: ReadingBackend, *ways: RegionWay) -> list[ProbeOutcome]:
    engine = Engine(backend, 8)
    return [ask_items(engine, tuple(ITEMS), way) for way in ways or engine.info.ways]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("order", CoordinateOrder)
def test_a_right_card_is_sound(unit: CoordinateUnit, order: CoordinateOrder) -> None:
    for outcome in probe(ReadingBackend(card(unit, order), unit, order)):
        assert (outcome.right, outcome.verdict) == (1.0, "sound")


@pytest.mark.parametrize("told", UNITS)
@pytest.mark.parametrize("read", UNITS)
def test_a_wrong_unit_is_found(told: CoordinateUnit, read: CoordinateUnit) -> None:
    """Among them pixels of the original image where those of the resized one are meant."""
    if told is read:
        return
    [outcome] = probe(ReadingBackend(card(told), read), *COORDINATES)
    assert not outcome.sound
    better = outcome.better_reading
    if better is None:  # the model looks outside the image nearly always
        assert outcome.right < 0.5 or outcome.worst_kind in ("wide", "tall")
        assert outcome.verdict.startswith(("weak", "looks wrong in "))
        return
    # fractions in place of whole numbers are one point, in whatever unit they are read
    true = f'unit = "{read}" and order = "xyxy"'
    [planted] = [reading for reading in outcome.readings if reading.name == true]
    assert outcome.compare(planted)[0] == outcome.compare(better)[0] == 1.0
    assert outcome.verdict.startswith("looks wrong: 100 % of the answers fit unit = ")
    if CoordinateUnit.fraction not in (told, read):
        assert better == planted or CoordinateUnit.square_fraction in (told, read)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("told", CoordinateOrder)
def test_a_swapped_order_is_found(unit: CoordinateUnit, told: CoordinateOrder) -> None:
    read = YXYX if told is XYXY else XYXY
    [outcome] = probe(ReadingBackend(card(unit, told), unit, read), *COORDINATES)
    assert not outcome.sound
    assert f'fit unit = "{unit}" and order = "{read}"' in outcome.verdict


def test_a_missing_rotation_is_found_in_every_way() -> None:
    backend = ReadingBackend(card(CoordinateUnit.thousand), CoordinateUnit.thousand)
    backend.turns_images = False
    outcomes = probe(backend)
    assert [outcome.way for outcome in outcomes] == list(RegionWay)
    for outcome in outcomes:
        assert not outcome.sound
        assert "the image as stored, without its EXIF rotation" in outcome.verdict
        assert outcome.right_in("square") == 1.0
        assert outcome.right_in(ROTATED) < 0.5
    table = probe_table("reader", outcomes)
    assert table.header == ("way", "all", *SIZES, "failed")
    assert [row[0] for row in table.rows] == list(RegionWay)
    assert {row[2] for row in table.rows} == {"100"}


def test_what_is_asked_is_what_is_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("probe")
    items = list(probe_items(folder))
    assert len(items) == len(SIZES) * (4 + 6 + 4)
    for layout in probe_layouts():
        source = open_image(folder / layout.name)
        assert (source.width, source.height) == layout.size  # as displayed
        if layout.subject != "color":
            continue
        pixels = source.load()
        drawn = layout.draw()
        for cell in layout.cells:
            x, y = map(round, center(cell.asked))
            seen, meant = pixels.getpixel((x, y)), drawn.getpixel((x, y))
            assert isinstance(seen, tuple)
            assert isinstance(meant, tuple)
            assert max(abs(a - b) for a, b in zip(seen, meant, strict=True)) < 12
    with Image.open(folder / "rotated-color.jpg") as stored:
        assert stored.size == (400, 640)


@pytest.mark.parametrize(
    ("answer", "thing"),
    [
        ("Red.", "red"),
        ("It is a RED thing", "red"),
        ("red or blue", None),
        ("", None),
        ("pink", None),
    ],
)
def test_answers_are_read(answer: str, thing: str | None) -> None:
    assert probe_layouts()[0].read(answer) == thing


def test_digits_and_shapes_have_other_words() -> None:
    _, digits, shapes = probe_layouts()[:3]
    assert digits.read("the number seven") == "7"
    assert shapes.read("a round disc") == "circle"
