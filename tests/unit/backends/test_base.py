"""The backend protocol, with a scripted model behind engine and command line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from PIL import Image

from helpers.backends import ToyBackend, ToyModel, toy_info
from regionqa.backends.base import Completion, find_model
from regionqa.backends.bundle import BundleModel
from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import BundleError, ImageError, ItemError, QuestionError, UsageError
from regionqa.images.reading import image_from_memory, open_image
from regionqa.regions import Box, Region
from regionqa.requests import Request, Sampling, request_seed

BOX = Region(Box(1, 1, 5, 5))


def asked(folder: Path, *names: str, question: str = "what?") -> Iterator[Request]:
    """A question about a box of each image; images of one name are one image."""
    images = {name: open_image(folder / f"{name}.png") for name in names}
    return (Request(f"{name}.png", question, (BOX,), images[name]) for name in names)


# -- the command line ------------------------------------------------------------------------------


def test_registered_kind_answers_ask(regionqa: Command, toy: Path, colours: Path) -> None:
    ran = regionqa("ask", colours / "red.png", "-b", "1,1,5,5", "what colour?", "--model", toy)
    assert (ran.status, ran.out) == (0, "red: 1,1,5,5\n")


def test_registered_kind_answers_caption(regionqa: Command, toy: Path, colours: Path) -> None:
    ran = regionqa(
        "caption", colours, "-b", "1,1,5,5", "-b", "0,0,8,8", "--model", toy, "-f", "jsonl"
    )
    assert ran.status == 0
    records = [json.loads(line) for line in ran.lines]
    assert [Path(record["image"]).stem for record in records] == [
        name for name in ("blue", "lime", "red") for _ in range(2)
    ]
    assert {record["question"] for record in records} == {"what colour is <region1>?"}
    assert records[0]["answer"] == "blue: 1,1,5,5"
    about = {(r["model"], r["revision"], r["device"], r["dtype"]) for r in records}
    assert about == {("toy-1", "1", "toy", "none")}


def test_registered_kind_works_in_eval_and_chat(
    regionqa: Command, toy: Path, colours: Path
) -> None:
    ran = regionqa("chat", colours / "red.png", "--model", toy, "-q", stdin="/box 1,1,5,5\nwhat?\n")
    assert (ran.status, ran.out) == (0, "red: 1,1,5,5\n")


def test_unknown_kind_is_named(regionqa: Command, tmp_path: Path, colours: Path) -> None:
    (tmp_path / "card.toml").write_text('kind = "hologram"\n')
    ran = regionqa("ask", colours / "red.png", "what?", "--model", tmp_path)
    assert ran.status == 1
    assert "kind is 'hologram'; known are: bundle" in ran.err


# -- finding models --------------------------------------------------------------------------------


def test_card_without_kind_is_a_bundle(starter: Bundle) -> None:
    for model in ("starter", starter.root, starter):
        found = find_model(model)
        assert isinstance(found, BundleModel)
        assert found.info.name == "starter"
        assert find_model(found) is found


def test_bundle_may_name_its_kind(starter: Bundle, tmp_path: Path) -> None:
    for path in starter.root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    card = (tmp_path / "card.toml").read_text()
    (tmp_path / "card.toml").unlink()
    (tmp_path / "card.toml").write_text(f'kind = "bundle"\n{card}')
    assert find_model(tmp_path).info == find_model("starter").info


def test_unreadable_card_is_reported_by_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"card\.toml: no such file"):
        find_model(tmp_path)
    (tmp_path / "card.toml").write_text("kind = ")
    with pytest.raises(BundleError, match="cannot be read as a card"):
        find_model(tmp_path)


def test_bundle_info_equals_its_card(starter: Bundle) -> None:
    card, info = starter.card, BundleModel(starter).info
    assert (info.max_regions, info.max_new_tokens) == (16, 48)
    assert info.confidence == card.confidence
    assert not info.multi_turn
    talking = replace(card, prompt=replace(card.prompt, turn="{question}"), confidence=None)
    changed = BundleModel(Bundle(talking, starter.root)).info
    assert changed.multi_turn
    assert changed.confidence.threshold == 0


# -- the engine ------------------------------------------------------------------------------------


def engine_of(batch_size: int = 4, **changes: object) -> tuple[Engine, ToyBackend]:
    backend = ToyBackend(toy_info(**changes))
    return Engine(backend, batch_size), backend


def test_image_is_encoded_once_for_consecutive_questions(colours: Path) -> None:
    engine, backend = engine_of()
    names = ["red", "red", "blue", "red"]
    answers = list(engine.answer(asked(colours, *names)))
    assert [answer.text for answer in answers] == [f"{name}: 1,1,5,5" for name in names]
    paths = [str(colours / f"{name}.png") for name in ("red", "blue", "red")]
    assert backend.encoded == list(zip(paths, (2, 1, 1), strict=True))


def test_questions_about_several_images_are_one_batch(colours: Path) -> None:
    engine, backend = engine_of(batch_size=3)
    list(engine.answer(asked(colours, "red", "blue", "lime", "red", "blue", "lime", "red")))
    assert backend.batches == [1, 3, 3], "after the first image, which is answered at once"


def test_errors_of_each_step_belong_to_their_request(colours: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes((colours / "red.png").read_bytes()[:50])
    engine, backend = engine_of()

    def script(request: Request) -> Completion | ItemError:
        if request.question == "fail":
            return QuestionError("the server said no")
        return Completion("fine", 1, None)

    backend.script = script
    good, bad, failing, scored = (
        next(asked(colours, "red", question=text)) for text in ("a?", "<region9>", "fail", "b?")
    )
    requests = [
        good,
        bad,
        replace(failing, source=good.source),
        Request("torn.png", "what?", (), open_image(torn)),
        replace(scored, choices=("x", "y")),
        Request("gone.png", "what?", error=ImageError("gone.png: no such file")),
        replace(good, regions=(BOX,) * 4),
        replace(good, error=ItemError("red.png: box 1: is malformed")),
        good,
    ]
    answers = list(engine.answer(requests, unsure_below=0.9))
    assert [answer.request for answer in answers] == requests
    errors = [str(answer.error) if answer.error else None for answer in answers]
    assert errors[0] is errors[8] is None
    assert errors[7] == "red.png: box 1: is malformed"
    assert errors[1] == "red.png: no region 9"
    assert errors[2] == "the server said no"
    assert errors[3] is not None and errors[3].startswith(str(torn))
    assert errors[4] == "red.png: the toy gives no probabilities"
    assert errors[5] == "gone.png: no such file"
    assert errors[6] is not None and "4 regions in one question, the model toy takes 3" in errors[6]
    assert answers[0].text == "fine", "an answer without a confidence is not held back"
    assert answers[0].confidence is None


def test_options_replace_the_model_defaults(colours: Path) -> None:
    engine, backend = engine_of(temperature=0.7, top_k=5, max_new_tokens=2)
    [answer] = engine.answer(asked(colours, "red"))
    assert (answer.text, answer.tokens) == ("red: 1,1,5,5", 2)
    [answer] = engine.answer(asked(colours, "red"), temperature=0.0, max_new_tokens=1)
    assert answer.text == "red:"
    assert backend.samplings == [Sampling(0.7, 5), Sampling(0.0, 5)]


def test_seed_depends_on_the_request_only(colours: Path) -> None:
    engine, backend = engine_of()
    requests = list(asked(colours, "red", "blue"))
    requests[1] = replace(requests[1], question="and this?")
    list(engine.answer(requests, seed=7))
    list(engine.answer(requests[::-1], seed=7))
    assert backend.seeds == [request_seed(request, 7) for request in (*requests, *requests[::-1])]
    assert len({*backend.seeds, request_seed(requests[0], 8)}) == 3
    list(engine.answer(requests[:1]))
    assert engine.ask(Image.new("RGB", (4, 4), "red"), "a?").text
    assert backend.seeds[4:] == [
        request_seed(requests[0], 0),
        request_seed(Request("image", "a?"), 0),
    ], "the default seed is 0"


def test_streaming_waits_until_an_answer_is_certain(colours: Path) -> None:
    parts: list[str] = []
    rule = ConfidenceCard(threshold=0.6, longest=1)
    engine, backend = engine_of(confidence=rule)
    backend.script = lambda request: Completion("one two three", 3, 0.1)
    [answer] = engine.answer(asked(colours, "red"), on_text=lambda _, text: parts.append(text))
    assert parts == ["one two", " three"], "a description is streamed, from its second token on"
    backend.script = lambda request: Completion("one", 1, 0.1)
    [answer] = engine.answer(asked(colours, "red"), on_text=lambda _, text: parts.append(text))
    assert answer.text == parts[-1] == rule.unsure
    assert answer.confidence == 0.1


def test_answers_of_a_batch_stream_separately(colours: Path) -> None:
    engine, backend = engine_of(confidence=ConfidenceCard(threshold=0.0))
    backend.script = lambda request: (
        QuestionError("the server said no")
        if request.image == "blue.png"
        else Completion(f"it is {request.image}", 3, 0.1)
    )
    parts: dict[str, list[str]] = {}
    requests = list(asked(colours, "red", "lime", "blue", "lime"))
    requests[3] = replace(requests[3], image="again.png")
    for answer in engine.answer(
        requests, on_text=lambda request, text: parts.setdefault(request.image, []).append(text)
    ):
        assert "".join(parts.get(answer.request.image, [])) == answer.text
    assert parts.keys() == {"red.png", "lime.png", "again.png"}
    assert parts["lime.png"] == ["it", " is", " lime.png"]
    assert parts["again.png"] == ["it", " is", " again.png"]


def test_ask_passes_its_options_on() -> None:
    engine, backend = engine_of(temperature=0.7, max_new_tokens=8)
    image = Image.new("RGB", (8, 4), "red")
    answer = engine.ask(image, "what?", max_new_tokens=3, temperature=0.2, seed=5)
    assert answer.text == "red: all of"
    assert (backend.limits, backend.samplings) == ([3], [Sampling(0.2)])
    assert backend.seeds == [request_seed(answer.request, 5)]
    assert engine.ask(image, "what?", unsure_below=0.6).text == "I am not sure."
    assert engine.ask(image, "what?", temperature=0.0).text == "red: all of it"
    assert backend.samplings[-1] == Sampling(0.0)


def test_ask_converts_and_clips_boxes() -> None:
    """In an image that is wider than high."""
    engine, _ = engine_of()
    image = Image.new("RGB", (80, 40), "red")
    same: list[tuple[list[float], dict[str, Any]]] = [
        ([40, 10, 60, 30], {}),
        ([40, 10, 20, 20], {"box_format": "xywh"}),
        ([0.5, 0.25, 0.75, 0.75], {"box_units": "fraction"}),
        ([625, 500, 250, 500], {"box_format": "cxcywh", "box_units": "permille"}),
    ]
    for box, convention in same:
        asked = engine.ask(image, "what?", [box], **convention)
        assert asked.text == "red: 40,10,60,30"
    assert engine.ask(image, "what?", [[60, 5, 90, 20]]).text == "red: 60,5,80,20"
    assert engine.ask(image, "?", [[5, 5, 9, 45], [1, 1, 2, 2]]).text == (
        "red: 5,5,9,40 and 1,1,2,2"
    )
    with pytest.raises(QuestionError, match="no region 9"):
        engine.ask(image, "<region9>?")


def test_batch_size_of_the_engine() -> None:
    image = image_from_memory(Image.new("RGB", (4, 4), "red"))
    cases = [
        (Engine.load(ToyModel(toy_info()), batch_size=2), [2] * 10),
        (Engine.load(ToyModel(toy_info())), [16, 4]),
        (Engine(ToyBackend(toy_info())), [16, 4]),
    ]
    for engine, batches in cases:
        list(engine.answer(Request("a", f"{row}?", (), image) for row in range(20)))
        assert isinstance(engine.backend, ToyBackend)
        assert engine.backend.batches == batches
    assert Engine.load(ToyModel(toy_info()), batch_size=1).info.name == "toy"


def test_first_answer_precedes_second_image(colours: Path) -> None:
    engine, _ = engine_of(batch_size=4)
    taken = 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for request in asked(colours, *["red", "blue", "lime"] * 50):
            taken += 1
            yield request

    answers = engine.answer(stream())
    next(answers)
    assert taken == 2, "one more is read, to see that the image has changed"
    for answered in range(2, 22):
        next(answers)
        assert taken <= answered + 4, "no more than a batch is read ahead"


def test_limits_are_inclusive(colours: Path) -> None:
    engine, backend = engine_of(max_regions=3)
    request = replace(next(asked(colours, "red")), regions=(BOX,) * 3)
    assert next(engine.answer([request], unsure_below=0)).text == (
        "red: 1,1,5,5 and 1,1,5,5 and 1,1,5,5"
    )
    assert next(engine.answer([request], unsure_below=1)).text == "I am not sure."
    backend.script = lambda request: Completion("sure", 1, 1.0)
    assert next(engine.answer([request], unsure_below=1)).text == "sure"


def test_broken_image_keeps_errors_of_its_questions(tmp_path: Path) -> None:
    path = tmp_path / "torn.png"
    Image.new("RGB", (8, 8), "red").save(path)
    path.write_bytes(path.read_bytes()[:50])
    torn = open_image(path)
    engine, _ = engine_of(batch_size=8)
    bad, good = (Request("torn.png", text, (), torn) for text in ("<region9>?", "what?"))
    errors = [str(answer.error) for answer in engine.answer([bad, good, bad])]
    assert errors[0] == errors[2] == "torn.png: no region 9"
    assert errors[1].startswith(str(path))
    only_bad = [str(answer.error) for answer in engine.answer([bad, bad])]
    assert only_bad == ["torn.png: no region 9"] * 2


def test_threshold_is_exclusive(colours: Path) -> None:
    engine, _ = engine_of()  # the toy's confidence is 0.5
    [answer] = engine.answer(asked(colours, "red"), unsure_below=0.5)
    assert answer.text == "red: 1,1,5,5"
    [answer] = engine.answer(asked(colours, "red"), unsure_below=0.5000001)
    assert answer.text == "I am not sure."
    for wrong in (1.5, -0.5):
        with pytest.raises(UsageError, match=f"--unsure-below {wrong}: must be from 0 to 1"):
            engine.answer(asked(colours, "red"), unsure_below=wrong)


def test_choice_confidence_is_its_share_of_probability(colours: Path) -> None:
    engine, backend = engine_of()
    backend.scores = {"cat": -2.0, "dog": -1.0}
    request = replace(next(asked(colours, "red")), choices=("cat", "dog"))
    [answer] = engine.answer([request])
    assert (answer.text, answer.tokens) == ("dog", 0)
    assert answer.confidence == pytest.approx(0.7310586)
    backend.scores = {"cat": -2000.0, "dog": -2001.0}  # whose exponentials are 0
    [answer] = engine.answer([request])
    assert answer.text == "cat"
    assert answer.confidence == pytest.approx(0.7310586)


def test_consecutive_arrays_are_different_images() -> None:
    """Both are named "image"; the starter's own test is in test_bundle_backend.py."""
    engine, _ = engine_of()
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    assert engine.ask(red, "what?").text == "red: all of it"
    assert engine.ask(blue, "what?").text == "blue: all of it"
    sources = [image_from_memory(image) for image in (red, red, blue)]
    answers = engine.answer(Request("image", "what?", (), source) for source in sources)
    assert [answer.text.partition(":")[0] for answer in answers] == ["red", "red", "blue"]


def test_seconds_of_a_window_sum_to_its_time(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that advances by one second at every call."""
    looks = iter(range(100, 1000))
    monkeypatch.setattr("regionqa.engine.time.perf_counter", lambda: float(next(looks)))
    engine, _ = engine_of(batch_size=8)
    image = image_from_memory(Image.new("RGB", (4, 4), "red"))
    answers = list(engine.answer(Request("a", f"{row}?", (), image) for row in range(5)))
    assert sum(answer.seconds for answer in answers) == pytest.approx(1.0)


def test_engine_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = """
import sys
import regionqa
from regionqa import Answer, Engine, Region, Request
import regionqa.backends.base
assert regionqa.Engine is Engine
heavy = {"torch", "onnxruntime", "transformers", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
try:
    regionqa.nothing
except AttributeError:
    pass
else:
    raise AssertionError
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_toy_satisfies_the_protocol() -> None:
    assert Engine.load(ToyModel(toy_info())).info.name == "toy"
