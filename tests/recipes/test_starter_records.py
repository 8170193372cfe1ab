"""The starter's training records: answers follow from geometry and annotations."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.starter.records import one_region as one
from recipes.starter.records import several_regions as several
from recipes.starter.records import whole_image as whole
from recipes.starter.records.mixture import TAUGHT, all_makers, as_asked, mixture, write_records
from recipes.starter.records.scenes import DrawnQuestion, Maker, Scene
from recipes.starter.records.untaught import words_of
from recipes.starter.records.words import TABLES, SceneError, as_typed
from regionqa.data.files import read_training_data
from regionqa.data.questions import read_questions
from regionqa.errors import DataError
from regionqa.language.references import REFERENCE

NAMES = ("cat", "orange", "person", "sports ball", "dog", "bench")
UNSURE = "I am not sure."


def scene_of(image: Path, boxes: Sequence[Sequence[float]], labels: list[int]) -> Scene:
    """A scene of 200 x 100 pixels."""
    return Scene(
        image,
        (200, 100),
        NAMES,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        ("A cat sits.", "A woman is holding a large spoon while a cat looks at her."),
        ("black", "orange", "blue", "red", "white", "grey")[: len(labels)],
        ("tabby cat", *[None] * (len(labels) - 1)),
    )


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A large cat at the left, an orange at the top right, a person below it, two balls between."""
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.new("RGB", (200, 100)).save(path)
    boxes = [[0, 10, 80, 90], [150, 0, 180, 20], [150, 70, 180, 100], [90, 40, 108, 60]]
    return scene_of(path, [*boxes, [112, 20, 130, 38]], [0, 1, 2, 3, 3])


def drawn(maker: Maker, scene: Scene, tries: int = 200) -> list[DrawnQuestion]:
    """What a maker makes of a scene, at several tries."""
    rng, found = np.random.default_rng(0), []
    for _ in range(tries):
        try:
            found.append(maker(scene, rng))
        except SceneError:
            continue
    return found


def rows_of(question: DrawnQuestion, scene: Scene) -> list[int]:
    """The rows of a question's boxes."""
    pixels = question.boxes * np.array(scene.size * 2)
    return [int(np.abs(scene.boxes - box).sum(axis=1).argmin()) for box in pixels]


