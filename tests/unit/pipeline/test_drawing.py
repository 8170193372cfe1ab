"""Drawings: outlines, tags, legend, saving."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from regionqa.errors import BoxError, OutputError, UsageError
from regionqa.pipeline.draw_files import SUFFIXES, save_drawing
from regionqa.pipeline.drawing import (
    COLOURS,
    LARGEST,
    PAPER,
    SMALLEST,
    Edges,
    draw_answers,
)
from regionqa.regions import Box, Region
from regionqa.requests import Answer, Request

GREY = (128, 128, 128)
XYXY = tuple[float, float, float, float]


def answer(
    text: str, *boxes: XYXY, question: str = "what is this?", error: BoxError | None = None
) -> Answer:
    regions = tuple(Region(Box(*xyxy)) for xyxy in boxes)
    return Answer(Request("photo", question, regions), text, error=error)


def plain(width: int = 800, height: int = 600, colour: object = GREY) -> Image.Image:
    return Image.new("RGB", (width, height), colour)  # type: ignore[arg-type]


def panel_height(image: Image.Image, *answers: Answer) -> int:
    """How high the legend of an image is that is drawn in its own size."""
    return draw_answers(image, answers).height - image.height


class Written:
    """What a drawing had written and tagged, in order."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.colours: list[tuple[int, int, int]] = []
        self.tags: list[Edges] = []


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Looks over Pillow's shoulder; everything is drawn nevertheless."""
    seen = Written()
    text, tag = ImageDraw.ImageDraw.text, ImageDraw.ImageDraw.rounded_rectangle

    def see_text(self: ImageDraw.ImageDraw, xy: object, what: str, **options: object) -> None:
        seen.texts.append(what)
        seen.colours.append(options["fill"])  # type: ignore[arg-type]
        text(self, xy, what, **options)  # type: ignore[arg-type]

    def see_tag(self: ImageDraw.ImageDraw, xy: Edges, *rest: object, **options: object) -> None:
        seen.tags.append(xy)
        tag(self, xy, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", see_text)
    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", see_tag)
    return seen


# The image


@pytest.mark.parametrize("colour", ["white", "black", GREY, *COLOURS])
def test_outline_is_visible_on_any_plain_image(colour: object) -> None:
    image = plain(colour=colour)
    pixels = np.asarray(draw_answers(image, [answer("a dog", (200, 150, 500, 400))]), int)
    contrast = np.abs(pixels[:600] - np.asarray(image, int)).sum(axis=-1) > 150  # (600, 800)
    for x in range(250, 480):  # clear of the tag
        assert contrast[140:152, x].any() and contrast[398:410, x].any()
    for y in range(150, 400):
        assert contrast[y, 190:202].any() and contrast[y, 498:510].any()


def test_outline_has_its_colour_between_black_and_white() -> None:
    pixels = np.asarray(draw_answers(plain(), [answer("a dog", (200, 150, 500, 400))]))
    across = [tuple(pixel) for pixel in pixels[300, 190:200].tolist()]
    assert across == [GREY] * 5 + [(0, 0, 0), *[COLOURS[0]] * 3, (255, 255, 255)]


def test_box_content_is_not_covered() -> None:
    pixels = np.asarray(draw_answers(plain(), [answer("a dog", (200, 150, 500, 400))]))
    assert np.all(pixels[150:400, 200:500] == GREY)


def test_outline_at_the_border_stays_inside() -> None:
    drawing = np.asarray(draw_answers(plain(), [answer("everything", (0, 0, 800, 600))]))
    for side in (drawing[599, 100:700], drawing[100:500, 0], drawing[100:500, 799]):
        assert np.all(side == 0)
    assert np.all(drawing[300, 1] == COLOURS[0])


def test_small_box_is_drawn_above_a_large_one() -> None:
    small, large = answer("s", (700, 500, 800, 600)), answer("l", (0, 0, 800, 600))
    pixels = np.asarray(draw_answers(plain(), [small, large]))
    assert np.all(pixels[550, 798] == COLOURS[0])


def test_given_image_is_unchanged() -> None:
    image = plain()
    draw_answers(image, [answer("a dog", (200, 150, 500, 400))])
    assert np.all(np.asarray(image) == GREY)


@pytest.mark.parametrize(
    ("given_size", "width", "shown_height"),
    [
        ((800, 600), 800, 600),
        ((20, 20), SMALLEST, SMALLEST),
        ((320, 160), SMALLEST, SMALLEST // 2),
        ((1, 1), SMALLEST, SMALLEST),
        ((6000, 4000), LARGEST, 1333),
        ((100, 900), SMALLEST, 900),
        ((5000, 1), LARGEST, 1),
    ],
)
def test_drawing_size(given_size: tuple[int, int], width: int, shown_height: int) -> None:
    drawing = draw_answers(plain(*given_size), [answer("a dog")])
    assert drawing.mode == "RGB"
    assert drawing.width == width
    bottom = np.asarray(drawing)[:, 0]
    assert np.all(bottom[:shown_height] == GREY) and np.all(bottom[shown_height:] == PAPER)
    assert drawing.height > shown_height + 16


def test_boxes_scale_with_the_image() -> None:
    small = np.asarray(draw_answers(plain(20, 20), [answer("pixel", (10, 10, 11, 11))]))
    assert np.all(small[320:352, 320:352] == GREY)
    assert np.all(small[319, 320:352] == 255) and np.all(small[352, 320:352] == 255)
    large = np.asarray(draw_answers(plain(4000, 3000), [answer("r", (2000, 1000, 3000, 2000))]))
    assert np.all(large[500:1000, 1000:1500] == GREY)
    assert np.all(large[499, 1000:1500] == 255)


def test_drawing_without_answers() -> None:
    assert np.array_equal(np.asarray(draw_answers(plain(), [])), np.asarray(plain()))


# Tags


def test_boxes_are_numbered_in_order(written: Written) -> None:
    one, two = (10.0, 40.0, 90.0, 90.0), (200.0, 150.0, 500.0, 400.0)
    draw_answers(plain(), [answer("a dog", two), answer("a cat", one), answer("black", two)])
    assert written.texts == ["1", "2", "1", "a dog", "2", "a cat", "1", "black"]
    (x, y), (x2, y2) = written.tags[0][:2], written.tags[1][:2]
    assert abs(x - 200) < 10 and 150 - 40 < y < 150
    assert abs(x2 - 10) < 10 and 0 <= y2 < 40


def test_tags_do_not_overlap(written: Written) -> None:
    boxes = [(300.0 + i, 200.0 + i, 330.0 + i, 230.0 + i) for i in range(30)]
    draw_answers(plain(), [answer("the same", *boxes)])
    tags = written.tags[:30]
    assert len(set(tags)) == 30
    assert not any(
        a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
        for i, a in enumerate(tags)
        for b in tags[:i]
    )


@pytest.mark.parametrize(
    "box",
    [(0, 0, 5, 5), (795, 0, 800, 5), (0, 595, 5, 600), (795, 595, 800, 600), (0, 0, 800, 600)],
)
def test_tags_stay_inside_the_image(written: Written, box: XYXY) -> None:
    draw_answers(plain(), [answer("a corner", box)])
    left, top, right, bottom = written.tags[0]
    assert left >= 0 and top >= 0 and right < 800 and bottom < 600


def test_tags_overlap_where_there_is_no_room(written: Written) -> None:
    boxes = [(float(x), 0.0, float(x + 1), 10.0) for x in range(0, 700, 10)]
    draw_answers(plain(700, 10), [answer("a fence", *boxes)])
    assert written.texts[:70] == [str(number) for number in range(1, 71)]


@pytest.mark.parametrize("number", range(1, len(COLOURS) + 2))
def test_tag_has_the_colour_of_its_box(number: int) -> None:
    boxes = [(50.0 * i + 20, 300.0, 50.0 * i + 40, 320.0) for i in range(len(COLOURS) + 1)]
    pixels = np.asarray(draw_answers(plain(), [answer("a row", *boxes)]))
    x = 50 * (number - 1) + 20
    colour = COLOURS[(number - 1) % len(COLOURS)]
    assert np.all(pixels[297, x + 5] == colour)  # the outline
    assert np.all(pixels[280, x] == colour)  # the tag above it


# Legend


def test_single_question_about_one_region_is_left_out(written: Written) -> None:
    draw_answers(plain(), [answer("a dog", (1, 1, 9, 9), question="what is <region1>?")])
    assert written.texts == ["1", "1", "a dog"]


def test_two_questions_about_one_region_are_shown(written: Written) -> None:
    box = (1.0, 1.0, 9.0, 9.0)
    draw_answers(
        plain(),
        [answer("a dog", box, question="what?"), answer("red", box, question="which colour?")],
    )
    assert written.texts == ["1", "1", "what? -> a dog", "1", "which colour? -> red"]


def test_questions_use_the_numbers_of_the_drawing(written: Written) -> None:
    a, b, c = (10.0, 10.0, 90.0, 90.0), (200.0, 10.0, 290.0, 90.0), (400.0, 10.0, 490.0, 90.0)
    draw_answers(
        plain(),
        [
            answer("a cup", a),
            answer("no", c, b, question="does <region1> touch <region2> or <region9>?"),
        ],
    )
    assert written.texts[3:] == ["1", "a cup", "2", "3", "does [2] touch [3] or <region9>? -> no"]


def test_whole_image_has_no_number(written: Written) -> None:
    drawing = draw_answers(plain(), [answer("a garage", question="where is this?")])
    assert written.texts == ["where is this? -> a garage"]
    assert not written.tags
    assert np.all(np.asarray(drawing)[:600] == GREY)


def test_errors_and_empty_answers_are_shown(written: Written) -> None:
    draw_answers(
        plain(),
        [answer("", (1, 1, 9, 9), error=BoxError("box 1: too small")), answer("", (5, 5, 90, 90))],
    )
    assert written.texts[3] == "error: box 1: too small"
    assert written.texts[5] == "(no answer)"
    assert written.colours[3] != written.colours[5]


def test_legend_wraps_long_answers(written: Written) -> None:
    box = (10.0, 10.0, 90.0, 90.0)
    one = panel_height(plain(), answer("a dog", box))
    many = panel_height(plain(), answer("a dog that runs " * 60, box))
    assert many > one + 8 * 16  # at least eight lines more of 16 pixels
    drawing = np.asarray(draw_answers(plain(), [answer("a dog that runs " * 60, box)]))
    assert np.all(drawing[600:, -8:] == PAPER)
    assert " ".join(written.texts[-12:]).count("dog") > 12


def test_long_words_are_broken(written: Written) -> None:
    drawing = draw_answers(plain(), [answer("tiny " + "w" * 300, (10, 10, 90, 90))])
    lines = written.texts[2:]
    assert len(lines) > 2 and lines[0] == "tiny" and "".join(lines[1:]) == "w" * 300
    assert np.all(np.asarray(drawing)[600:, -8:] == PAPER)


def test_many_numbers_are_wrapped(written: Written) -> None:
    boxes = [(50.0 * i, 300.0, 50.0 * i + 20, 320.0) for i in range(12)]
    few = panel_height(plain(), answer("a row", *boxes[:4]))
    assert panel_height(plain(), answer("a row", *boxes)) > 2 * few - 2 * 16
    assert len({tag[1] for tag in written.tags[-12:]}) == 3


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        ("a café, naïve…", "a cafe, naive..."),
        ("two\nlines\tand  spaces", "two lines and spaces"),
        ("\ud800 half a letter", "? half a letter"),
        ("中文 😀 \u200b", "中文 😀 \u200b"),
        ("مرحبا", "مرحبا"),
        ("\0\x01", "\0\x01"),
    ],
)
def test_letters_missing_from_the_font(written: Written, said: str, drawn: str) -> None:
    draw_answers(plain(), [answer(said, (1, 1, 9, 9))])
    assert written.texts[2] == drawn


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.lists(st.tuples(*[st.floats(0, 0.95)] * 4), max_size=5),
    st.text(max_size=40),
)
def test_anything_can_be_drawn(
    size: tuple[int, int], places: list[tuple[float, ...]], text: str
) -> None:
    width, height = size
    boxes = [
        (
            x * width,
            y * height,
            (x + (1 - x) * (w + 0.05)) * width,
            (y + (1 - y) * (h + 0.05)) * height,
        )
        for x, y, w, h in places
    ]
    drawing = draw_answers(plain(width, height), [answer(text, *boxes), answer(text)])
    assert drawing.width == SMALLEST and drawing.height > SMALLEST * height / max(size)


