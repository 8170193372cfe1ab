"""Confidence: held-back answers, options, output, card rules.

The bundle is the starter with a rule of its own in the card, so nothing here depends on what the
shipped weights find hard.
"""

import csv
import json
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
import torch
from transformers import LlamaForCausalLM

from regionqa.bundles.card import ConfidenceCard, read_card
from regionqa.bundles.store import CARD, Bundle
from regionqa.engine import Engine
from regionqa.errors import BundleError, UsageError
from regionqa.images.reading import open_image
from regionqa.language.generation import LanguageModel, SplicedPrompt
from regionqa.language.number_words import is_number
from regionqa.regions import Box, Region
from regionqa.requests import Answer, Request
from regionqa.runtime.devices import Device

if TYPE_CHECKING:
    from conftest import Command

HEAD = "120,20,345,240"
ASKED = ("--box", HEAD, "what is this?", "--device", "cpu")
UNSURE = "hard to say."
Rule = Callable[..., Path]


@pytest.fixture
def ruled(starter: Bundle, tmp_path: Path) -> Rule:
    """The starter's folder with this [confidence] table, or without any."""

    def made(**table: Any) -> Path:
        folder = tmp_path / "ruled"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(starter.root, folder)
        card = tomllib.loads((folder / CARD).read_text())
        card.pop("confidence", None)
        card |= {"confidence": table} if table else {}
        (folder / CARD).write_text(tomli_w.dumps(card))
        return folder

    return made


def asked(bundle: Bundle, photo: Path, **settings: Any) -> list[Answer]:
    """Answers about four boxes and the whole of a photo."""
    image = open_image(photo)
    boxes = [(120, 20, 345, 240), (0, 0, 60, 60), (10, 150, 100, 290), (300, 0, 450, 300)]
    requests = [Request("a", "what is this?", (Region(Box(*box)),), image) for box in boxes]
    requests.append(Request("a", "describe this picture.", (), image))
    return list(Engine.load(bundle, device="cpu").answer(requests, **settings))


def with_rule(bundle: Bundle, **rule: Any) -> Bundle:
    return Bundle(replace(bundle.card, confidence=ConfidenceCard(**rule)), bundle.root)


# -- what a user sees ------------------------------------------------------------------------------


def test_unsure_answers_are_held_back(regionqa: "Command", cat: Path, ruled: Rule) -> None:
    model = ruled(threshold=1.0, unsure=UNSURE)
    assert regionqa("ask", cat, *ASKED, "--model", model).out == f"{UNSURE}\n"


def test_guess_option_and_cards_without_rule(regionqa: "Command", cat: Path, ruled: Rule) -> None:
    guess = regionqa("ask", cat, *ASKED, "--model", ruled(threshold=1.0), "--guess").out
    assert guess not in ("", "I am not sure.\n")
    assert regionqa("ask", cat, *ASKED, "--model", ruled()).out == guess
    low = regionqa("ask", cat, *ASKED, "--model", ruled(threshold=1.0), "--unsure-below", 0).out
    assert low == guess


def test_unsure_below_option(regionqa: "Command", cat: Path, ruled: Rule) -> None:
    """With thresholds just above and below the confidence, also for a model without a rule."""
    model = ruled()
    ran = regionqa("ask", cat, *ASKED, "--model", model, "-f", "jsonl", "--confidence")
    sureness = json.loads(ran.out)["confidence"]
    assert 0.001 < sureness < 0.999, "or the flag could not be told from always and never"
    for threshold, held_back in ((sureness - 0.001, False), (sureness + 0.001, True)):
        told = regionqa("ask", cat, *ASKED, "--model", model, "--unsure-below", threshold).out
        assert (told == "I am not sure.\n") is held_back


def test_numbers_have_a_threshold_of_their_own(regionqa: "Command", cat: Path, ruled: Rule) -> None:
    """One option sets both."""
    how_many = ("ask", cat, "how many cats are there?", "--device", "cpu")
    number = regionqa(*how_many, "--guess").out
    assert is_number(number)
    model = ruled(threshold=1.0, number_threshold=0.0, unsure=UNSURE)
    assert regionqa(*how_many, "--model", model).out == number
    assert regionqa("ask", cat, *ASKED, "--model", model).out == f"{UNSURE}\n"
    one = regionqa(*how_many, "--model", model, "--unsure-below", 1.0).out
    assert one == f"{UNSURE}\n"
    model = ruled(threshold=0.0, number_threshold=1.0, unsure=UNSURE)
    assert regionqa(*how_many, "--model", model).out == f"{UNSURE}\n"
    assert regionqa("ask", cat, *ASKED, "--model", model).out != f"{UNSURE}\n"


def test_guess_with_unsure_below_is_refused(regionqa: "Command", cat: Path) -> None:
    ran = regionqa("ask", cat, *ASKED, "--guess", "--unsure-below", 0.3)
    assert (ran.status, ran.out) == (2, "")
    assert (
        "--guess: answers at any confidence, so --unsure-below has no effect; drop one" in ran.err
    )
    assert regionqa("ask", cat, *ASKED, "--unsure-below", 1.5).status == 2


def test_confidence_option_in_json_and_csv(
    regionqa: "Command", cat: Path, tmp_path: Path, ruled: Rule
) -> None:
    words = ("ask", cat, tmp_path / "gone.jpg", *ASKED, "--model", ruled(threshold=1.0))
    plain = regionqa(*words, "-f", "jsonl").lines
    told = regionqa(*words, "-f", "jsonl", "--confidence").lines
    for without, record in zip(map(json.loads, plain), map(json.loads, told), strict=True):
        assert list(record) == [*without, "confidence"]
        assert without == {key: record[key] for key in without}
    sureness = json.loads(told[0])["confidence"]
    assert 0 < sureness < 1, "what it is of the answer that was held back"
    assert json.loads(told[1])["confidence"] is None
    header, good, bad = csv.reader(regionqa(*words, "-f", "csv", "--confidence").lines)
    assert (header[-1], float(good[-1]), bad[-1]) == ("confidence", sureness, "")


