"""Visual question answering: replies are scored against known answers.

The known answers of a question determine how a reply is read: as yes or no, a number, a choice, or
free text. A known answer such as "I am not sure." says that there is none: a model that is not sure
is right.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from regionqa.backends.base import ModelInfo
from regionqa.data.questions import QuestionRecord, read_questions
from regionqa.evaluation.metrics.calibration import (
    UncertaintyRule,
    abstention_metrics,
    calibration_metrics,
    calibration_tables,
)
from regionqa.evaluation.metrics.classes import is_unsure
from regionqa.evaluation.metrics.matching import (
    chosen_index,
    is_count,
    mentions,
    normalise_text,
    number_in,
    yes_or_no,
)
from regionqa.evaluation.metrics.statistics import (
    Bools,
    Floats,
    Metric,
    Statistic,
    mean_over_groups,
    weighted_mean,
)
from regionqa.evaluation.results import TableRows, TaskScores
from regionqa.evaluation.runner import EvalTask
from regionqa.pipeline.outputs import request_boxes
from regionqa.requests import Answer, Request

MAX_WRONG = 15
"""Wrong answers that are listed."""
GROUPS = (
    *("kind", "kind, balanced", "kind, within one", "kind, within one, balanced"),
    *("kind, by likelihood", "kind, by chance", "kind, not sure"),
)


class AnswerKind(StrEnum):
    """Kinds of answers, by which a reply is read."""

    yes_no = "yes/no"
    number = "count"
    choice = "choice"
    words = "words"
    unanswerable = "unanswerable"


class VqaTask(EvalTask):
    """The questions of a file; those with choices are also put as a choice by likelihood."""

    def __init__(
        self,
        file: Path,
        images: Path | None = None,
        *,
        limit: int | None = None,
        likelihood: bool = True,
    ) -> None:
        """Read the questions; see `read_questions` for the files and errors.

        Args:
            file: Training records, or requests with answers.
            images: The folder of the images; None: the file's.
            limit: Number of questions to use, the first ones; None: all.
            likelihood: Whether to also ask for the likeliest choice.
        """
        self.questions = read_questions(file, images)[:limit]
        scored = [number for number, each in enumerate(self.questions) if each.choices]
        scored *= likelihood
        self._requests = [each.request for each in self.questions]
        self._likelihood_index = {}
        for number in scored:
            self._likelihood_index[number] = len(self._requests)
            self._requests.append(likelihood_request(self.questions[number]))
        self.settings = {"file": str(file), "likelihood": likelihood, "limit": limit}

    def requests(self, model: ModelInfo) -> Sequence[Request]:
        """Return the questions, and after them the choices by likelihood."""
        return self._requests

    def score(self, answers: Mapping[int, Answer], uncertainty: UncertaintyRule) -> TaskScores:
        """Score the questions that were answered freely."""
        answered = []
        for number, question in enumerate(self.questions):
            if number in answers:
                likeliest = answers.get(self._likelihood_index.get(number, -1))
                answered.append(AnsweredQuestion(question, answers[number], likeliest))
        return score_vqa(answered, uncertainty)


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with a model's answers."""

    question: QuestionRecord
    answer: Answer
    likeliest: Answer | None = None
    """The choice of highest likelihood, if the model was asked for it."""

    @property
    def reply(self) -> str:
        """The text of the answer."""
        return self.answer.text


def likelihood_request(question: QuestionRecord) -> Request:
    """Return a request that scores the question's choices instead of generating."""
    return replace(question.request, choices=question.choices)


def answer_kind(question: QuestionRecord) -> AnswerKind:
    """Return what kind of answer the known ones are."""
    if question.choices:
        return AnswerKind.choice
    if all(map(is_unsure, question.answers)):
        return AnswerKind.unanswerable
    numbers = all(number_in(each) is not None for each in question.answers)
    if numbers and "how many" in question.request.question.casefold():
        return AnswerKind.number
    if all(normalise_text(each).split(" ")[0] in ("yes", "no") for each in question.answers):
        return AnswerKind.yes_no
    return AnswerKind.number if all(map(is_count, question.answers)) else AnswerKind.words


def is_correct(question: QuestionRecord, reply: str) -> bool:
    """Return whether the reply gives one of the known answers; an unsure one gives none."""
    kind = answer_kind(question)
    if kind is AnswerKind.unanswerable or is_unsure(reply):
        return kind is AnswerKind.unanswerable and is_unsure(reply)
    match kind:
        case AnswerKind.yes_no:
            return yes_or_no(reply) in {yes_or_no(each) for each in question.answers}
        case AnswerKind.number:
            return number_in(reply) in {number_in(each) for each in question.answers}
        case AnswerKind.choice:
            index = chosen_index(reply, question.choices)
            return index is not None and is_answer(question, question.choices[index])
        case _:
            return is_answer(question, reply)


