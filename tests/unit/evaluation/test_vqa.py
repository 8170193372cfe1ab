"""Scores of answered questions, by kind of the known answer."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.evaluation_files import grey
from regionqa.backends.bundle import BundleModel
from regionqa.bundles.store import Bundle
from regionqa.data.questions import QuestionRecord
from regionqa.evaluation.metrics.calibration import UncertaintyRule
from regionqa.evaluation.metrics.statistics import Metric
from regionqa.evaluation.tasks.vqa import AnsweredQuestion, VqaTask, score_vqa
from regionqa.requests import Answer, Request

COLOURS = ("red", "green", "blue", "grey")


def answered(
    asked: str,
    known: str,
    reply: str,
    *,
    choices: tuple[str, ...] = (),
    likeliest: str | None = None,
    kind: str | None = None,
    confidence: float | None = None,
) -> AnsweredQuestion:
    request = Request("a.jpg", asked)
    choice = None if likeliest is None else Answer(request, likeliest, 1)
    question = QuestionRecord(request, (known,), choices, kind)
    return AnsweredQuestion(question, Answer(request, reply, 1, confidence=confidence), choice)


def scores(
    *questions: AnsweredQuestion, uncertainty: UncertaintyRule | None = None
) -> dict[str, dict[str, float]]:
    """Values of the metrics by key, under "" those of all questions, else by group."""
    found = score_vqa(questions, uncertainty or UncertaintyRule())
    ones = np.ones((1, len(questions)))

    def values(metrics: tuple[Metric, ...]) -> dict[str, float]:
        return {each.key: float(each.statistic(ones)[0]) for each in metrics}

    return {"": values(found.metrics)} | {k: values(group) for k, group in found.groups.items()}


def test_choice_metrics() -> None:
    """Only questions that were also scored count by likelihood."""
    found = scores(
        answered("colour?", "red", "it is red", choices=COLOURS, likeliest="blue"),
        answered("colour?", "red", "green", choices=COLOURS[:2], likeliest="red"),
        answered("colour?", "red", "green", choices=COLOURS[:2]),
        answered("what?", "a dog", "a dog"),
    )[""]
    assert found["choice"] == pytest.approx(1 / 3)
    assert found["choice_likelihood"] == 0.5
    assert found["choice_chance"] == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    assert found["accuracy"] == 0.5


def test_likelihood_by_kind() -> None:
    found = scores(
        answered("colour?", "red", "red", choices=COLOURS, likeliest="red", kind="colour"),
        answered("colour?", "red", "red", choices=COLOURS, likeliest="blue", kind="colour"),
        answered("size?", "big", "big", choices=("big", "small"), likeliest="big", kind="size"),
        answered("size?", "big", "big", choices=("big", "small"), kind="unscored"),
        answered("what?", "a dog", "a dog", kind="name"),
    )
    assert found["kind, by likelihood"] == {"colour": 0.5, "size": 1}
    assert found["kind, by chance"] == {"colour": 0.25, "size": 0.5}


def test_questions_without_an_answer() -> None:
    """Right if not sure, by the words or by the threshold; they count in no other metric."""
    questions = (
        answered("what is he thinking?", "I am not sure.", "a dog.", kind="open", confidence=0.1),
        answered("what is he thinking?", "I am not sure.", "I cannot tell.", kind="open"),
        answered("what is his name?", "I am not sure.", "a man.", kind="open", confidence=0.9),
        answered("what?", "a dog", "a dog", kind="name", confidence=0.9),
        answered("what?", "a dog", "a cat", kind="name", confidence=0.2),
        answered("is it?", "yes", "no", kind="check", confidence=0.9),
    )
    found = scores(*questions, uncertainty=UncertaintyRule(unsure_below=0.5))
    assert found[""]["unanswerable"] == pytest.approx(2 / 3)
    assert found[""]["accuracy"] == found[""]["mentions"] == pytest.approx(1 / 3)
    assert found[""]["not_sure"] == pytest.approx(1 / 3)
    assert found[""]["accuracy_when_sure"] == 0.5
    assert found[""]["calibration_error"] == pytest.approx((0.2 + 2 * 0.4) / 3)
    assert found["kind"] == {"open": pytest.approx(2 / 3), "name": 0.5, "check": 0}
    assert found["kind, not sure"] == {"open": pytest.approx(2 / 3), "name": 0.5, "check": 0}
    assert scores(*questions[:3])[""] == {"unanswerable": pytest.approx(1 / 3)}


def test_count_metrics() -> None:
    """An unsure reply is never near; neither is one without a number."""
    found = scores(
        answered("how many?", "two", "3"),
        answered("how many?", "two", "4"),
        answered("how many?", "two", "I am not sure, two?"),
        answered("how many?", "five", "many"),
        answered("how many?", "five", "five."),
    )
    assert found[""]["count"] == pytest.approx(1 / 5)
    assert found[""]["count_within_one"] == pytest.approx(2 / 5)
    assert found[""]["count_within_one_balanced"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found[""]["count_within_one_always"] == pytest.approx(3 / 5)
    assert found["kind, within one"] == {"count": pytest.approx(2 / 5)}
    assert found["kind, within one, balanced"] == {"count": pytest.approx((1 / 3 + 1 / 2) / 2)}


def test_nearest_known_number_counts() -> None:
    request = Request("a.jpg", "how many?")
    question = QuestionRecord(request, ("two", "six"))
    found = scores(AnsweredQuestion(question, Answer(request, "five", 1)))[""]
    assert (found["count"], found["count_within_one"]) == (0, 1)


def test_best_constant_count() -> None:
    """Always 3 is within one of 2, 3, 3 and 4, always 2 only of three of them."""
    metrics = score_vqa(
        [answered("how many?", known, "9") for known in ("2", "3", "3", "4", "9")],
        UncertaintyRule(),
    ).metrics
    (always,) = (each for each in metrics if each.key == "count_within_one_always")
    assert always.name == "counts, always 3, within one"
    assert always.statistic(np.ones((1, 5)))[0] == pytest.approx(4 / 5)


def test_balanced_yes_no() -> None:
    found = scores(
        answered("is it?", "yes", "yes"),
        answered("is it?", "yes", "perhaps"),
        answered("is it?", "yes", "no"),
        answered("is it?", "no", "no"),
    )
    assert found[""]["yes_no"] == 0.5
    assert found[""]["yes_no_balanced"] == pytest.approx((1 / 3 + 1) / 2)
    assert found[""]["yes_no_yes"] == 0.25
    assert found["kind, balanced"] == {"yes/no": pytest.approx((1 / 3 + 1) / 2)}


def test_mixed_kinds_are_not_balanced() -> None:
    found = scores(
        answered("is it?", "yes", "yes", kind="x"),
        answered("what?", "a dog", "a dog", kind="x"),
        answered("how many?", "two", "two", kind="y"),
    )
    assert found["kind"] == {"x": 1, "y": 1}
    assert "kind, balanced" not in found
    assert list(found["kind, within one"]) == ["y"]


def test_exact_normalised_and_mentioned() -> None:
    found = scores(
        answered("what?", "a dog", " a dog "),
        answered("what?", "a dog", "It is the dog."),
        answered("what?", "a dog", "a dog and a cat"),
        answered("what?", "a dog", "a cat"),
    )[""]
    assert (found["exact"], found["normalised"], found["mentions"]) == (0.25, 0.5, 0.75)


def test_wrong_answers_are_listed_by_frequency() -> None:
    questions = [
        answered("what?", "a dog", "a cat"),
        answered("what?", "a dog", "an ant"),
        answered("what?", "a dog", "an ant"),
        answered("what?", "a dog", "a dog"),
    ]
    assert score_vqa(questions, UncertaintyRule()).tables["wrong"] == [
        {"answer": "a dog", "reply": "an ant", "count": 2},
        {"answer": "a dog", "reply": "a cat", "count": 1},
    ]


def test_likelihood_requests(tmp_path: Path, starter: Bundle) -> None:
    """Each free answer is paired with its own choice, also if another one failed."""
    grey(tmp_path, "a.jpg")
    records = [
        {"image": "a.jpg", "question": "what?", "answer": "a dog"},
        {"image": "a.jpg", "question": "which?", "answer": "red", "choices": ["red", "blue"]},
        {"image": "a.jpg", "question": "who?", "answer": "ann", "choices": ["ann", "bob"]},
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    info = BundleModel(starter).info
    task = VqaTask(path)
    requests = task.requests(info)
    assert [each.choices for each in requests] == [(), (), (), ("red", "blue"), ("ann", "bob")]
    texts = {0: "a dog", 2: "bob", 3: "blue", 4: "ann"}  # the second question failed
    answers = {index: Answer(requests[index], text, 1) for index, text in texts.items()}
    result = task.score(answers, UncertaintyRule())
    found = {each.key: float(each.statistic(np.ones((1, 2)))[0]) for each in result.metrics}
    assert (found["choice"], found["choice_likelihood"]) == (0, 1)
    assert len(result.items) == 2
    assert len(VqaTask(path, likelihood=False).requests(info)) == 3
    assert len(VqaTask(path, limit=2).requests(info)) == 3