# Files


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG"])
def test_suffix_sets_the_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"drawing{suffix}"
    path.write_text("what stood here before")
    save_drawing(plain(), path, overwrite=True)
    with Image.open(path) as saved:
        kind = suffix.lower().strip(".").replace("jpg", "jpeg")
        assert (saved.format or "").lower() == kind
        assert saved.size == (800, 600)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["drawing.bmp", "drawing", "drawing.png.gz"])
def test_unsupported_suffix(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.png, \.jpg"):
        save_drawing(plain(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_unwritable_paths(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    reasons = {
        "none/drawing.png": "there is no folder",
        "folder.png": "is a folder; name a file",
        "file/drawing.png": "cannot be written: [^\n]+",
    }
    for path, reason in reasons.items():
        with pytest.raises(OutputError, match=rf"^[^\n]*: {reason}") as caught:
            save_drawing(plain(), tmp_path / path, overwrite=True)
        assert str(caught.value).startswith(str(tmp_path / path))
    assert len(list(tmp_path.iterdir())) == 2


def test_failed_drawing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "drawing.webp"
    path.write_text("what stood here before")
    with pytest.raises(OutputError, match="cannot be written"):
        # one more than WebP holds
        save_drawing(Image.new("RGB", (1, 16_384)), path, overwrite=True)
    assert path.read_text() == "what stood here before"
    assert list(tmp_path.iterdir()) == [path]


def test_answers_use_the_numbers_of_the_drawing() -> None:
    first, second = (10, 10, 90, 90), (200, 100, 300, 300)
    for text, drawn in (("see <region1>.", "see [2]."), ("see <region2>.", "see <region2>.")):
        written, expected = (
            draw_answers(plain(), [answer("a dog.", first), answer(said, second)])
            for said in (text, drawn)
        )
        assert np.array_equal(np.asarray(written), np.asarray(expected))


def test_all_questions_are_shown_on_request() -> None:
    box = (10, 10, 90, 90)
    with_question = draw_answers(plain(), [answer("a dog.", box)], questions=True)
    written_out = draw_answers(plain(), [answer("what is this? -> a dog.", box)])
    assert np.array_equal(np.asarray(with_question), np.asarray(written_out))