def answers(maker: Maker, scene: Scene, *rows: int) -> dict[tuple[tuple[int, ...], str], str]:
    """By rows and question, each with its one answer; about these rows alone, if any are given."""
    if rows:
        scene = replace(scene, weights=np.isin(np.arange(len(scene.labels)), rows) * np.float32(1))
    made = [((*rows_of(each, scene),), each.text, each.answer) for each in drawn(maker, scene, 300)]
    found = {(these, text): answer for these, text, answer in made}
    assert all(found[these, text] == answer for these, text, answer in made), "not by chance"
    return found


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first wording of each kind, and no random boxes."""
    first = {kind: texts[:1] for kind, texts in TABLES["wordings"].items()}
    monkeypatch.setitem(TABLES, "wordings", first)
    monkeypatch.setattr("recipes.starter.records.words.IT", ("this",))
    keep = ("sides", "orders")
    axes = [{k: v if k in keep else v[:1] for k, v in axis.items()} for axis in several.AXES]
    monkeypatch.setattr(several, "AXES", tuple(axes))
    monkeypatch.setattr("recipes.starter.records.scenes.ANYWHERE", -1.0)


@pytest.mark.parametrize("kind", TAUGHT)
def test_every_maker_of_a_kind_makes_questions(kind: str, scene: Scene) -> None:
    made = drawn(TAUGHT[kind][0], scene, 60)
    for count in (3, 4, 5, 7):
        crowd = scene_of(scene.image, [[0, 10, 80, 90]] * count, [0] * count)
        made += drawn(TAUGHT[kind][0], replace(crowd, colours=()), 60)
    assert made
    assert len({each.text for each in made}) > 1, "wording varies"
    for each in made:
        named = [int(number) for number in REFERENCE.findall(each.text)]
        assert all(1 <= number <= len(each.boxes) for number in named)
        assert each.answer.endswith(".") and "{" not in each.text
        assert each.boxes.shape[1:] == (4,)
        assert (each.boxes >= 0).all() and (each.boxes <= 1).all()
        assert not each.choices or each.answer in each.choices
        assert len(set(each.choices)) == len(each.choices)


@pytest.mark.usefixtures("plain")
def test_one_region(scene: Scene) -> None:
    assert answers(one.naming, scene)[(0,), "what is this?"] == "a cat."
    assert answers(one.describing, scene, 0) == {
        ((0,), "describe <region1>."): "a large black cat on the left."
    }
    assert answers(one.position, scene)[(2,), "where is this?"] == "at the bottom right."
    assert answers(one.sizing, scene)[(0,), "how big is this?"] == "large."
    alike = answers(one.counting_alike, scene)
    assert alike[(3,), "how many of these are in the picture?"] == "two."
    assert answers(one.shaping, scene)[(3,), "what shape is this?"] == "round."
    groups = answers(one.grouping, scene)
    assert groups[(0,), "is this an animal?"] == "yes, a cat."
    assert groups[(1,), "is this food?"] == "yes, an orange."
    assert groups[(1,), "is this an animal?"] == "no, an orange."
    done = answers(one.activity, scene)
    assert done[(2,), "what is this doing?"] == "holding a large spoon."
    assert done[(1,), "what is this doing?"] == "nothing, it is an orange."
    assert answers(one.neighbouring, scene)[(3,), "what is this next to?"] == "a sports ball."
    assert answers(one.colouring, scene)[(4,), "what colour is this?"] == "white."
    assert not drawn(one.colouring, replace(scene, colours=()))
    kinds = answers(one.fine_naming, scene)
    assert kinds[(0,), "what kind of cat is this?"] == "a tabby cat."
    assert kinds[(1,), "what kind of orange is this?"] == UNSURE


def test_checks_ask_about_what_could_be_confused(scene: Scene) -> None:
    """Wrong names are drawn from the image, from the same group and from all classes."""
    first = np.array([1, 0, 0, 0, 0], np.float32)
    made = drawn(one.checking, replace(scene, weights=first), 1000)
    assert 0.45 < np.mean([each.answer == "yes, a cat." for each in made]) < 0.55
    wrong = Counter(each.text for each in made if each.answer != "yes, a cat.")
    assert {each.answer for each in made} == {"yes, a cat.", "no, a cat."}
    asked = {name: sum(wrong[text] for text in wrong if name in text) for name in NAMES}
    assert asked["dog"] > 2 * asked["bench"], "the same group"
    assert asked["orange"] + asked["person"] + asked["sports ball"] > 2 * asked["bench"], "seen"


def test_choosing_offers_the_right_class(scene: Scene) -> None:
    made = drawn(one.choosing, scene, 100)
    assert {len(each.choices) for each in made} == {2, 4}
    for each in made:
        assert each.answer == f"{scene.thing(*rows_of(each, scene))}."


@pytest.mark.usefixtures("plain")
def test_relations_by_geometry(scene: Scene) -> None:
    found = answers(several.relating, scene, 0, 1)
    assert found[(0, 1), "is <region1> left of <region2>?"] == "yes."
    assert found[(1, 0), "is <region1> left of <region2>?"] == "no."
    assert found[(0, 1), "is <region1> bigger than <region2>?"] == "yes."
    assert found[(0, 1), "is <region1> in front of <region2>?"] == "yes.", "it ends lower"
    found = answers(several.relating, scene, 1, 2)
    assert found[(1, 2), "is <region1> above <region2>?"] == "yes."
    assert ((1, 2), "is <region1> right of <region2>?") not in found, "too close to call"
    sides = answers(several.siding, scene, 0, 1)
    assert sides[(0, 1), "is <region1> left or right of <region2>?"] == "left."
    assert sides[(1, 0), "is <region1> above or below <region2>?"] == "above."
    assert sides[(1, 0), "is <region1> in front of or behind <region2>?"] == "behind."
    which = answers(several.comparing, scene, 0, 1)
    assert which[(1, 0), "which is bigger?"] == "<region2>."
    assert which[(1, 0), "which is higher?"] == "<region1>."
    place = "where is <region1> relative to <region2>?"
    assert answers(several.locating, scene, 1, 2)[(2, 1), place] == "below."
    assert answers(several.locating, scene, 0, 1)[(1, 0), place] == "to the right."
    orders = answers(several.ordering, scene, 0, 1, 3)
    text = "from left to right, in which order are <region1>, <region2> and <region3>?"
    assert orders[(1, 0, 3), text] == "<region2>, <region3>, <region1>."


@pytest.mark.usefixtures("plain")
def test_matching_pointing_and_overlapping(scene: Scene) -> None:
    same = answers(several.matching, scene)
    assert same[(3, 4), "are they the same?"] == "yes, sports balls."
    assert same[(0, 2), "are they the same?"] == "no, a cat and a person."
    assert set(answers(several.overlapping, scene).values()) == {"no."}
    inside = scene_of(scene.image, [[0, 0, 100, 100], [20, 20, 70, 70]], [0, 0])
    assert set(answers(several.overlapping, inside).values()) == {"yes."}
    which = answers(several.pointing, scene, 0, 1)
    assert which[(1, 0), "which region is the cat?"] == "<region2>."
    assert which[(1, 0), "which region is the dog?"] == "none of them."
    twice = answers(several.pointing, scene, 3, 4)
    assert set(twice.values()) == {"none of them."}, "no name is that of one ball alone"
    for (rows, _), answer in answers(several.naming_several, scene).items():
        assert answer.count("sports ball") == sum(scene.labels[row] == 3 for row in rows)


def test_random_boxes_are_compared_too(scene: Scene) -> None:
    made = drawn(several.relating, scene, 400)
    assert 0.4 < np.mean([each.answer == "yes." for each in made]) < 0.6
    known = scene.boxes / np.array(scene.size * 2)
    anywhere = [not (np.abs(known - each.boxes[0]).sum(axis=1) < 1e-6).any() for each in made]
    assert 0.3 < np.mean(anywhere) < 0.7
    for each in made:
        if match := re.match("is <region1> (left|right) of <region2>", each.text):
            first, second = each.boxes[:, [0, 2]].mean(axis=1)
            assert (each.answer == "yes.") == ((first < second) == (match[1] == "left"))


@pytest.mark.usefixtures("plain")
def test_whole_images(scene: Scene) -> None:
    for each in drawn(whole.presence, scene):
        shown = re.search("dog|bench", each.text) is None
        assert each.answer == ("yes." if shown else "no.")
    assert answers(whole.counting(1, 5), scene)[(), "how many balls are there?"] == "two."
    assert {each.answer for each in drawn(whole.counting(0, 0), scene)} == {"none."}
    assert not drawn(whole.counting(3, 5), scene)
    places = answers(whole.finding, scene)
    assert places[(), "where is the cat?"] == "on the left."
    assert places[(), "where is the dog?"] == "i see no dog."
    assert (
        answers(whole.biggest, scene)[(), "what is the biggest thing in the picture?"] == "a cat."
    )
    assert "a cat sits." in {each.answer for each in drawn(whole.captioning, scene)}


def test_half_of_what_is_asked_for_is_there(scene: Scene) -> None:
    made = drawn(whole.presence, scene, 600)
    for each in made:
        words = ("cat", "orange", "person", "people", "human", "somebod", "ball")
        shown = any(word in each.text for word in words)
        assert each.answer == ("yes." if shown else "no."), each.text
    assert 0.4 < np.mean([each.answer == "yes." for each in made]) < 0.6


@pytest.mark.parametrize(
    ("name", "count", "caption", "answer"),
    [
        ("person", 1, "A man riding a wave on top of a surfboard.", "riding a wave"),
        ("person", 2, "Two people are playing frisbee in the park", "playing frisbee"),
        ("person", 9, "A man standing near a bus.", None),
        ("person", 1, "A man using his phone", "using his phone"),
        ("dog", 1, "A dog that is sleeping on a bed next to a cat", "sleeping on a bed"),
        ("dog", 1, "A cat sleeping on a bed.", None),
        ("person", 1, "A woman in a red dress.", None),
        ("person", 1, "A woman holding the", "holding"),
        ("person", 1, "A man riding skis down a snowy hill today.", "riding skis"),
    ],
)
def test_activities_of_captions(name: str, count: int, caption: str, answer: str | None) -> None:
    assert list(one.activities(name, count, [caption])) == ([answer] if answer else [])


def test_refusals_are_many_and_never_taught(scene: Scene) -> None:
    texts = [text for group in TABLES["untaught"].values() for text in group]
    taught = {text for group in TABLES["wordings"].values() for text in group}
    assert len(set(texts)) == len(texts) >= 150
    assert not taught & set(texts)
    makers = all_makers([replace(scene, captions=("A helmet gleams.",))])
    made = drawn(makers["untaught"], scene, 400)
    assert {each.answer for each in made} == {UNSURE}
    assert len({each.text for each in made}) > 150
    assert any(re.search("helmet|gleams", each.text) for each in made)


def test_corrupted_questions_hold_strange_words_or_another_order(scene: Scene) -> None:
    makers = all_makers([replace(scene, captions=("A cat gleams in a helmet.",))])
    known = words_of(NAMES) | words_of(
        text for section in TABLES.values() for group in section.values() for text in group
    )
    made = drawn(makers["corrupted"], scene, 400)
    assert {each.answer for each in made} == {UNSURE}
    strange = Counter(word for each in made for word in words_of([each.text]) - known)
    assert strange["helmet"] > 20 and strange["gleams"] > 20 and "cat" not in strange
    assert strange.total() - strange["helmet"] - strange["gleams"] > 20, "letters at random"
    for each in made:
        assert all(int(n) <= len(each.boxes) for n in REFERENCE.findall(each.text))


def test_further_regions_keep_what_is_asked(scene: Scene) -> None:
    """Wherever the two regions come to stand among others, the answer is about them."""
    ordered = DrawnQuestion(
        "what are <region1> and <region2>?",
        "<region2>.",
        scene.boxes[:2],
        ("<region1>.", "<region2>."),
    )
    rng, crowded = np.random.default_rng(0), 0
    for _ in range(200):
        asked = as_asked(ordered, scene, rng)
        first, second = (int(number) for number in REFERENCE.findall(asked.text)[:2])
        assert (asked.boxes[first - 1] == scene.boxes[0]).all()
        assert (asked.boxes[second - 1] == scene.boxes[1]).all()
        assert asked.answer == f"region {second}."
        assert asked.choices == (f"region {first}.", f"region {second}.")
        crowded += len(asked.boxes) > 2
        assert len(asked.boxes) <= 6
    assert 30 < crowded < 90


def test_choices_are_sometimes_listed(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    plain = DrawnQuestion(
        "what colour is it?", "red.", scene.boxes[:1], ("red.", "blue.", "black.")
    )
    texts = {as_asked(plain, scene, rng).text for _ in range(100)}
    assert "what colour is it? red, blue or black?" in texts
    assert "what colour is it? (a) red (b) blue (c) black" in texts
    assert "what colour is it?" in texts


def test_typed_questions_keep_their_regions() -> None:
    rng = np.random.default_rng(0)
    texts = [as_typed("what colour is <region1> beside <region2>?", rng) for _ in range(500)]
    assert all(REFERENCE.findall(text) == ["1", "2"] for text in texts)
    assert 200 < texts.count("what colour is <region1> beside <region2>?") < 350
    assert any("color" in text for text in texts) and any("please" in text for text in texts)
    assert any(text.isupper() for text in (REFERENCE.sub("", each) for each in texts))
    assert any(not text.endswith("?") for text in texts)


def test_mixture_shares() -> None:
    shares = mixture(0.3, naming=1.5)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["untaught"] + shares["corrupted"] == pytest.approx(0.3)
    assert shares["naming"] > 2 * mixture(0.3)["naming"]
    assert mixture(0)["corrupted"] == 0


def test_records_are_training_data(scene: Scene, tmp_path: Path) -> None:
    other = scene_of(scene.image, [[0, 0, 50, 100], [60, 10, 120, 90]], [4, 0])
    shares = {kind: share for kind, share in mixture(0.2).items() if not kind.startswith("count")}
    path = tmp_path / "records.jsonl"
    written = write_records([scene, other], shares, 300, 3, path)
    assert written.total() == 300
    total = sum(shares.values())
    for kind in ("naming", "relation", "untaught", "presence: yes", "presence: no", "same: yes"):
        assert written[kind] == pytest.approx(300 * shares[kind] / total, abs=5)
    data = read_training_data(path, None)
    assert len(data.records) == 300 and not data.problems and not data.remarks
    assert {record.image for record in data.records} == {scene.image}
    kinds = Counter(json.loads(line)["kind"] for line in path.read_text().splitlines())
    assert kinds["presence"] == written["presence: yes"] + written["presence: no"]
    asked = read_questions(path, None)
    assert sum(bool(each.choices) for each in asked) > 50, "they can be evaluated by likelihood"


def test_the_seed_decides_the_file(scene: Scene, tmp_path: Path) -> None:
    contents = []
    for number, seed in enumerate((1, 1, 2)):
        write_records([scene], mixture(), 100, seed, tmp_path / f"{number}.jsonl")
        contents.append((tmp_path / f"{number}.jsonl").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_scenes_without_any_question_are_an_error(scene: Scene, tmp_path: Path) -> None:
    bare = replace(scene, captions=())
    with pytest.raises(DataError, match="none of 1 scenes allows a question: caption"):
        write_records([bare], {"caption": 1.0}, 5, 0, tmp_path / "records.jsonl")
    assert not (tmp_path / "records.jsonl").exists()
