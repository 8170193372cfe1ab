"""LanguageModel: batching, stops, context limit, scoring.

Images and regions are random numbers here. The model is the starter's, and one of its kind with
large random weights. Where an answer ends is tested with a decoder that follows a script.
"""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM

from regionqa.bundles.card import ConfidenceCard, LanguageRuntime
from regionqa.bundles.store import Bundle
from regionqa.errors import BundleError, QuestionError
from regionqa.language.decoding import DecodedAnswer, OnTokens
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.language.prompts import render
from regionqa.language.tokenization import BundleTokenizer, Prompt, tokenize
from regionqa.requests import Sampling
from regionqa.runtime.devices import Device

WORDS = ["what", "is", "this", "?", "a", "red", "cup", "on", "the", "left", "<s>", "describe"]
LENGTH = 12
Make = Callable[..., SplicedPrompt]


def changed(bundle: Bundle, **settings: Any) -> Bundle:
    """The same files with other settings in the card's [language]."""
    card = bundle.card
    return Bundle(replace(card, language=replace(card.language, **settings)), bundle.root)


def normal(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


@pytest.fixture(scope="module")
def talkative(starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The starter with large random weights in its language model."""
    folder = tmp_path_factory.mktemp("talkative") / starter.card.language.folder
    there = starter.file(starter.card.language.folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(
        there, initializer_range=0.3, tie_word_embeddings=False, dtype="float32"
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(there / "tokenizer.json", folder)
    return Bundle(starter.card, folder.parent)


@pytest.fixture(scope="module", params=["starter", "talkative"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A model that does not stop by itself."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Bundle)
    return changed(found, stop=())


@pytest.fixture(scope="module")
def language(bundle: Bundle) -> LanguageModel:
    return LanguageModel(bundle, Device.cpu)


@pytest.fixture(scope="module")
def make(starter: Bundle) -> Make:
    """Makes a question about random regions of a random image."""
    card = starter.card
    folder = starter.file(card.language.folder)
    tokenizer = BundleTokenizer(folder / "tokenizer.json")
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    assert card.region is not None
    per_region = card.region.tokens

    def made(question: str, regions: int = 0, image: int = 0, seed: int = 0) -> SplicedPrompt:
        boxes = [(0.25, 0.25, 0.75, 0.75)] * regions
        pieces = render(card.prompt, question, boxes, tokenizer.special_tokens)
        return SplicedPrompt(
            tokenize(pieces, tokenizer, card.vision.image_tokens, per_region),
            image,
            normal(1_000_000 + image, card.vision.image_tokens, width),
            normal(seed, regions, per_region, width),
        )

    return made


def random_prompts(make: Make, seed: int, count: int) -> list[SplicedPrompt]:
    """Questions of 1 to 15 words with 0 to 4 regions, some named, about 3 images in any order."""
    rng = np.random.default_rng(seed)
    prompts = []
    for row in range(count):
        regions = int(rng.integers(5))
        words = [str(word) for word in rng.choice(WORDS, rng.integers(1, 16))]
        words += [f"<region{number}>" for number in range(1, regions + 1) if rng.random() < 0.5]
        rng.shuffle(words)
        prompts.append(make(" ".join(words), regions, int(rng.integers(3)), seed=100 * seed + row))
    return prompts


def ids(answers: list[DecodedAnswer]) -> list[tuple[int, ...]]:
    return [answer.ids for answer in answers]


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_batched_tokens_equal_single_tokens(language: LanguageModel, make: Make, seed: int) -> None:
    prompts = random_prompts(make, seed, 8)
    assert len({len(prompt.prompt.input_ids) for prompt in prompts}) > 1
    together = language.generate(prompts, LENGTH)
    alone = [language.generate([prompt], LENGTH)[0] for prompt in prompts]
    assert together == alone
    assert language.generate(prompts[::-1], LENGTH) == alone[::-1]


def test_answers_depend_on_image_and_region_tokens(talkative: Bundle, make: Make) -> None:
    """Otherwise the other tests of this module could not fail."""
    model = LanguageModel(changed(talkative, stop=()), Device.cpu)
    answers = [
        model.generate([make("what is <region1> ?", 1, image, seed)], LENGTH)[0].ids
        for image, seed in ((0, 1), (0, 2), (1, 1))
    ]
    assert len(set(answers)) == 3
    assert all(len(set(answer)) > LENGTH / 2 for answer in answers), "and are no drone"


def test_both_runtimes_give_the_same_tokens(
    language: LanguageModel, bundle: Bundle, make: Make
) -> None:
    through_transformers = LanguageModel(
        changed(bundle, runtime=LanguageRuntime.transformers), Device.cpu
    )
    prompts = random_prompts(make, 7, 8)
    assert through_transformers.hidden_size == language.hidden_size
    assert through_transformers.generate(prompts, LENGTH) == language.generate(prompts, LENGTH)


def test_tokens_equal_transformers_on_spliced_embeddings(
    language: LanguageModel, bundle: Bundle, make: Make
) -> None:
    """Compared with a separate splice, without shared prefix or batch."""
    model = LlamaForCausalLM.from_pretrained(
        bundle.file(bundle.card.language.folder), dtype=torch.float32
    )
    model.generation_config.eos_token_id = None
    for asked in random_prompts(make, 8, 4):
        slots = [(asked.prompt.image_start, asked.image_tokens)]
        slots += [(at, asked.region_tokens[index]) for at, index in asked.prompt.region_starts]
        embeds = model.get_input_embeddings()(torch.tensor(asked.prompt.input_ids)).detach()
        for at, slot in slots:
            embeds = torch.cat([embeds[:at], torch.from_numpy(slot), embeds[at + len(slot) :]])
        with torch.inference_mode():
            expected = model.generate(
                inputs_embeds=embeds[None],
                attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                max_new_tokens=LENGTH,
                do_sample=False,
                pad_token_id=0,
            )
        assert list(language.generate([asked], LENGTH)[0].ids) == expected[0].tolist()


def test_empty_batch(language: LanguageModel) -> None:
    assert language.generate([], LENGTH) == []


def test_max_new_tokens(language: LanguageModel, make: Make) -> None:
    prompts = random_prompts(make, 9, 3)
    longest = language.generate(prompts, 9)
    for count in (0, 1, 5):
        answers = language.generate(prompts, count)
        assert ids(answers) == [answer.ids[:count] for answer in longest]
    assert all(len(answer.ids) == 9 for answer in longest)


# -- where an answer ends --------------------------------------------------------------------------


class Script:
    """A decoder that generates given tokens, one list per question."""

    hidden_size = 4

    def __init__(self, size: int, *answers: list[int]) -> None:
        self._size = size
        self._answers = answers
        self.read: list[int] = []
        """Positions read in each step."""

    def embed(self, ids: Tensor) -> Tensor:
        return torch.zeros(*ids.shape, self.hidden_size)

    def step(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: int | None
    ) -> tuple[Tensor, int]:
        self.read.append(embeds.shape[1])
        if cache is None:
            return torch.zeros(len(embeds), self._size), 0
        tokens = [answer[min(cache, len(answer) - 1)] for answer in self._answers]
        logits = torch.nn.functional.one_hot(torch.tensor(tokens), self._size).float()
        return logits * torch.arange(1, len(tokens) + 1)[:, None], cache + 1

    def select(self, cache: int, rows: Tensor) -> int:
        return cache


Generate = Callable[..., tuple[list[DecodedAnswer], Script]]


@pytest.fixture
def tokenizer(starter: Bundle) -> BundleTokenizer:
    return BundleTokenizer(starter.file(f"{starter.card.language.folder}/tokenizer.json"))


@pytest.fixture
def generate(
    starter: Bundle, tokenizer: BundleTokenizer, monkeypatch: pytest.MonkeyPatch
) -> Generate:
    """Generate with these stops from a decoder scripted with these texts."""

    def generated(
        stop: tuple[str, ...],
        *texts: str,
        max_new_tokens: int = 30,
        on_tokens: OnTokens | None = None,
        temperature: float | None = None,
    ) -> tuple[list[DecodedAnswer], Script]:
        answers = []
        for text in texts:
            words, *rest = text.split("</s>")
            answer = tokenizer.encode(words)
            for part in rest:
                answer += [tokenizer.token_id("</s>"), *tokenizer.encode(part)]
            answers.append(answer)
        script = Script(tokenizer.size, *answers)
        monkeypatch.setattr("regionqa.language.generation.open_decoder", lambda *_: script)
        rule = ConfidenceCard(0.0, temperature) if temperature else None
        bundle = changed(Bundle(replace(starter.card, confidence=rule), starter.root), stop=stop)
        model = LanguageModel(bundle, Device.cpu)
        prompt = Prompt((0, 0, 5, 6), 1, (), 2)
        empty = np.zeros((1, 4), np.float32), np.zeros((0, 1, 4), np.float32)
        asked = [SplicedPrompt(prompt, row, *empty) for row in range(len(texts))]
        return model.generate(asked, max_new_tokens, on_tokens=on_tokens), script

    return generated


@pytest.mark.parametrize("stop", [("</s>",), ("<s>", "</s>")])
def test_stop_token_ends_the_answer(generate: Generate, stop: tuple[str, ...]) -> None:
    [answer], script = generate(stop, "a red cup</s> and more")
    assert answer.text == "a red cup"
    assert len(script.read) == 1 + len(answer.ids) + 1, "nothing is read after the stop"


def test_answers_of_a_batch_end_separately(generate: Generate, tokenizer: BundleTokenizer) -> None:
    long = "a very long answer about nothing in particular"
    answers, script = generate(("</s>",), "a cat</s> and more", f"{long}</s>", "</s>", "dogs</s>")
    assert [answer.text for answer in answers] == ["a cat", long, "", "dogs"]
    assert [len(answer.ids) for answer in answers] == [
        len(tokenizer.encode(text)) for text in ("a cat", long, "", "dogs")
    ]
    assert len(script.read) == 1 + len(answers[1].ids) + 1, "it ends with the longest answer"
    assert script.read == [2, 2] + [1] * len(answers[1].ids), "the shared part is read once"


def test_other_special_tokens_do_not_stop(generate: Generate) -> None:
    [answer], script = generate((), "a cat</s> sat", max_new_tokens=6)
    assert answer.text.startswith("a cat sat")
    assert (len(answer.ids), script.read) == (6, [2, 2, 1, 1, 1, 1, 1]), "none after the last"


@pytest.mark.parametrize(
    ("stop", "text"),
    [(("###",), "a red cup"), (("cup",), "a red"), (("u",), "a red c"), (("\n", "#"), "a red cup")],
)
def test_stop_text_is_cut_off(generate: Generate, stop: tuple[str, ...], text: str) -> None:
    [answer, other], _ = generate(stop, "a red cup ### human: more", "no", max_new_tokens=20)
    assert answer.text == text
    assert other.text.startswith("no no no"), "the other answer goes on"
    [twice], _ = generate(("e",), "three")
    assert twice.text == "thr"


def test_on_tokens_calls(generate: Generate, tokenizer: BundleTokenizer) -> None:
    calls: dict[int, list[tuple[int, str]]] = {}
    answers, _ = generate(
        ("</s>",), "a red cup</s> and more", "dogs</s>", "</s>",
        on_tokens=lambda row, count, text: calls.setdefault(row, []).append((count, text)),
    )  # fmt: skip
    assert calls.keys() == {0, 1}
    for row, steps in calls.items():
        ids = answers[row].ids
        assert steps == [(count, tokenizer.decode(ids[:count])) for count in range(1, len(ids) + 1)]


@pytest.mark.parametrize("temperature", [None, 0.5, 2.0])
def test_confidence_by_hand(
    generate: Generate, tokenizer: BundleTokenizer, temperature: float | None
) -> None:
    """One of the script's logits is the row's number, from 1; the others are 0."""
    answers, _ = generate(("</s>",), "a red cup</s> and more", "</s> no", temperature=temperature)
    for number, answer in enumerate(answers, start=1):
        likely = math.exp(number / (temperature or 1.0))
        chosen = likely / (likely + tokenizer.size - 1)
        assert answer.confidence == pytest.approx(chosen ** (len(answer.ids) + 1), rel=1e-4)
    assert len(answers[0].ids) > len(answers[1].ids) == 0


def test_prompts_have_their_own_seeds(talkative: Bundle, make: Make) -> None:
    model = LanguageModel(changed(talkative, stop=()), Device.cpu)
    asked = [replace(make("what is this ?"), seed=seed) for seed in (1, 2, 1)]
    first, other, again = model.generate(asked, 6, Sampling(temperature=2.0))
    assert first == again != other
    assert [other] == model.generate(asked[1:2], 6, Sampling(temperature=2.0))


def test_stop_text_of_generated_output(talkative: Bundle, make: Make) -> None:
    """A piece of the answer as stop text cuts the answer there."""
    asked = random_prompts(make, 3, 6)
    free = LanguageModel(changed(talkative, stop=()), Device.cpu).generate(asked, LENGTH)
    for question, expected in zip(asked, free, strict=True):
        piece = re.search("[a-z]{2}", expected.text[3:])
        assert piece, "random tokens have letters"
        stop = piece[0]
        model = LanguageModel(changed(talkative, stop=(stop,)), Device.cpu)
        [answer] = model.generate([question], LENGTH)
        assert answer.text == expected.text.split(stop)[0].strip()
        assert answer.ids == expected.ids[: len(answer.ids)]
        assert len(answer.ids) < LENGTH


def test_starter_stops_at_its_stop_token(starter: Bundle, make: Make) -> None:
    """With its own card, at any token."""
    asked = random_prompts(make, 4, 8)
    free = LanguageModel(changed(starter, stop=()), Device.cpu).generate(asked, 40)
    model = LanguageModel(starter, Device.cpu)
    ends = {model.tokenizer.token_id(stop) for stop in starter.card.language.stop}
    for answer, expected in zip(model.generate(asked, 40), free, strict=True):
        until = next((at for at, token in enumerate(expected.ids) if token in ends), 40)
        assert answer.ids == expected.ids[:until]


# -- what does not fit -----------------------------------------------------------------------------


def test_too_long_question_names_the_limit(starter: Bundle) -> None:
    language = LanguageModel(starter, Device.cpu)
    room = starter.card.language.context - 10
    language.check_length(Prompt((0,) * room, 0, (), 1), 10)
    with pytest.raises(QuestionError) as caught:
        language.check_length(Prompt((0,) * (room + 1), 0, (), 1), 10)
    assert f"take {room + 1} tokens, there is room for {room}" in str(caught.value)
    assert "an answer of 10; ask a shorter question or lower --max-new-tokens" in str(caught.value)


def test_missing_language_model(starter: Bundle) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json: missing from the model 'starter'"):
        LanguageModel(changed(starter, folder="nowhere"), Device.cpu)


# -- given answers ---------------------------------------------------------------------------------


def test_score_equals_token_by_token(bundle: Bundle, make: Make) -> None:
    """A padded batch after a shared prompt equals one long forward pass per answer."""
    language = LanguageModel(bundle, Device.cpu)
    (prompt,) = random_prompts(make, 5, 1)
    answers = [(7, 8, 1), (9,), (7, 8, 300, 20, 1)]
    scores = language.score(prompt, answers)
    for ids, score in zip(answers, scores, strict=True):
        longer = replace(prompt.prompt, input_ids=(*prompt.prompt.input_ids, *ids))
        start = len(prompt.prompt.input_ids)
        expected = 0.0
        for at, token in enumerate(ids):
            read = replace(prompt, prompt=replace(longer, input_ids=longer.input_ids[: start + at]))
            rows = language.embed(read)[None]
            mask = torch.ones(1, rows.shape[1], dtype=torch.bool)
            with torch.inference_mode():
                logits, _ = language._decoder.step(rows, mask, mask.cumsum(1) - 1, None)
            expected += float(logits[0].log_softmax(-1)[token])
        assert score == pytest.approx(expected, abs=2e-3)


def test_greedy_answer_has_the_highest_score(bundle: Bundle, make: Make) -> None:
    language = LanguageModel(bundle, Device.cpu)
    for prompt in random_prompts(make, 6, 3):
        [expected] = language.generate([prompt], 3)
        other = tuple((token + 1) % 500 + 2 for token in expected.ids)
        scores = language.score(prompt, [other, expected.ids[:3] or (1,)])
        assert expected.ids == () or scores[1] > scores[0]
