"""Visual question answering: replies judged against known answers, by what kind of answer is due.

    judge([Asked(question, answer), ...])

What an answer is tells how a reply is read: yes or no, a number, a choice, or else words. It does
not know where questions or replies come from.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from regionqa.data.questions import QuestionRecord
from regionqa.evaluation.metrics.calibration import (
    UncertaintyRule,
    abstention_metrics,
    calibration_metrics,
    calibration_tables,
)
from regionqa.evaluation.metrics.classes import is_unsure
from regionqa.evaluation.metrics.matching import (
    chosen,
    is_count,
    mentions,
    normalise_text,
    number_in,
    yes_or_no,
)
from regionqa.evaluation.metrics.statistics import Bools, Figure, Floats, mean_of, mean_over_groups
from regionqa.evaluation.results import JudgedAnswers
from regionqa.pipeline.outputs import request_boxes
from regionqa.requests import Answer, Request


class AnswerKind(StrEnum):
    """What kind of answer is due."""

    yes_no = "yes/no"
    number = "count"
    choice = "choice"
    words = "words"


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question and what was said to it."""

    question: QuestionRecord
    answer: Answer
    likeliest: Answer | None = None
    """The choice that the model finds likeliest, where there are choices and it was asked."""


def answer_kind(question: QuestionRecord) -> AnswerKind:
    """What kind of answer the known ones are."""
    if question.choices:
        return AnswerKind.choice
    counted = all(number_in(each) is not None for each in question.answers)
    if counted and "how many" in question.request.question.casefold():
        return AnswerKind.number
    if all(normalise_text(each).split(" ")[0] in ("yes", "no") for each in question.answers):
        return AnswerKind.yes_no
    return AnswerKind.number if all(map(is_count, question.answers)) else AnswerKind.words


def is_right(question: QuestionRecord, reply: str) -> bool:
    """Whether the reply says one of the known answers; one that is unsure says none."""
    if is_unsure(reply):
        return False
    match answer_kind(question):
        case AnswerKind.yes_no:
            return yes_or_no(reply) in {yes_or_no(each) for each in question.answers}
        case AnswerKind.number:
            return number_in(reply) in {number_in(each) for each in question.answers}
        case AnswerKind.choice:
            index = chosen(reply, question.choices)
            return index is not None and _is_answer(question, question.choices[index])
        case _:
            return _is_answer(question, reply)


def likelihood_requests(questions: Iterable[QuestionRecord]) -> list[Request]:
    """What to ask so that the model chooses among the choices, without generating."""
    return [
        replace(question.request, choices=question.choices)
        for question in questions
        if question.choices
    ]


def _is_answer(question: QuestionRecord, text: str) -> bool:
    return normalise_text(text) in {normalise_text(each) for each in question.answers}


def judge_vqa(asked: Sequence[AnsweredQuestion], sureness: UncertaintyRule) -> JudgedAnswers:
    """All figures of at least one answered question."""
    right = np.array([is_right(each.question, each.answer.text) for each in asked], bool)
    kinds = [answer_kind(each.question) for each in asked]
    unsure = np.array([sureness.unsure(each.answer) for each in asked], bool)
    confidence = [each.answer.confidence for each in asked]
    figures = [
        Figure("accuracy", "all questions", mean_of(right), len(asked)),
        Figure("exact", "the very same text", mean_of(_marks(asked, _exact)), len(asked)),
        Figure("normalised", "the same words", mean_of(_marks(asked, _same_words)), len(asked)),
        Figure(
            "mentions", "the answer is mentioned", mean_of(_marks(asked, _mentions)), len(asked)
        ),
        *_yes_no_figures(asked, right, kinds),
        *_choice_figures(asked, right, kinds),
        *_count_figures(asked, right, kinds),
    ]
    figures += abstention_metrics(right, unsure)
    figures += calibration_metrics(right, confidence)
    return JudgedAnswers(
        task="vqa",
        items=tuple(_identity(each.question) for each in asked),
        images=tuple(each.question.request.image for each in asked),
        figures=tuple(figures),
        groups=_by_kind(asked, right, kinds),
        listings={
            "wrong": _wrong(asked, right),
            **calibration_tables(right, confidence),
        },
        right=right,
    )


def _identity(question: QuestionRecord) -> str:
    request = question.request
    return f"{request.image} {request_boxes(request.regions)} {request.question}"


Mark = Callable[[QuestionRecord, str], bool]


def _marks(asked: Sequence[AnsweredQuestion], mark: Mark) -> Bools:
    return np.array([mark(each.question, each.answer.text) for each in asked], bool)


def _exact(question: QuestionRecord, reply: str) -> bool:
    return reply.strip() in {each.strip() for each in question.answers}


def _same_words(question: QuestionRecord, reply: str) -> bool:
    return _is_answer(question, reply)


def _mentions(question: QuestionRecord, reply: str) -> bool:
    return any(mentions(reply, each) for each in question.answers)


def _of(kinds: Sequence[AnswerKind], kind: AnswerKind) -> Bools:
    return np.array([each is kind for each in kinds], bool)


def _truths(asked: Sequence[AnsweredQuestion]) -> list[str]:
    return ["yes" if yes_or_no(each.question.answers[0]) else "no" for each in asked]


