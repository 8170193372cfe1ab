"""Streaming, sampling and conversations."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from conftest import Command
from hypothesis import given
from hypothesis import strategies as st

from helpers.backends import bundle_backend
from regionqa.bundles.prompt_rules import PromptRules
from regionqa.bundles.store import Bundle
from regionqa.engine import Engine
from regionqa.errors import QuestionError, UsageError
from regionqa.images.reading import open_image
from regionqa.language.sampling import TokenSampler
from regionqa.language.streaming import AnswerStream, stable_answer, stable_text
from regionqa.language.tokenization import Prompt
from regionqa.regions import Box, Region
from regionqa.requests import Answer, HistoryTurn, Request, Sampling

RULES = PromptRules("{image}{question}", "", "", "", answer="Assistant: {answer}\n")
HEAD = Region(Box(120, 20, 345, 240))
EAR = Region(Box(130, 10, 200, 80))


# -- telling ---------------------------------------------------------------------------------------


def streamed(parts: Sequence[str], stops: Sequence[str] = ("###",)) -> list[str]:
    """The parts emitted while a text grows by these parts, up to the first stop."""
    received: list[str] = []
    stream = AnswerStream(received.append)
    written = ""
    for part in parts:
        written += part
        if any(stop in written for stop in stops):
            break
        stream.update(stable_answer(RULES, written, stops))
    for stop in stops:
        written = written.split(stop)[0]
    stream.finish(written.strip().removeprefix("Assistant:").strip())
    return received


def test_parts_are_emitted_as_they_come() -> None:
    assert streamed(["The", " red", " car", "."]) == ["The", " red", " car", "."]


def test_role_and_stop_are_never_emitted() -> None:
    assert streamed(["Ass", "istant", ":", " A", " dog", ".", "\n", "#", "##"]) == [
        "A",
        " dog",
        ".",
    ]
    assert streamed(["A", " red"]) == ["A red"]


def test_false_start_of_a_stop_is_emitted() -> None:
    assert streamed(["No", ". #", "#", "1", " then"]) == ["No", ".", " ##1", " then"]


def test_incomplete_character_is_not_emitted() -> None:
    assert stable_text("a caf\ufffd", ()) == "a caf"
    assert stable_text("\ufffd\ufffd", ()) == ""


def test_beginning_of_a_stop_text_is_not_emitted() -> None:
    for text in ("a #", "a ##", "a <", "a </s"):
        assert stable_text(text, ("###", "</s>")) == "a "
    assert stable_text("#", ("###",)) == ""
    assert stable_text("a ", ("###",)) == "a "


def test_rewritten_text_is_emitted_again_on_a_new_line() -> None:
    parts: list[str] = []
    stream = AnswerStream(parts.append)
    for text in ("an", "an ant", "a nt h", "a nt hill"):
        stream.update(text)
    assert parts == ["an", " ant"]
    stream.finish("a nt hill.")
    assert parts == ["an", " ant", "\n", "a nt hill."]


@given(parts=st.lists(st.text("a #A\n:si", max_size=4)), role=st.booleans())
def test_parts_join_to_the_answer(parts: list[str], role: bool) -> None:
    written = "".join(parts).split("###")[0]
    parts = [*(["Assis", "tant: "] if role else []), *parts]
    assert "".join(streamed(parts)) == written.strip().removeprefix("Assistant:").strip()


# -- drawing ---------------------------------------------------------------------------------------


def test_zero_temperature_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 4.0, 4.9]])
    assert TokenSampler(Sampling(), [1, 2])(logits).tolist() == [1, 0]


def test_sampling_frequencies() -> None:
    chances = torch.tensor([0.5, 0.2, 0.3, 0.0])
    count = 4000
    choose = TokenSampler(Sampling(temperature=2.0), range(count))
    found = choose((chances.log() * 2).expand(count, -1)).bincount(minlength=4) / count
    assert torch.allclose(found, chances, atol=0.03)
    assert found[3] == 0


def test_top_k() -> None:
    logits = torch.arange(10.0).expand(300, -1)
    found = TokenSampler(Sampling(temperature=50.0, top_k=3), range(300))(logits)
    assert set(found.tolist()) == {7, 8, 9}


@pytest.mark.parametrize("top_k", [1, 9, 10, 11])
def test_top_k_is_exact(top_k: int) -> None:
    logits = torch.arange(10.0).expand(400, -1)
    found = TokenSampler(Sampling(temperature=50.0, top_k=top_k), range(400))(logits)
    assert set(found.tolist()) == set(range(10)[-top_k:])


def test_extreme_draws_give_possible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """With generators that draw their seed."""
    monkeypatch.setattr(
        "regionqa.language.sampling.np.random.default_rng",
        lambda seed: SimpleNamespace(random=lambda: seed),
    )
    logits = torch.tensor([-torch.inf, 0.0, 0.0, 0.0]).expand(4, -1)
    draws = cast(Sequence[int], (0.0, 0.5, 0.9, 1.0))
    assert TokenSampler(Sampling(temperature=1.0), draws)(logits).tolist() == [1, 2, 3, 3]


def test_answers_have_their_own_generators() -> None:
    logits = torch.zeros(3, 1000)
    together = TokenSampler(Sampling(temperature=1.0), [7, 8, 9])
    alone = TokenSampler(Sampling(temperature=1.0), [8])
    for _ in range(4):
        assert together(logits)[1] == alone(logits[:1])[0]


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_invalid_temperature(temperature: float) -> None:
    with pytest.raises(UsageError, match="must be 0 or more"):
        Sampling(temperature)


# -- the engine ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talking(starter: Bundle) -> Engine:
    """The starter with a card that allows conversations; its answers do not matter."""
    rules = replace(starter.card.prompt, turn="{question}<answer>", again="it")
    return Engine.load(Bundle(replace(starter.card, prompt=rules), starter.root), device="cpu")


def render(engine: Engine, request: Request) -> Prompt:
    """Ids and slots of a request."""
    return bundle_backend(engine).render(request, 8).tokens


@pytest.fixture
def asked(photos: Path) -> list[Request]:
    images = [open_image(path) for path in sorted(photos.iterdir())]
    box = (Region(Box(5, 5, 90, 100)),)
    return [
        Request(image.name, question, box, image)
        for image in images
        for question in ("what is this?", "describe <region1>.")
    ]


def test_answer_is_streamed(engine: Engine, asked: list[Request]) -> None:
    received: dict[int, list[str]] = {id(request): [] for request in asked}
    answers = list(
        engine.answer(asked, unsure_below=0, on_text=lambda r, text: received[id(r)].append(text))
    )
    assert ["".join(received[id(request)]) for request in asked] == [a.text for a in answers]
    assert max(map(len, received.values())) > 2
    assert [a.text for a in engine.answer(asked, unsure_below=0)] == [a.text for a in answers]


def test_uncertain_answer_is_not_streamed(engine: Engine, asked: list[Request]) -> None:
    received: list[str] = []
    [answer] = engine.answer(
        asked[:1], unsure_below=1, on_text=lambda _, text: received.append(text)
    )
    assert received == [answer.text]
    assert answer.text == engine.info.confidence.unsure


def texts(answers: Iterator[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def test_seeded_answers_do_not_depend_on_the_batch(engine: Engine, asked: list[Request]) -> None:
    def answers_with(requests: Sequence[Request], seed: int) -> list[str]:
        return texts(engine.answer(requests, temperature=2.0, seed=seed, unsure_below=0))

    together = answers_with(asked, 3)
    assert [answers_with([request], 3)[0] for request in asked] == together
    assert answers_with(asked[::-1], 3) == together[::-1]
    assert answers_with(asked, 4) != together
    assert together != texts(engine.answer(asked, unsure_below=0))


def test_card_sets_the_temperature(starter: Bundle, asked: list[Request]) -> None:
    language = replace(starter.card.language, temperature=2.0)
    hot = Engine.load(Bundle(replace(starter.card, language=language), starter.root), device="cpu")
    by_card = texts(hot.answer(asked, unsure_below=0))
    assert by_card == texts(hot.answer(asked, temperature=2.0, unsure_below=0))
    assert by_card != texts(hot.answer(asked, temperature=0.0, unsure_below=0))


def test_history_is_part_of_the_prompt(talking: Engine, cat: Path) -> None:
    image = open_image(cat)
    first = Request("cat", "what is <region1>?", (HEAD,), image)
    earlier = HistoryTurn("what is <region1>?", "a cat's head.", 1)
    later = Request("cat", "and <region2>, is it like <region1>?", (HEAD, EAR), image)
    prompt = render(talking, replace(later, history=(earlier,)))
    short = render(talking, first)
    tokenizer = bundle_backend(talking).language.tokenizer
    assert prompt.input_ids[: len(short.input_ids)] == short.input_ids
    assert [index for _, index in prompt.region_starts] == [0, 1]
    words = tokenizer.decode(prompt.input_ids[len(short.input_ids) :])
    assert words.split() == ["a", "cat's", "head.", "and", "2", ",", "is", "it", "like", "it?"]
    answer = next(talking.answer([replace(later, history=(earlier,))], max_new_tokens=8))
    assert answer.error is None


def test_new_region_precedes_its_question(talking: Engine, cat: Path) -> None:
    history = (HistoryTurn("what is this?", "a head.", 1),)
    request = Request("cat", "and this?", (HEAD, EAR), open_image(cat), history=history)
    prompt = render(talking, request)
    (first, _), (second, _) = prompt.region_starts
    answer = bundle_backend(talking).language.tokenizer.token_id("<answer>")
    assert first < prompt.input_ids.index(answer) < second


def test_reference_to_later_region_is_refused(talking: Engine, cat: Path) -> None:
    history = (HistoryTurn("what is <region2>?", "a head.", 1),)
    request = Request("cat", "and this?", (HEAD, EAR), open_image(cat), history=history)
    with pytest.raises(QuestionError, match="names <region2>, but 1 region was given"):
        render(talking, request)


def test_single_turn_model_refuses_history(engine: Engine, cat: Path) -> None:
    request = Request("cat", "and now?", (), open_image(cat), history=(HistoryTurn("a?", "b.", 0),))
    [answer] = engine.answer([request])
    assert "one question at a time" in str(answer.error)


def test_temperature_and_seed_options(regionqa: Command, cat: Path) -> None:
    def answers_with(*words: str) -> str:
        return regionqa("ask", cat, "-b", "120,20,345,240", "what is this?", "--guess", *words).out

    hot = answers_with("--temperature", "3", "--seed", "1")
    assert hot == answers_with("--temperature", "3", "--seed", "1")
    assert hot != answers_with("--temperature", "3", "--seed", "2")
    assert answers_with() == answers_with("--temperature", "0", "--seed", "5") != hot