def test_resume_of_csv_with_confidence(regionqa: "Command", photos: Path, tmp_path: Path) -> None:
    words = ("ask", photos, *ASKED, "-f", "csv", "--confidence", "--out")
    regionqa(*words, tmp_path / "whole.csv")
    whole = (tmp_path / "whole.csv").read_bytes()
    part = tmp_path / "part.csv"
    part.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert regionqa(*words, part, "--resume").status == 0
    assert part.read_bytes() == whole
    ran = regionqa("ask", photos, *ASKED, "-f", "csv", "--out", part, "--resume")
    assert ran.status == 1
    assert "is not csv written by regionqa; name another file" in ran.err, "columns differ"


# -- the engine ------------------------------------------------------------------------------------


def test_threshold_is_exclusive(starter: Bundle, cat: Path) -> None:
    free = asked(with_rule(starter, threshold=0.0), cat)
    sure = sorted(answer.confidence or 0 for answer in free)
    assert len(set(sure)) == 5
    threshold = sure[2]  # which that answer reaches
    rule = {"threshold": threshold, "unsure": UNSURE}
    for told, answer in zip(asked(with_rule(starter, **rule), cat), free, strict=True):
        assert told.confidence == pytest.approx(answer.confidence, abs=1e-5)
        assert told.tokens == answer.tokens
        held_back = (told.confidence or 0) < threshold
        assert told.text == (UNSURE if held_back else answer.text)
    everything = asked(with_rule(starter, **rule), cat, unsure_below=0)
    assert [answer.text for answer in everything] == [answer.text for answer in free]


def test_long_answers_are_never_held_back(starter: Bundle, cat: Path) -> None:
    free = asked(with_rule(starter, threshold=0.0), cat)
    longest = sorted(answer.tokens for answer in free)[-2]
    told = asked(with_rule(starter, threshold=1.0, longest=longest, unsure=UNSURE), cat)
    for answer, before in zip(told, free, strict=True):
        assert answer.text == (before.text if before.tokens > longest else UNSURE)
    assert {answer.text for answer in told} > {UNSURE}, "one of each at least"


def test_threshold_out_of_range(engine: Engine, cat: Path) -> None:
    with pytest.raises(UsageError, match="--unsure-below 2: must be from 0 to 1"):
        engine.ask(cat, "what is this?", unsure_below=2)


# -- the measure itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_confidence_includes_the_stop_token(
    starter: Bundle, cat: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with transformers' logits for prompt and answer in one pass."""
    bundle = with_rule(starter, threshold=0.0, temperature=temperature)
    seen: list[SplicedPrompt] = []
    generate = LanguageModel.generate

    def kept(self: LanguageModel, prompts: Any, *rest: Any, **more: Any) -> Any:
        seen.extend(prompts)
        return generate(self, prompts, *rest, **more)

    monkeypatch.setattr(LanguageModel, "generate", kept)
    answers = asked(bundle, cat)
    language = LanguageModel(bundle, Device.cpu)
    model = LlamaForCausalLM.from_pretrained(
        bundle.file(bundle.card.language.folder), dtype=torch.float32
    )
    stop = language.tokenizer.token_id(bundle.card.language.stop[0])
    embed = model.get_input_embeddings()
    for spliced, answer in zip(seen, answers, strict=True):
        [said] = generate(language, [spliced], 48)
        ids = torch.tensor([*said.ids, stop])
        rows = embed(torch.tensor(spliced.prompt.input_ids)).detach()
        start = spliced.prompt.image_start
        rows[start : start + len(spliced.image_tokens)] = torch.from_numpy(spliced.image_tokens)
        for at, index in spliced.prompt.region_starts:
            rows[at : at + 1] = torch.from_numpy(spliced.region_tokens[index])
        with torch.inference_mode():
            logits = model(inputs_embeds=torch.cat([rows, embed(ids)])[None]).logits[0]
        logs = (logits[len(rows) - 1 : -1] / temperature).log_softmax(-1)  # (answer, V)
        expected = logs.gather(1, ids[:, None]).sum().exp().item()
        assert answer.confidence == pytest.approx(expected, rel=1e-3)


# -- the card --------------------------------------------------------------------------------------


def test_card_without_confidence(ruled: Rule) -> None:
    assert read_card(ruled() / CARD).confidence is None
    rule = read_card(ruled(threshold=0.4) / CARD).confidence
    assert rule == ConfidenceCard(0.4, 1.0, None, "I am not sure.")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"threshold": 1.2}, "threshold is 1.2, expected a probability from 0 to 1"),
        ({"threshold": 0.5, "number_threshold": -1}, "number_threshold is -1"),
        ({"threshold": 0.5, "temperature": 0}, "temperature is 0.0, not above 0"),
        ({"temperature": 2.0}, "the key 'threshold' is missing"),
        ({"threshold": 0.5, "surely": 1}, "unknown key 'surely'"),
    ],
)
def test_confidence_table_is_checked(ruled: Rule, table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_card(ruled(**table) / CARD)
    assert complaint in str(caught.value)


def test_text_is_kept_while_either_threshold_may_apply() -> None:
    rule = ConfidenceCard(0.0, number_threshold=0.5, longest=3)
    assert rule.may_hold_back(3)
    assert not rule.may_hold_back(4)
    assert not rule.with_threshold(0.0).may_hold_back(1)