def _yes_no_figures(
    asked: Sequence[AnsweredQuestion], right: Bools, kinds: Sequence[AnswerKind]
) -> list[Figure]:
    mask = _of(kinds, AnswerKind.yes_no)
    if not mask.any():
        return []
    count = int(mask.sum())
    said = [yes_or_no(each.answer.text) for each in asked]
    return [
        Figure("yes_no", "yes or no", mean_of(right, mask), count),
        Figure("yes_no_balanced", "yes or no, balanced",
               mean_over_groups(right, _truths(asked), mask), count),
        Figure("yes_no_yes", "said yes", mean_of([each is True for each in said], mask), count),
    ]  # fmt: skip


def _choice_figures(
    asked: Sequence[AnsweredQuestion], right: Bools, kinds: Sequence[AnswerKind]
) -> list[Figure]:
    mask = _of(kinds, AnswerKind.choice)
    if not mask.any():
        return []
    figures = [Figure("choice", "choices, as said", mean_of(right, mask), int(mask.sum()))]
    scored = np.array([each.likeliest is not None for each in asked], bool)
    if scored.any():
        likely = [
            each.likeliest is not None and _is_answer(each.question, each.likeliest.text)
            for each in asked
        ]
        figures.append(
            Figure("choice_likelihood", "choices, by likelihood", mean_of(likely, scored),
                   int(scored.sum()))
        )  # fmt: skip
    chance = [1 / len(each.question.choices) if each.question.choices else 0.0 for each in asked]
    figures.append(Figure("choice_chance", "choices, by chance", mean_of(chance, mask),
                          int(mask.sum())))  # fmt: skip
    return figures


def _count_figures(
    asked: Sequence[AnsweredQuestion], right: Bools, kinds: Sequence[AnswerKind]
) -> list[Figure]:
    mask = _of(kinds, AnswerKind.number)
    if not mask.any():
        return []
    count = int(mask.sum())
    away = _away(asked, mask)
    numbers = _numbers(asked, mask)
    always = max(sorted(set(numbers[mask])), key=lambda one: (np.abs(numbers - one) <= 1).sum())
    return [
        Figure("count", "counts, exact", mean_of(right, mask), count),
        Figure("count_within_one", "counts, within one", mean_of(away <= 1, mask), count),
        Figure("count_within_one_balanced", "counts, within one, balanced",
               mean_over_groups(away <= 1, numbers, mask), count),
        Figure("count_within_one_always", f"counts, always {always:.0f}, within one",
               mean_of(np.abs(numbers - always) <= 1, mask), count),
    ]  # fmt: skip


def _numbers(asked: Sequence[AnsweredQuestion], mask: Bools) -> Floats:
    """The first number due of each question for one; infinity elsewhere."""
    numbers = np.full(len(asked), np.inf)
    for row in np.flatnonzero(mask).tolist():
        numbers[row] = number_in(asked[row].question.answers[0])
    return numbers


def _away(asked: Sequence[AnsweredQuestion], mask: Bools) -> Floats:
    """How far each counted number is from the nearest known one; infinity where there is none."""
    away = np.full(len(asked), np.inf)
    for row in np.flatnonzero(mask).tolist():
        said = number_in(asked[row].answer.text)
        known = [number_in(each) for each in asked[row].question.answers]
        if said is not None and not is_unsure(asked[row].answer.text):
            away[row] = min(abs(said - number) for number in known if number is not None)
    return away


def _by_kind(
    asked: Sequence[AnsweredQuestion], right: Bools, kinds: Sequence[AnswerKind]
) -> dict[str, tuple[Figure, ...]]:
    """Accuracy by kind of question; balanced too of yes or no; of counts within one, both ways."""
    names = np.array([each.question.kind or str(kind) for each, kind in zip(asked, kinds,
                      strict=True)], dtype=object)  # fmt: skip
    counted, truths = _of(kinds, AnswerKind.number), _truths(asked)
    near, numbers = _away(asked, counted) <= 1, _numbers(asked, counted)
    plain, balanced, within, within_each = [], [], [], []
    for name in sorted(set(names)):
        mask = np.array(names == name, bool)
        count = int(mask.sum())
        plain.append(Figure(name, name, mean_of(right, mask), count))
        if all(kinds[row] is AnswerKind.yes_no for row in np.flatnonzero(mask).tolist()):
            balanced.append(Figure(name, name, mean_over_groups(right, truths, mask), count))
        if all(kinds[row] is AnswerKind.number for row in np.flatnonzero(mask).tolist()):
            within.append(Figure(name, name, mean_of(near, mask), count))
            within_each.append(Figure(name, name, mean_over_groups(near, numbers, mask), count))
    groups = {
        "kind": plain,
        "kind, balanced": balanced,
        "kind, within one": within,
        "kind, within one, balanced": within_each,
    }
    return {name: tuple(figures) for name, figures in groups.items() if figures}


def _wrong(
    asked: Sequence[AnsweredQuestion], right: Bools, most: int = 15
) -> list[dict[str, object]]:
    """The commonest pairs of answer and wrong reply."""
    found: dict[tuple[str, str], int] = {}
    for each, hit in zip(asked, right, strict=True):
        if not hit:
            pair = each.question.answers[0], each.answer.text
            found[pair] = found.get(pair, 0) + 1
    worst = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"answer": pair[0], "reply": pair[1], "count": count} for pair, count in worst]