def is_answer(question: QuestionRecord, text: str) -> bool:
    """Return whether a text is a known answer after normalisation."""
    return normalise_text(text) in {normalise_text(each) for each in question.answers}


def score_vqa(answered: Sequence[AnsweredQuestion], uncertainty: UncertaintyRule) -> TaskScores:
    """Score at least one answered question; one without an answer counts only as refused or not."""
    kinds = [answer_kind(each.question) for each in answered]
    unsure = np.array([uncertainty.unsure(each.answer) for each in answered], bool)
    unanswerable = _mask(kinds, AnswerKind.unanswerable)
    correct = np.array([is_correct(each.question, each.reply) for each in answered], bool)
    correct |= unanswerable & unsure
    confidence = [
        None if kind is AnswerKind.unanswerable else each.answer.confidence
        for each, kind in zip(answered, kinds, strict=True)
    ]
    return TaskScores(
        task="vqa",
        items=tuple(_identity(each.question) for each in answered),
        images=tuple(each.question.request.image for each in answered),
        metrics=(
            *_overall_metrics(answered, correct, ~unanswerable),
            *_yes_no_metrics(answered, correct, kinds),
            *_choice_metrics(answered, correct, kinds),
            *_count_metrics(answered, correct, kinds),
            *_unanswerable_metrics(correct, unanswerable),
            *abstention_metrics(correct, unsure, ~unanswerable),
            *calibration_metrics(correct, confidence),
        ),
        groups=_metrics_by_kind(answered, correct, kinds, unsure),
        tables={
            "wrong": _wrong_answers(answered, correct),
            **calibration_tables(correct, confidence),
        },
        correct=correct,
    )


def _identity(question: QuestionRecord) -> str:
    request = question.request
    return f"{request.image} {request_boxes(request.regions)} {request.question}"


def _overall_metrics(
    answered: Sequence[AnsweredQuestion], correct: Bools, answerable: Bools
) -> list[Metric]:
    """Metrics of every question that has an answer, whatever its kind."""
    count = int(answerable.sum())
    if not count:
        return []

    def share(test: Callable[[QuestionRecord, str], bool]) -> Statistic:
        return weighted_mean([test(each.question, each.reply) for each in answered], answerable)

    return [
        Metric("accuracy", "all questions", weighted_mean(correct, answerable), count),
        Metric("exact", "exact match", share(_is_exact), count),
        Metric("normalised", "normalised match", share(is_answer), count),
        Metric("mentions", "answer mentioned", share(_is_mentioned), count),
    ]


def _unanswerable_metrics(correct: Bools, unanswerable: Bools) -> list[Metric]:
    if not unanswerable.any():
        return []
    share, count = weighted_mean(correct, unanswerable), int(unanswerable.sum())
    return [Metric("unanswerable", "questions without an answer, not sure", share, count)]


def _is_exact(question: QuestionRecord, reply: str) -> bool:
    return reply.strip() in {each.strip() for each in question.answers}


def _is_mentioned(question: QuestionRecord, reply: str) -> bool:
    return any(mentions(reply, each) for each in question.answers)


def _mask(kinds: Sequence[AnswerKind], kind: AnswerKind) -> Bools:
    return np.array([each is kind for each in kinds], bool)


def _true_words(answered: Sequence[AnsweredQuestion]) -> list[str]:
    return ["yes" if yes_or_no(each.question.answers[0]) else "no" for each in answered]


def _yes_no_metrics(
    answered: Sequence[AnsweredQuestion], correct: Bools, kinds: Sequence[AnswerKind]
) -> list[Metric]:
    mask = _mask(kinds, AnswerKind.yes_no)
    if not mask.any():
        return []
    count = int(mask.sum())
    said_yes = [yes_or_no(each.reply) is True for each in answered]
    balanced = mean_over_groups(correct, _true_words(answered), mask)
    return [
        Metric("yes_no", "yes or no", weighted_mean(correct, mask), count),
        Metric("yes_no_balanced", "yes or no, balanced", balanced, count),
        Metric("yes_no_yes", "yes or no, share of yes", weighted_mean(said_yes, mask), count),
    ]


def _choice_metrics(
    answered: Sequence[AnsweredQuestion], correct: Bools, kinds: Sequence[AnswerKind]
) -> list[Metric]:
    mask = _mask(kinds, AnswerKind.choice)
    if not mask.any():
        return []
    count = int(mask.sum())
    metrics = [Metric("choice", "choices, by text", weighted_mean(correct, mask), count)]
    scored, likely = _likeliest(answered)
    if scored.any():
        statistic = weighted_mean(likely, scored)
        metrics.append(
            Metric("choice_likelihood", "choices, by likelihood", statistic, int(scored.sum()))
        )
    chance = weighted_mean(_chances(answered), mask)
    metrics.append(Metric("choice_chance", "choices, by chance", chance, count))
    return metrics


