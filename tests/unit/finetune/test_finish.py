"""The finished bundle: its [confidence] table, recomputed or kept."""

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tomli_w

from helpers.tiny_models import log_of
from regionqa.bundles.card import ConfidenceCard
from regionqa.bundles.store import CARD, Bundle, open_bundle
from regionqa.data.files import read_training_data
from regionqa.data.records import Record
from regionqa.engine import Engine
from regionqa.finetune import finish
from regionqa.finetune.calibrate import ENOUGH, TEMPERATURES, ScoredAnswers, calibrate
from regionqa.finetune.finish import ask_held_out, plain_words, recalibrate
from regionqa.images.reading import open_image
from regionqa.requests import Request

if TYPE_CHECKING:
    from conftest import Command

Tiny = Callable[[str], Bundle]
RULE = ConfidenceCard(threshold=0.25, temperature=1.3, longest=5, unsure="hard to say.")


@pytest.fixture
def ruled(tiny: Tiny) -> Bundle:
    """A tiny model with a [confidence] table."""
    bundle = tiny("none")
    return replace(bundle, card=replace(bundle.card, confidence=RULE))


@pytest.fixture
def held_out(things: Path) -> tuple[Record, ...]:
    """Six records."""
    return read_training_data(things).records[:6]


def test_held_out_questions_equal_inference(ruled: Bundle, held_out: tuple[Record, ...]) -> None:
    engine = Engine.load(ruled, device="cpu")
    requests = [
        Request(str(r.image), r.turns[0].question, r.regions, open_image(r.image)) for r in held_out
    ]
    answers = list(engine.answer(requests, unsure_below=0))
    answered = [replace(r, turns=(replace(r.turns[0], answer=a.text.upper()),))
            for r, a in zip(held_out, answers, strict=True)]  # fmt: skip
    asked = ask_held_out(ruled, [*answered[:3], *held_out[3:]])
    assert asked.confidence.tolist() == pytest.approx([a.confidence for a in answers])
    assert asked.lengths.tolist() == [a.tokens for a in answers]
    expected = [True] * 3 + [
        plain_words(a.text) == plain_words(r.turns[0].answer)
        for r, a in zip(held_out[3:], answers[3:], strict=True)
    ]
    assert asked.right.tolist() == expected, "capitals and full stops do not count"
    assert not all(expected)
    hotter = ask_held_out(ruled, held_out, temperature=2.2)
    assert (hotter.confidence < asked.confidence).all()
    assert hotter.lengths.tolist() == asked.lengths.tolist()


def scores(count: int, *, long: int = 0) -> ScoredAnswers:
    """Short answers, and some that are longer than the rule's longest."""
    confidence = np.linspace(0.1, 0.9, count + long)
    lengths = np.array([RULE.longest or 0] * count + [6] * long)
    return ScoredAnswers(confidence, confidence > 0.5, lengths, np.zeros(count + long, bool))


@pytest.mark.parametrize(("count", "long"), [(ENOUGH - 1, 0), (ENOUGH - 1, 50), (0, 0)])
def test_few_answers_keep_the_base_table(count: int, long: int, ruled: Bundle) -> None:
    answers = scores(count, long=long)
    table, note = recalibrate(ruled, RULE, [], answers, print)
    assert table is None
    assert note == (
        f"the base's; {count} short held-out answers are too few to compute it again, which "
        f"takes {ENOUGH}"
    )


def test_enough_answers_give_a_new_table(
    ruled: Bundle, held_out: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_temperature = {
        temperature: replace(scores(ENOUGH), confidence=scores(ENOUGH).confidence / temperature)
        for temperature in TEMPERATURES
    }
    asked: list[object] = []

    def asking(bundle: Bundle, records: object, temperature: float) -> ScoredAnswers:
        asked.append((bundle, records))
        return by_temperature[temperature]

    monkeypatch.setattr(finish, "ask_held_out", asking)
    lines: list[str] = []
    table, note = recalibrate(ruled, RULE, held_out, scores(ENOUGH), lines.append)
    assert asked == [(ruled, held_out)] * len(TEMPERATURES)
    expected = calibrate(by_temperature, print, longest=RULE.longest)
    assert table == {**expected, "unsure": "hard to say."}
    assert table["threshold"] != RULE.threshold
    assert note == f"computed on {ENOUGH} short held-out answers"
    assert len(lines) == len(TEMPERATURES)
    rule = replace(RULE, number_threshold=0.2)
    table, _ = recalibrate(ruled, rule, held_out, scores(ENOUGH), print)
    assert table == {**expected, "unsure": "hard to say.", "number_threshold": 0.2}, "the base's"


@pytest.mark.parametrize("enough", [5, 1000])
def test_confidence_table_after_finetuning(
    enough: int,
    tiny: Tiny,
    things: Path,
    regionqa: "Command",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finish, "ENOUGH", enough)
    base = tmp_path / "base"
    copytree(tiny("none").root, base)
    card = tomllib.loads((base / CARD).read_text())
    card["confidence"] = {"threshold": 0.25, "temperature": 1.3, "unsure": "hard to say."}
    (base / CARD).write_text(tomli_w.dumps(card))
    out = tmp_path / "mine"
    ran = regionqa(
        "finetune", "--data", things, "--model", base, "--out", out, "--steps", 1, "--batch", 2,
        "--held-out-share", 0.25, "--device", "cpu",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    made = open_bundle(out).card
    assert made.confidence is not None
    assert (made.confidence.unsure, made.confidence.longest) == ("hard to say.", None)
    note = made.provenance["confidence"]
    assert f"confidence table: {note}" in ran.err.splitlines()
    if enough == 5:
        assert note == "computed on 12 short held-out answers"
        assert made.confidence.temperature in TEMPERATURES
        assert made.confidence.threshold != 0.25
        assert ran.err.count("log loss") == len(TEMPERATURES)
    else:
        assert note.startswith("the base's; 12 short held-out answers are too few")
        assert (made.confidence.threshold, made.confidence.temperature) == (0.25, 1.3)
    assert made.provenance["held_out_questions"] == 12
    assert len(log_of(out)) == 3
