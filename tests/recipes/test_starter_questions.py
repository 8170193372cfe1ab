"""The starter recipe's questions: answers follow from annotations."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from recipes.starter.questions.activities import activity_of
from recipes.starter.questions.colours import COLOURS, colour_of
from recipes.starter.questions.mixture import (
    EVEN_NUMBERS,
    MIXTURE,
    MORE_NAMES,
    REGIONS,
    WHERE,
    draw_sample,
)
from recipes.starter.questions.one_region import (
    activity,
    checking,
    colouring,
    counting_alike,
    describing,
    grouping,
    naming,
)
from recipes.starter.questions.phrases import SYNONYMS, as_typed, listed, place_of
from recipes.starter.questions.scenes import Maker, QuestionSample, Scene
from recipes.starter.questions.several_regions import (
    comparing,
    locating,
    matching,
    naming_several,
    neighbouring,
    overlapping,
    relating,
    siding,
)
from recipes.starter.questions.whole_image import (
    biggest,
    captioning,
    counting,
    counting_evenly,
    finding,
    presence,
)
from regionqa.data.english import with_article
from regionqa.language.references import REFERENCE

NAMES = ("cat", "orange", "person")


@pytest.fixture
def scene() -> Scene:
    """A large cat at the left, an orange at the top right, a person just below it."""
    boxes = np.array([[0.0, 0.1, 0.5, 0.9], [0.7, 0.05, 0.8, 0.15], [0.7, 0.7, 0.8, 1]], np.float32)
    captions = ("A cat sits.", "A woman is holding a large spoon while a cat looks at her.")
    colours = ("black", "orange", "blue")
    return Scene(boxes, np.arange(3), captions, NAMES, True, np.ones(3, np.float32), colours)


def drawn(maker: Maker, scene: Scene, count: int = 200) -> list[QuestionSample]:
    rng = np.random.default_rng(0)
    return [sample for _ in range(count) if (sample := maker(scene, rng)) is not None]


def answers(maker: Maker, scene: Scene) -> dict[tuple[tuple[int, ...], str], str]:
    """By regions and question, each with its one answer."""
    samples = drawn(maker, scene, 1500)
    found = {(s.regions, s.question): s.answer for s in samples}
    assert all(found[s.regions, s.question] == s.answer for s in samples), "it depends on chance"
    return found


# -- one region ------------------------------------------------------------------------------------


def test_naming(scene: Scene) -> None:
    samples = drawn(naming, scene)
    assert {(s.regions, s.answer) for s in samples} == {
        ((0,), "a cat."), ((1,), "an orange."), ((2,), "a person."),
    }  # fmt: skip
    assert len({s.question for s in samples}) > 15, "wording varies"


def test_checking_is_true_and_balanced(scene: Scene) -> None:
    samples = drawn(checking, scene, 400)
    words = {name: {name, *SYNONYMS.get(name, ())} for name in NAMES}
    for sample in samples:
        truth = NAMES[scene.labels[sample.regions[0]]]
        assert sample.answer.endswith(f", {with_article(truth)}.")
        asked = any(word in sample.question for word in words[truth])
        assert sample.answer.startswith("yes") == asked
    assert 0.4 < np.mean([s.answer.startswith("yes") for s in samples]) < 0.6


def test_describing(scene: Scene) -> None:
    assert {s.answer for s in drawn(describing, scene)} == {
        "a large black cat on the left.",
        "a small orange orange at the top right.",
        "a person at the bottom right.",
    }


def test_colouring(scene: Scene) -> None:
    for (rows, question), answer in answers(colouring, scene).items():
        colour = scene.colours[rows[0]]
        if question.startswith("is ") and "colour" not in question:
            asked = question.removesuffix("?").split()[-1]
            assert answer == ("yes." if asked == colour else f"no, {colour}.")
        else:
            assert answer == f"{colour}."
    assert not drawn(colouring, replace(scene, colours=()))


def test_grouping(scene: Scene) -> None:
    found = answers(grouping, scene)
    assert found[(0,), "is this an animal?"] == "yes, a cat."
    assert found[(1,), "is this food?"] == "yes, an orange."
    assert found[(1,), "is this an animal?"] == "no, an orange."
    assert found[(2,), "is this a vehicle?"] == "no, a person."


def test_activity_comes_from_captions(scene: Scene) -> None:
    by_row = {s.regions[0]: s.answer for s in drawn(activity, scene)}
    assert by_row == {1: "nothing, it is an orange.", 2: "holding a large spoon."}


@pytest.mark.parametrize(
    ("name", "count", "caption", "answer"),
    [
        ("person", 1, "A man riding a wave on top of a surfboard.", "riding a wave"),
        ("person", 2, "Two people are playing frisbee in the park", "playing frisbee"),
        ("person", 9, "A man standing near a bus.", None),
        ("dog", 1, "A dog that is sleeping on a bed next to a cat", "sleeping on a bed"),
        ("dog", 1, "A cat sleeping on a bed.", None),
        ("person", 1, "A woman in a red dress.", None),
        ("person", 1, "A woman holding the", "holding"),
        ("person", 1, "A man riding skis down a snowy hill today.", "riding skis"),
    ],
)
def test_activity_of_captions(name: str, count: int, caption: str, answer: str | None) -> None:
    assert activity_of(name, count, [caption], np.random.default_rng(0)) == answer


# -- several regions -------------------------------------------------------------------------------


def test_naming_several(scene: Scene) -> None:
    for sample in drawn(naming_several, scene):
        words = [with_article(NAMES[scene.labels[row]]) for row in sample.regions]
        assert sample.answer == f"{listed(words)}."


def test_relating(scene: Scene) -> None:
    found = answers(relating, scene)
    assert found[(0, 1), "is <region1> left of <region2>?"] == "yes."
    assert found[(1, 0), "is <region1> left of <region2>?"] == "no."
    assert found[(1, 0), "is <region2> left of <region1>?"] == "yes."
    assert found[(1, 2), "is <region1> above <region2>?"] == "yes."
    assert found[(0, 1), "is <region1> bigger than <region2>?"] == "yes."
    assert found[(0, 1), "is <region1> in front of <region2>?"] == "yes.", "it ends lower"
    assert found[(0, 1), "is <region1> behind <region2>?"] == "no."
    assert ((1, 2), "is <region1> right of <region2>?") not in found, "too close to call"
    shares = Counter(s.answer for s in drawn(relating, scene, 600))
    assert 0.4 < shares["yes."] / shares.total() < 0.6


def test_siding_in_any_order(scene: Scene) -> None:
    found = answers(siding, scene)
    assert found[(0, 1), "is <region1> left or right of <region2>?"] == "left."
    assert found[(0, 1), "is <region1> right or left of <region2>?"] == "left."
    assert found[(1, 0), "is the first left or right of the second?"] == "right."
    assert found[(1, 2), "is <region1> above or below <region2>?"] == "above."
    assert found[(1, 0), "is <region1> bigger or smaller than <region2>?"] == "smaller."
    assert found[(0, 1), "is <region1> behind or in front of <region2>?"] == "in front."
    assert not any("left" in question for (rows, question) in found if set(rows) == {1, 2})


def test_choosing_by_number(scene: Scene) -> None:
    found = answers(comparing, scene)
    assert found[(0, 1), "which is bigger?"] == "region 1."
    assert found[(1, 0), "which is bigger?"] == "region 2."
    assert found[(1, 0), "which one is smaller, <region1> or <region2>?"] == "region 1."
    assert found[(2, 1), "which is higher?"] == "region 2."
    assert any(answer == "region 3." for answer in found.values())


def test_sides_overlaps_and_same_class(scene: Scene) -> None:
    question = "where is <region1> relative to <region2>?"
    assert answers(locating, scene)[(1, 2), question] == "above."
    assert answers(locating, scene)[(2, 0), question] == "to the right."
    assert set(answers(overlapping, scene).values()) == {"no."}
    inside = replace(scene, boxes=np.array([[0, 0, 1, 1], [0.2, 0.2, 0.7, 0.7]], np.float32),
                     labels=np.array([0, 0]), box_weights=np.ones(2, np.float32))  # fmt: skip
    assert set(answers(overlapping, inside).values()) == {"yes."}
    assert set(answers(matching, inside).values()) == {"yes, cats."}
    assert answers(matching, scene)[(0, 2), "are they the same?"] == "no, a cat and a person."


def test_nearest_neighbour(scene: Scene) -> None:
    found = {s.regions[0]: s.answer for s in drawn(neighbouring, scene)}
    assert found == {0: "a person.", 1: "a cat.", 2: "a cat."}
    apart = np.array([[0.0, 0.0, 0.1, 0.1], [0.7, 0.7, 0.8, 1]], np.float32)
    far = replace(scene, boxes=apart, labels=scene.labels[:2], box_weights=np.ones(2, np.float32))
    assert not drawn(neighbouring, far), "the nearest thing is not next to it"


# -- the whole image -----------------------------------------------------------------------------


def test_presence_and_counting(scene: Scene) -> None:
    one_thing = replace(scene, boxes=scene.boxes[:1], labels=scene.labels[:1],
                        box_weights=np.ones(1, np.float32))  # fmt: skip
    for sample in drawn(presence, one_thing):
        assert (sample.answer == "yes.") == ("cat" in sample.question)
    for sample in drawn(counting, one_thing):
        assert sample.answer == ("one." if "cat" in sample.question else "none.")
    assert {s.answer for s in drawn(counting_alike, scene)} == {"one."}


def test_counts_are_balanced(scene: Scene) -> None:
    """A photo of a cat, two dogs and nine birds must not make "nine" the likeliest answer."""
    labels = np.repeat([0, 1, 2], [1, 2, 9])
    boxes = np.tile(scene.boxes[:1], (12, 1))
    crowd = replace(scene, boxes=boxes, labels=labels, box_weights=np.ones(12, np.float32))
    frequency = {
        maker: Counter(sample.answer for sample in drawn(maker, crowd, 3000))
        for maker in (counting, counting_evenly)
    }
    many, ones, pairs = (frequency[counting_evenly][number] for number in ("nine.", "one.", "two."))
    assert frequency[counting]["nine."] > 3 * frequency[counting]["two."]
    assert 0.2 < ones / many < 0.3 and 0.7 < pairs / many < 0.9


def test_whole_image_questions_need_complete_scenes(scene: Scene) -> None:
    part = replace(scene, complete=False)
    makers = (counting, counting_evenly, presence, finding, biggest, captioning, counting_alike)
    for maker in (*makers, neighbouring):
        assert drawn(maker, scene)
        assert not drawn(maker, part), maker


def test_locating(scene: Scene) -> None:
    assert answers(finding, scene)[(), "where is the cat?"] == "on the left."
    found = answers(biggest, scene)
    assert found[(), "what is the largest object?"] == "a cat."
    assert found[(), "what is on the right?"] == "a person."


def test_place_words() -> None:
    def at(x: float, y: float) -> str:
        return place_of(np.array([x - 0.01, y - 0.01, x + 0.01, y + 0.01], np.float32))

    assert at(0.5, 0.5) == "in the middle"
    assert at(0.1, 0.5) == "on the left"
    assert at(0.5, 0.9) == "at the bottom"
    assert at(0.9, 0.1) == "at the top right"


def test_mixture_weights(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    makers = [maker for maker, share in MIXTURE if share > 0]
    assert len(set(makers)) == len(MIXTURE) == 23
    for other in (WHERE, REGIONS):
        assert {maker for maker, _ in other} < set(makers)
    assert set(dict(MORE_NAMES)) == set(makers)
    assert set(dict(EVEN_NUMBERS)) == set(makers) - {counting} | {counting_evenly}
    assert all(draw_sample(scene, rng, REGIONS).regions for _ in range(300)), "no whole images"
    for _ in range(300):
        sample = draw_sample(scene, rng)
        assert sample.answer.endswith(".")
        assert all(row < 3 for row in sample.regions)
        named = [int(number) for number in REFERENCE.findall(sample.question)]
        assert all(1 <= number <= len(sample.regions) for number in named)


def test_typed_variants() -> None:
    rng = np.random.default_rng(0)
    typed = Counter(as_typed("what colour is <region1>?", rng) for _ in range(500))
    assert typed["what colour is <region1>?"] > 200, "most are well spelt"
    assert typed["what color is <region1>?"] and typed["what colour is <region1>"]
    assert len(typed) > 30
    assert all(REFERENCE.findall(question) == ["1"] for question in typed), "references stay whole"


# -- colours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("black", (15, 15, 18)), ("white", (240, 238, 235)), ("grey", (125, 125, 128)),
        ("beige", (222, 204, 172)), ("brown", (110, 72, 40)), ("red", (200, 25, 30)),
        ("orange", (240, 130, 20)), ("yellow", (245, 220, 40)), ("green", (40, 140, 50)),
        ("blue", (35, 70, 180)), ("purple", (120, 50, 150)), ("pink", (245, 150, 185)),
    ],
)  # fmt: skip
def test_colour_ignores_the_background(name: str, rgb: tuple[int, int, int]) -> None:
    """A disc in a box, in front of another colour, in light and in half shade."""
    for behind in ((128, 128, 128), (60, 120, 60), (60, 90, 200)):
        image = Image.new("RGB", (100, 80), behind)
        ImageDraw.Draw(image).ellipse((20, 10, 80, 70), fill=rgb)
        ImageDraw.Draw(image).ellipse((45, 35, 55, 45), fill=(10, 10, 10))
        box = np.array([0.2, 0.125, 0.8, 0.875], np.float32)
        if name in ("grey", "green", "blue") and behind[2] != 60 * (name != "green"):
            continue  # too much like what is behind it
        assert colour_of(np.asarray(image), box) == name
    assert name in COLOURS


def test_subpixel_box_has_no_colour() -> None:
    box = np.array([0.5, 0.5, 0.501, 0.6], np.float32)
    assert colour_of(np.zeros((80, 100, 3), np.uint8), box) is None