def _likeliest(answered: Sequence[AnsweredQuestion]) -> tuple[Bools, Bools]:
    """Which questions were asked by likelihood (N,), and whether the likeliest is right (N,)."""
    scored = [each.likeliest is not None for each in answered]
    likely = [
        each.likeliest is not None and is_answer(each.question, each.likeliest.text)
        for each in answered
    ]
    return np.array(scored, bool), np.array(likely, bool)


def _chances(answered: Sequence[AnsweredQuestion]) -> list[float]:
    """Probability of a right guess among each question's choices; 0 without choices."""
    return [1 / len(each.question.choices) if each.question.choices else 0.0 for each in answered]


def _count_metrics(
    answered: Sequence[AnsweredQuestion], correct: Bools, kinds: Sequence[AnswerKind]
) -> list[Metric]:
    mask = _mask(kinds, AnswerKind.number)
    if not mask.any():
        return []
    count = int(mask.sum())
    near = _count_errors(answered, mask) <= 1
    numbers = _true_numbers(answered, mask)
    constant = max(sorted(set(numbers[mask])), key=lambda one: (np.abs(numbers - one) <= 1).sum())
    always = weighted_mean(np.abs(numbers - constant) <= 1, mask)
    balanced = mean_over_groups(near, numbers, mask)
    return [
        Metric("count", "counts, exact", weighted_mean(correct, mask), count),
        Metric("count_within_one", "counts, within one", weighted_mean(near, mask), count),
        Metric("count_within_one_balanced", "counts, within one, balanced", balanced, count),
        Metric(
            "count_within_one_always", f"counts, always {constant:.0f}, within one", always, count
        ),
    ]


def _true_numbers(answered: Sequence[AnsweredQuestion], mask: Bools) -> Floats:
    """Return the first known number of each question in the mask (N,); infinity for the others."""
    numbers = np.full(len(answered), np.inf)
    for row in np.flatnonzero(mask).tolist():
        numbers[row] = number_in(answered[row].question.answers[0])
    return numbers


def _count_errors(answered: Sequence[AnsweredQuestion], mask: Bools) -> Floats:
    """Compute how far each reply's number is from the nearest known one (N,); infinity without."""
    errors = np.full(len(answered), np.inf)
    for row in np.flatnonzero(mask).tolist():
        given = number_in(answered[row].reply)
        known = [number_in(each) for each in answered[row].question.answers]
        if given is not None and not is_unsure(answered[row].reply):
            errors[row] = min(abs(given - number) for number in known if number is not None)
    return errors


def _metrics_by_kind(
    answered: Sequence[AnsweredQuestion],
    correct: Bools,
    kinds: Sequence[AnswerKind],
    unsure: Bools,
) -> dict[str, tuple[Metric, ...]]:
    """Accuracy by kind of question, and what else is known of questions of some kinds."""
    names = np.array(
        [each.question.kind or str(kind) for each, kind in zip(answered, kinds, strict=True)],
        dtype=object,
    )
    yes_no, counted = _mask(kinds, AnswerKind.yes_no), _mask(kinds, AnswerKind.number)
    words = _true_words(answered)
    near, numbers = _count_errors(answered, counted) <= 1, _true_numbers(answered, counted)
    (scored, likely), chances = _likeliest(answered), _chances(answered)
    groups: dict[str, list[Metric]] = {name: [] for name in GROUPS}

    def add(group: str, name: str, mask: Bools, statistic: Statistic) -> None:
        groups[group].append(Metric(name, name, statistic, int(mask.sum())))

    for name in sorted(set(names)):
        mask = np.array(names == name, bool)
        add("kind", name, mask, weighted_mean(correct, mask))
        if yes_no[mask].all():
            add("kind, balanced", name, mask, mean_over_groups(correct, words, mask))
        if counted[mask].all():
            add("kind, within one", name, mask, weighted_mean(near, mask))
            statistic = mean_over_groups(near, numbers, mask)
            add("kind, within one, balanced", name, mask, statistic)
        if scored[mask].any():
            add("kind, by likelihood", name, mask & scored, weighted_mean(likely, mask & scored))
            add("kind, by chance", name, mask & scored, weighted_mean(chances, mask & scored))
        if unsure.any():
            add("kind, not sure", name, mask, weighted_mean(unsure, mask))
    return {name: tuple(metrics) for name, metrics in groups.items() if metrics}


def _wrong_answers(answered: Sequence[AnsweredQuestion], correct: Bools) -> TableRows:
    """Return the most frequent pairs of known answer and wrong reply."""
    pairs = Counter(
        (each.question.answers[0], each.reply)
        for each, right in zip(answered, correct, strict=True)
        if not right
    )
    worst = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:MAX_WRONG]
    return [{"answer": pair[0], "reply": pair[1], "count": count} for pair, count in worst]
