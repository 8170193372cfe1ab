"""The backend protocol, with a scripted model behind engine and command line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
        good,
    ]
    answers = list(engine.answer(requests, unsure_below=0.9))
    assert [answer.request for answer in answers] == requests
    errors = [str(answer.error) if answer.error else None for answer in answers]
    assert errors[0] is errors[7] is None
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


def test_threshold_is_exclusive(colours: Path) -> None:
    engine, _ = engine_of()  # the toy's confidence is 0.5
    [answer] = engine.answer(asked(colours, "red"), unsure_below=0.5)
    assert answer.text == "red: 1,1,5,5"
    [answer] = engine.answer(asked(colours, "red"), unsure_below=0.5000001)
    assert answer.text == "I am not sure."
    with pytest.raises(UsageError, match=r"--unsure-below 1\.5: must be from 0 to 1"):
        engine.answer(asked(colours, "red"), unsure_below=1.5)


def test_choice_confidence_is_its_share_of_probability(colours: Path) -> None:
    engine, backend = engine_of()
    backend.scores = {"cat": -2.0, "dog": -1.0}
    request = replace(next(asked(colours, "red")), choices=("cat", "dog"))
    [answer] = engine.answer([request])
    assert answer.text == "dog"
    assert answer.confidence == pytest.approx(0.7310586)


def test_consecutive_arrays_are_different_images() -> None:
    """Both are named "image"; the starter's own test is in test_bundle_backend.py."""
    engine, _ = engine_of()
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    assert engine.ask(red, "what?").text == "red: all of it"
    assert engine.ask(blue, "what?").text == "blue: all of it"


def test_seconds_of_a_window_sum_to_its_time(
    colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that advances by one second at every call."""
    looks = iter(range(1000))
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
